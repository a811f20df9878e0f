"""The named keys in the key file: of each the SHA-256, and never the key itself. Several processes may read and change the
file; a change counts from the next request on."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import secrets
import threading
import time
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from filelock import FileLock, Timeout

from access.caller import ANONYMOUS, COMMAND, SCOPES, Caller, Scope
from access.limits import UNLIMITED, Limits
from access.ownership import keep_owner
from atomic_file import write_atomic
from errors import InvalidValue, KeyNotFound, KeysUnreadable, StateUnwritable, shorten
from state_files import read_file
from system_errors import write_error

log = logging.getLogger("easel.access")

KEY_PREFIX = "easel_"
MAX_NAME_LENGTH = 64
_NAME = re.compile(rf"[\w.@+-]{{1,{MAX_NAME_LENGTH}}}")
_RESERVED = (ANONYMOUS.name, COMMAND.name)
_ID = re.compile(r"[0-9a-f]{12}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_LOCK_TIMEOUT_S = 10.0
_MAX_BYTES = 64_000_000


def digest_of(key: bytes) -> str:
    """What the file has of a key. No slow hash: the key has 256 random bits, so nobody can guess it."""
    return hashlib.sha256(key).hexdigest()


@dataclass(frozen=True)
class Key:
    """`created`, `expires`, `revoked`: Unix seconds; None: never."""

    id: str
    name: str
    sha256: str
    scopes: tuple[Scope, ...]
    created: float
    limits: Limits = UNLIMITED
    expires: float | None = None
    revoked: float | None = None

    def state(self, now: float) -> str:
        """active, revoked or expired."""
        if self.revoked is not None:
            return "revoked"
        return "active" if self.expires is None or now < self.expires else "expired"

    @cached_property
    def caller(self) -> Caller:
        return Caller(self.name, frozenset(self.scopes), key=self.name, id=self.id, limits=self.limits)

    def as_json(self) -> dict[str, Any]:
        """For the file."""
        values = {name: getattr(self, name) for name in _FIELDS}
        values |= {"scopes": list(self.scopes), "limits": self.limits.as_json()}
        return {name: value for name, value in values.items() if value is not None}

    @classmethod
    def from_json(cls, document: Any) -> Self:
        """Raises ValueError. An unknown field is an error: it could be a limit that is spelt wrongly."""
        if not isinstance(document, dict):
            raise ValueError("it must be an object")
        for name in document:
            if name not in _FIELDS:
                raise ValueError(f"{str(name)[:40]!r} is not known; known are {', '.join(_FIELDS)}")
        values = dict(document)
        for name, pattern in (("id", _ID), ("sha256", _SHA256)):
            if not isinstance(values.get(name), str) or not pattern.fullmatch(values[name]):
                raise ValueError(f"{name}: it must be {pattern.pattern}")
        values["name"] = checked_name(values.get("name"))
        values["scopes"] = checked_scopes(values.get("scopes"))
        for name in ("created", "expires", "revoked"):
            value = values.get(name)
            if (
                not isinstance(value, int | float | None)
                or isinstance(value, bool)
                or (value is None and name == "created")
            ):
                raise ValueError(f"{name}: it must be a time in Unix seconds")
        values["limits"] = Limits.from_json(values.get("limits", {}))
        return cls(**values)


_FIELDS = tuple(field.name for field in fields(Key))


def checked_name(name: Any) -> str:
    """`name` in the form in which names are compared. Raises ValueError."""
    text = unicodedata.normalize("NFKC", name) if isinstance(name, str) else ""
    if not _NAME.fullmatch(text) or not text.isprintable():
        raise ValueError(
            f"name: it must have 1 to {MAX_NAME_LENGTH} letters, digits and the characters . _ @ + -, without spaces"
        )
    if text.casefold() in _RESERVED:
        raise ValueError(f"name: {text} is the name of callers without a named key")
    return text


def checked_scopes(scopes: Any) -> tuple[Scope, ...]:
    """`scopes` in their usual order. Raises ValueError."""
    if not isinstance(scopes, list | tuple) or not scopes or not set(map(str, scopes)) <= set(SCOPES):
        raise ValueError(f"scopes: one or more of {', '.join(SCOPES)}")
    return tuple(scope for scope in SCOPES if scope in scopes)


class KeyTable:
    """The keys of one version of the file."""

    def __init__(self, keys: Sequence[Key]) -> None:
        self.keys = tuple(keys)
        self.by_digest = {key.sha256: key for key in keys}
        self.by_id = {key.id: key for key in keys}

    def named(self, name: str) -> Key | None:
        """The key of this name that is not revoked; else the last one that was."""
        folded = unicodedata.normalize("NFKC", name).casefold()
        found = [key for key in self.keys if key.name.casefold() == folded]
        return next((key for key in found if key.revoked is None), found[-1] if found else None)

    @classmethod
    def parse(cls, content: bytes) -> Self:
        """Raises ValueError, whose text says where the mistake is."""
        try:
            document = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"it is not JSON: {error}") from error
        if not isinstance(document, dict) or document.get("version") != 1:
            raise ValueError("it must be an object with version 1")
        if set(document) != {"version", "keys"} or not isinstance(document["keys"], list):
            raise ValueError("it must have a list of keys, and nothing else")
        keys = []
        for index, entry in enumerate(document["keys"]):
            try:
                keys.append(Key.from_json(entry))
            except ValueError as error:
                raise ValueError(f"keys[{index}]: {error}") from error
        table = cls(keys)
        if len(table.by_digest) != len(keys) or len(table.by_id) != len(keys):
            raise ValueError("two keys have the same id or sha256")
        names = [key.name.casefold() for key in keys if key.revoked is None]
        if len(set(names)) != len(names):
            raise ValueError("two keys that are not revoked have the same name")
        return table

    def content(self) -> bytes:
        document = {"version": 1, "keys": [key.as_json() for key in self.keys]}
        return (json.dumps(document, indent=1, ensure_ascii=False) + "\n").encode()


_EMPTY = KeyTable(())
_Version = tuple[int, int, int, int]


class KeyFile:
    """The key file at `path`. Thread-safe.

    A file that is damaged, unreadable or gone does not count: the last good version does, as long as the server runs. It is
    kept beside the file, for workers that start later. A server that starts with a damaged file, or without the file
    although there is a copy, has no valid key; `is_used` stays true, so that it never becomes open.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        self.path, self._clock = path, clock
        self._copy = path.with_name(f"{path.stem}.last_good{path.suffix}")
        self._lock = threading.Lock()
        self._seen: _Version | bool | None = False
        """The version of the file that was read last; False before the first look"""
        self._table = _EMPTY
        self._ignored_copy: _Version | None = None
        """The copy that an earlier server has left"""
        self.problem: KeysUnreadable | None = None
        """Why the file does not count"""

    def begin(self) -> None:
        """For the master process of a server, before it forks: what an earlier server has kept does not count."""
        self._ignored_copy, self._seen, self._table = _version_of(self._copy), False, _EMPTY
        self.current()

    def current(self) -> KeyTable:
        """The keys that count now. Costs one `stat` unless the file has changed."""
        version = _version_of(self.path)
        if version == self._seen:
            return self._table
        with self._lock:
            if (version := _version_of(self.path)) != self._seen:
                self._read(version)
                self._seen = version
            return self._table

    @property
    def is_used(self) -> bool:
        """Whether there are named keys, or were: then every request needs a key, even if none is valid."""
        return bool(self.current().keys) or self.problem is not None

    def _read(self, version: _Version | None) -> None:
        try:
            if (
                version is None
                and not _exists(self.path)
                and not self._table.keys
                and not _exists(self._copy)
            ):
                self.problem = None
                return
            table = KeyTable.parse(self._content())
        except (OSError, ValueError, MemoryError) as error:
            self._keep_last_good(error)
            return
        if self.problem is not None:
            log.warning("%s can be read again", self.path.name)
        self.problem, self._table = None, table
        self._keep_copy()

    def _content(self) -> bytes:
        content = read_file(self.path)
        if len(content) > _MAX_BYTES:
            raise ValueError(f"it is larger than {_MAX_BYTES} bytes")
        return content

    def _keep_last_good(self, error: Exception) -> None:
        reason = (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
        copy = _version_of(self._copy)
        if copy is not None and copy != self._ignored_copy:
            with contextlib.suppress(OSError, ValueError):
                self._table = KeyTable.parse(read_file(self._copy))
        if self._table.keys and copy is None:  # the whole folder was deleted
            self._keep_copy()
        counts = (
            "the keys that it had before still count"
            if self._table.keys
            else "no named key is valid until it is corrected"
        )
        remedy = f"Correct it or copy {self._copy.name} over it" + (
            "; to give up all named keys, remove both files and restart."
        )
        self.problem = KeysUnreadable(f"{self.path.name} cannot be used, so {counts}. {remedy}")
        log.error("%s: %s (%s)", self.problem.code, self.problem.message, shorten(reason, 300))

    def _keep_copy(self) -> None:
        if not self._table.keys and not _exists(self._copy):
            return
        content = self._table.content()
        with contextlib.suppress(OSError):
            if not _exists(self._copy) or read_file(self._copy) != content:
                write_atomic(self._copy, content, mode=0o600)
                keep_owner(self._copy)
            elif _version_of(self._copy) == self._ignored_copy:
                os.utime(self._copy)  # it counts for this server, too

    # --- changes -----------------------------------------------------------------------------------

    def add(
        self, name: str, scopes: Sequence[str], limits: Limits = UNLIMITED, *, expires: float | None = None
    ) -> tuple[Key, str]:
        """A new key: what is kept of it, and its text, which is known only now. Raises InvalidValue, StateUnwritable,
        StoreFull and KeysUnreadable."""
        try:
            name, checked = checked_name(name), checked_scopes(list(scopes))
        except ValueError as error:
            field, _, rule = str(error).partition(": ")
            raise InvalidValue(f"`{field}`: {rule}", param=field) from error
        now = self._clock()
        if expires is not None and expires <= now:
            raise InvalidValue("`expires` must be in the future.", param="expires")
        text = KEY_PREFIX + secrets.token_urlsafe(32)
        with self._changing() as table:
            old = table.named(name)
            if old is not None and old.revoked is None:
                raise InvalidValue(
                    f"There is a key {old.name!r} already. Choose another name, or revoke it first: `easel keys revoke "
                    f"{old.name}`.",
                    param="name",
                )
            key = Key(_new_id(table), name, digest_of(text.encode()), checked, round(now, 3), limits, expires)
            self._write([*table.keys, key])
        return key, text

    def revoke(self, name: str) -> Key:
        """Revoke the key `name`; one that is revoked already stays as it is. Raises KeyNotFound and as `add`."""
        with self._changing() as table:
            key = table.named(name)
            if key is None:
                raise KeyNotFound(f"There is no key {shorten(name)!r}; `easel keys list` lists them.")
            if key.revoked is None:
                revoked = replace(key, revoked=round(self._clock(), 3))
                self._write([revoked if other is key else other for other in table.keys])
                key = revoked
        return key

    @contextlib.contextmanager
    def _changing(self) -> Iterator[KeyTable]:
        """The keys in the file, which no other process changes meanwhile. Never those of the copy: a file that is damaged
        is not overwritten."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(self.path.with_suffix(".lock"), timeout=_LOCK_TIMEOUT_S, mode=0o600):
                if not _exists(self.path) and not _exists(self._copy):
                    yield _EMPTY
                    return
                try:
                    table = KeyTable.parse(self._content())
                except (OSError, ValueError) as error:
                    raise KeysUnreadable(
                        f"{self.path} cannot be used ({shorten(str(error), 300)}), so it is not changed. Correct it, or "
                        f"copy {self._copy.name} over it."
                    ) from error
                yield table
        except Timeout as error:
            raise StateUnwritable(
                f"{self.path.name} is being changed by another process; try again."
            ) from error
        except OSError as error:
            raise write_error(error, "the state directory") from error

    def _write(self, keys: Sequence[Key]) -> None:
        write_atomic(self.path, KeyTable(keys).content(), mode=0o600, flush=True)
        keep_owner(self.path, self.path.with_suffix(".lock"))


def _new_id(table: KeyTable) -> str:
    while (new := secrets.token_hex(6)) in table.by_id:
        pass
    return new


def _exists(path: Path) -> bool:
    return os.path.lexists(path)


def _version_of(path: Path) -> _Version | None:
    """Equal versions mean equal content. None if there is nothing."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_ctime_ns, found.st_size
