"""Names the errors of the operating system: a full disk, a folder that cannot be written, too many open files, no memory.
None of them is ever the fault of the client whose request met it."""

from __future__ import annotations

import errno
import functools
from collections.abc import Iterator
from typing import Any, TypeVar, cast

from errors import EaselError, OutOfMemory, StateUnwritable, StoreFull, TooManyFiles

K = TypeVar("K", bound=EaselError)

DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_TOO_MANY_FILES = frozenset({errno.EMFILE, errno.ENFILE})
_NO_ACCESS = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
_NO_THREAD = "can't start new thread"
_MAX_WRAPPED = 20


def causes(error: BaseException) -> Iterator[BaseException]:
    """An error and all that it wraps or was raised after: HTTP libraries keep these in `args` and `reason` only."""
    pending, seen = [error], set[int]()
    while pending and len(seen) < _MAX_WRAPPED:
        current = pending.pop(0)
        if id(current) in seen:
            continue
        seen.add(id(current))
        yield current
        wrapped = (current.__cause__, current.__context__, getattr(current, "reason", None), *current.args)
        pending += [inner for inner in wrapped if isinstance(inner, BaseException)]


def write_error(error: OSError, place: str, unwritable: type[EaselError] = StateUnwritable) -> EaselError:
    """The error to raise after `error`, which prevented writing in `place`, such as "the state directory"."""
    if error.errno in DISK_FULL:
        return StoreFull(f"The disk of {place} is full: {error.strerror}.")
    return _shortage(error) or unwritable(
        f"{place[:1].upper()}{place[1:]} cannot be written: {error.strerror}."
    )


def shortage_in(error: BaseException) -> EaselError | None:
    """The error to raise if this machine had too little memory, disk, threads or open files; None if `error`, and all that
    it was raised from, has another cause."""
    return next((found for found in map(_shortage, causes(error)) if found is not None), None)


def shortage_as(kind: type[K], error: BaseException) -> K | None:
    """As `shortage_in`, as an error that is also a `kind`: code, message and status are those of the shortage, and code
    that handles a `kind`, such as a server that cannot be reached, handles this too."""
    shortage = shortage_in(error)
    if shortage is None:
        return None
    combined: K = _combined(cast(Any, type(shortage)), cast(Any, kind))(shortage.message)
    return combined


@functools.cache
def _combined(shortage: Any, kind: Any) -> Any:
    return type(f"{shortage.__name__}As{kind.__name__}", (shortage, kind), {"__doc__": shortage.__doc__})


def system_error_in(error: BaseException) -> EaselError | None:
    """As `shortage_in`, and StateUnwritable if this server may not read or write one of its files."""
    denied = any(isinstance(one, OSError) and one.errno in _NO_ACCESS for one in causes(error))
    return shortage_in(error) or (
        StateUnwritable("This server may not read or write one of its files.") if denied else None
    )


def _shortage(error: BaseException) -> EaselError | None:
    number = error.errno if isinstance(error, OSError) else None
    if isinstance(error, MemoryError) or number == errno.ENOMEM:
        return OutOfMemory("This server has too little memory for the request at the moment.")
    if isinstance(error, RuntimeError) and str(error).startswith(_NO_THREAD):
        return OutOfMemory("This server cannot start more threads at the moment.")
    if number in _TOO_MANY_FILES:
        return TooManyFiles("This server has too many open files and connections at the moment.")
    if number in DISK_FULL:
        return StoreFull("A disk of this server is full.")
    return None
