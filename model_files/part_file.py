"""The part of a file that has arrived: NAME.part, locked by the one process that writes it, and NAME.part.json."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import queue
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from atomic_file import write_atomic
from errors import DownloadFailed

_BLOCK_BYTES = 1 << 20
_SYNC_BYTES = 1 << 28
_WAIT_S = 0.2


def part_path(target: Path) -> Path:
    return target.with_name(f"{target.name}.part")


def wrong_path(target: Path) -> Path:
    return target.with_name(f"{target.name}.wrong")


def facts_path(target: Path) -> Path:
    return target.with_name(f"{target.name}.part.json")


@contextlib.contextmanager
def locked_part(
    target: Path, has_arrived: Callable[[], bool], on_wait: Callable[[], None], stop: threading.Event
) -> Iterator[PartFile | None]:
    """The part of `target`, once no other process writes it; None if the file arrived meanwhile, or with `stop`.
    Raises OSError."""
    target.parent.mkdir(parents=True, exist_ok=True)
    while not has_arrived() and not stop.is_set():
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
        descriptor = os.open(part_path(target), flags, 0o666)
        try:
            if not _lock(descriptor):
                on_wait()
                stop.wait(_WAIT_S)
                continue
            # Whoever held the lock may have finished the file, which renames it.
            if not _is_at(descriptor, part_path(target)) or has_arrived():
                continue
            part = PartFile(descriptor, target)
            try:
                yield part
            finally:
                part.close()
            return
        finally:
            os.close(descriptor)
    yield None


def is_being_pulled(target: Path) -> bool:
    """Whether a process writes the part of `target`."""
    try:
        descriptor = os.open(part_path(target), os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        return not _lock(descriptor)
    finally:
        os.close(descriptor)


def _lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise DownloadFailed(
            f"The file system of the models folder has no file locks ({error.strerror}), without which two processes could "
            "write one file."
        ) from error
    return True


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.lstat(path))
    except OSError:
        return False


def _boot_id() -> str:
    """Empty if the system has none: then only what was flushed counts after a crash."""
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    return ""


class PartFile:
    """What has arrived of a file, and its hash. Hashing and flushing run in threads of their own. For one thread."""

    def __init__(self, descriptor: int, target: Path) -> None:
        self._descriptor, self._target = descriptor, target
        self._facts = _Facts(facts_path(target))
        self._hash, self._hashes = _HashThread(), True
        self._flush: threading.Thread | None = None
        self._flushed = 0
        self.size = 0

    def resume(
        self, url: str, on_progress: Callable[[int], None], stop: threading.Event, *, hashes: bool = True
    ) -> None:
        """Use what an earlier process pulled from the same URL. With `hashes`, it is read once. Raises OSError."""
        self._hashes = hashes
        facts = self._facts.read()
        size = os.fstat(self._descriptor).st_size
        if facts.get("url") != url:
            size = 0
        elif not facts.get("boot") or facts["boot"] != _boot_id():
            size = min(size, facts["safe"])  # the machine may have crashed: the rest need not be on the disk
        os.ftruncate(self._descriptor, size)
        os.lseek(self._descriptor, 0, os.SEEK_SET)
        self._facts.url, self._facts.validator = url, facts.get("validator", "") if size else ""
        if not hashes:
            self.size = os.lseek(self._descriptor, size, os.SEEK_SET)
        while self.size < size and not stop.is_set():
            block = os.read(self._descriptor, _BLOCK_BYTES)
            self._hash.update(block)
            self.size += len(block)
            on_progress(self.size)

    @property
    def validator(self) -> str:
        """Of the content that the part is of; empty if none is known"""
        return self._facts.validator

    def begin(self, validator: str) -> None:
        """Forget what has arrived: the file is sent from its begin, with this validator. Raises OSError."""
        self._wait_for_flush()
        self._hash.close()
        self._hash, self.size, self._flushed = _HashThread(), 0, 0
        os.ftruncate(self._descriptor, 0)
        os.lseek(self._descriptor, 0, os.SEEK_SET)
        self._facts.validator = validator
        self._facts.write(safe=0)

    def write(self, data: bytes) -> None:
        """Raises OSError."""
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(self._descriptor, rest) :]
        if self._hashes:
            self._hash.update(data)
        self.size += len(data)
        if self.size - self._flushed >= _SYNC_BYTES and not (self._flush and self._flush.is_alive()):
            self._flushed = self.size
            self._flush = threading.Thread(target=self._flush_to_disk, args=[self.size], daemon=True)
            self._flush.start()

    def _flush_to_disk(self, size: int) -> None:
        with contextlib.suppress(OSError):  # the last flush reports what is wrong
            os.fsync(self._descriptor)
            self._facts.write(safe=size)

    def _wait_for_flush(self) -> None:
        if self._flush is not None:
            self._flush.join()
            self._flush = None

    def sha256(self) -> str:
        """Of all that has arrived"""
        return self._hash.hexdigest()

    def finish(self) -> None:
        """Put the complete file in its place. Raises OSError; FileExistsError if there is one now."""
        self._wait_for_flush()
        os.fsync(self._descriptor)
        if os.path.lexists(self._target):
            raise FileExistsError(f"{self._target.name} exists")
        self._move_to(self._target)

    def set_aside(self) -> Path:
        """Keep the part as NAME.wrong; its path. Raises OSError."""
        self._wait_for_flush()
        self._move_to(wrong_path(self._target))
        return wrong_path(self._target)

    def _move_to(self, path: Path) -> None:
        os.replace(part_path(self._target), path)
        self._facts.remove()
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def close(self) -> None:
        """Stop the threads. Never raises."""
        self._wait_for_flush()
        self._hash.close()
        with contextlib.suppress(OSError):
            if self.size == 0 and _is_at(self._descriptor, part_path(self._target)):
                part_path(self._target).unlink()
                self._facts.remove()


class _Facts:
    """NAME.part.json: where the part is from, and how much of it is surely on the disk."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.url, self.validator = "", ""

    def read(self) -> dict[str, Any]:
        """Empty if there is no such file, or a damaged one."""
        try:
            facts = json.loads(self._path.read_bytes())
            valid = isinstance(facts, dict) and all(
                isinstance(facts.get(name), kind)
                for name, kind in (("url", str), ("validator", str), ("boot", str), ("safe", int))
            )
        except (OSError, ValueError, RecursionError):
            return {}
        return facts if valid else {}

    def write(self, safe: int) -> None:
        facts = {"url": self.url, "validator": self.validator, "boot": _boot_id(), "safe": safe}
        write_atomic(self._path, json.dumps(facts).encode())

    def remove(self) -> None:
        self._path.unlink(missing_ok=True)


class _HashThread:
    """SHA-256 of what it is given, computed while more arrives."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self._blocks: queue.Queue[bytes | None] = queue.Queue(maxsize=16)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while (block := self._blocks.get()) is not None:
            self._hash.update(block)

    def update(self, block: bytes) -> None:
        self._blocks.put(block)

    def hexdigest(self) -> str:
        self.close()
        return self._hash.hexdigest()

    def close(self) -> None:
        if self._thread.is_alive():
            self._blocks.put(None)
            self._thread.join()
