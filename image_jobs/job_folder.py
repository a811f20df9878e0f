"""The folder of one job: what was asked, how it is going, and what came of it."""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from atomic_file import write_atomic
from state_files import read_file, read_state

JobState = Literal["queued", "running", "done", "failed", "cancelled"]
ENDED: tuple[JobState, ...] = ("done", "failed", "cancelled")
_STATES = ("queued", "running", *ENDED)
_MAX_EVENT_TAIL = 4096


@dataclass(frozen=True)
class JobRequest:
    """What a job is to draw, as the caller of this package wrote it: JSON and files. `seed`: to draw with, also again.
    `owner`: whose job it is, "" for those who send no key. `model`: for display."""

    seed: int
    content: Mapping[str, Any]
    files: tuple[bytes, ...] = ()
    owner: str = ""
    model: str = ""


@dataclass(frozen=True)
class JobStatus:
    """`owner`, `model`: as in the request. Times are Unix seconds. `attempts`: how often it was begun. `result`
    and `error`: JSON of the caller. `events`: how many were written before it ended. `use`: what the present attempt has
    used, as the caller of this package wrote it."""

    id: str
    owner: str
    model: str
    created: float
    state: JobState = "queued"
    started: float | None = None
    ended: float | None = None
    attempts: int = 0
    result: Mapping[str, Any] | None = None
    error: Mapping[str, Any] | None = None
    events: int = 0
    use: Mapping[str, Any] | None = None

    @property
    def has_ended(self) -> bool:
        return self.state in ENDED


class JobFolder:
    """All of one job but its place in the queue. Methods that write raise OSError."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._events = path / "events.jsonl"

    def create(self, status: JobStatus, request: JobRequest) -> int:
        """Write a new one in one step; the bytes of the request."""
        temporary = self.path.with_name(f".{self.path.name}")
        temporary.mkdir(mode=0o700, parents=True)
        try:
            written = JobFolder(temporary)
            document = {**vars(request), "files": len(request.files)}
            data = json.dumps(document, separators=(",", ":")).encode()
            written._write("request.json", data)
            for number, content in enumerate(request.files):
                written._write(f"file-{number}", content)
            written.write_status(status)
            os.rename(temporary, self.path)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        return len(data) + sum(map(len, request.files))

    def _write(self, name: str, data: bytes) -> None:
        write_atomic(self.path / name, data, mode=0o600, folder_mode=0o700)

    def read_request(self) -> JobRequest | None:
        """None if it is missing or damaged; it is then moved aside."""
        try:
            return read_state(self.path / "request.json", self._request)
        except OSError:
            return None

    def _request(self, document: Any) -> JobRequest:
        files = tuple(read_file(self.path / f"file-{number}") for number in range(document["files"]))
        if not isinstance(document["content"], dict):
            raise ValueError("not a request")
        return JobRequest(
            int(document["seed"]), document["content"], files, str(document["owner"]), str(document["model"])
        )

    def remove_request(self) -> None:
        """Remove what is not needed once the job has ended, such as the prompt and the uploads. Never raises."""
        for path in (*self.path.glob("request.json*"), *self.path.glob("file-*"), self._events):
            with contextlib.suppress(OSError):
                path.unlink()

    def status(self) -> JobStatus | None:
        """None if it is missing or damaged; it is then moved aside."""
        return read_state(self.path / "status.json", self._status)

    def _status(self, document: Any) -> JobStatus:
        status = _status(document)
        if status.id != self.path.name:
            raise ValueError("the status of another job")
        return status

    def write_status(self, status: JobStatus) -> None:
        self._write("status.json", json.dumps(asdict(status), separators=(",", ":")).encode())

    # --- cancelling --------------------------------------------------------------------------------

    def request_cancel(self) -> None:
        """Ask the process that draws it to stop."""
        os.close(os.open(self.path / "cancel", os.O_WRONLY | os.O_CREAT, 0o600))

    def is_cancel_requested(self) -> bool:
        return os.path.lexists(self.path / "cancel")

    # --- events ------------------------------------------------------------------------------------

    def add_event(self, name: str, data: Mapping[str, Any]) -> None:
        """For the process that draws it. A full disk only loses the event."""
        line = json.dumps({"event": name, "data": data}).encode() + b"\n"
        with contextlib.suppress(OSError):
            flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW
            descriptor = os.open(self._events, flags, 0o600)
            try:
                length = os.fstat(descriptor).st_size
                # A process that was killed, or a full disk, may have left a part of a line.
                if length and os.pread(descriptor, 1, length - 1) != b"\n":
                    line = b"\n" + line
                os.write(descriptor, line)
            finally:
                os.close(descriptor)

    def events(self) -> list[tuple[int, str, Mapping[str, Any]]]:
        """Number (from 1), name and data of each so far; those that were damaged are left out."""
        try:
            lines = read_file(self._events).split(b"\n")[:-1]
        except OSError:
            return []
        events = ((number, _event(line)) for number, line in enumerate(lines, 1))
        return [(number, *event) for number, event in events if event is not None]

    def last_event(self) -> tuple[str, Mapping[str, Any]] | None:
        """Name and data."""
        with contextlib.suppress(OSError), open(self._events, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _MAX_EVENT_TAIL))
            for line in reversed(file.read().split(b"\n")[:-1]):
                if (event := _event(line)) is not None:
                    return event
        return None


def _event(line: bytes) -> tuple[str, Mapping[str, Any]] | None:
    try:
        document = json.loads(line)
        return str(document["event"]), dict(document["data"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def _status(document: Any) -> JobStatus:
    """Raises TypeError or ValueError for a document of another shape."""
    status = JobStatus(**document)
    times = [status.created, *(time for time in (status.started, status.ended) if time is not None)]
    if (
        not all(isinstance(text, str) for text in (status.id, status.owner, status.model))
        or not all(isinstance(time, int | float) and math.isfinite(time) for time in times)
        or not all(isinstance(count, int) for count in (status.attempts, status.events))
        or status.state not in _STATES
        or not isinstance(status.result, dict | None)
        or not isinstance(status.use, dict | None)
        or not (status.error is None or _is_error(status.error))
    ):
        raise ValueError("not the status of a job")
    return status


def _is_error(document: Any) -> bool:
    """Whether `workers.error_of` can read it."""
    return (
        isinstance(document, dict)
        and all(isinstance(document.get(name), str) for name in ("code", "message"))
        and isinstance(document.get("details"), dict)
        and isinstance(document.get("param", ""), str | None)
        and "param" in document
    )
