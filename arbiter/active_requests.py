"""The requests whose pictures are being drawn, of all processes. Each is a file that its process keeps locked, like a
claim. A request has several jobs, one after another; between two of them it has no claim."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import lock_descriptor

from arbiter.locked_file import LockedFile
from state_files import ensure_folder, read_state

_MAX_TEMPORARY_AGE_S = 60.0
_MAX_PROMPT_CHARS = 500
_PRIVATE = 0o600
"""Other users of the machine must not read the prompts"""


@dataclass(frozen=True)
class Sender:
    """Who sent a request, for display: the id that the client gave it or got for it, the client's address and program, and
    the name of its key, "" if it has none. `trace`: the W3C `traceparent` of the request, "" if it is not traced. `owner`:
    whose it is: another key of the same name later is another owner; "" if that is not known."""

    request_id: str = ""
    client: str = ""
    key: str = ""
    trace: str = ""
    owner: str = ""


UNKNOWN_SENDER = Sender()


@dataclass(frozen=True)
class ActiveRequest:
    """A request that waits or is drawn. `jobs`: the ids of all its jobs, in order. `since`: Unix time. `uses_gpu`: false
    for sketches."""

    id: str
    request_id: str
    model: str
    client: str
    since: float
    jobs: tuple[str, ...]
    uses_gpu: bool
    key: str = ""
    prompt: str = ""
    """The beginning of it, for display; empty if prompts are not kept"""
    owner: str = ""
    """As `Sender.owner`"""

    def has_name(self, name: str) -> bool:
        """Whether `name` is one of its ids, or the id of one of its jobs."""
        return name in (self.id, self.request_id, *self.jobs)


class ActiveRequests:
    """All of them, in a folder that the processes share."""

    def __init__(self, folder: Path, clock: Callable[[], float] = time.time) -> None:
        self._folder, self._clock = folder, clock

    @contextlib.contextmanager
    def listed(
        self,
        id: str,
        *,
        model: str,
        jobs: Sequence[str],
        sender: Sender,
        uses_gpu: bool = True,
        prompt: str = "",
    ) -> Iterator[None]:
        """List a request of this process inside the block. A full disk only hides it."""
        request = ActiveRequest(
            id,
            sender.request_id,
            model,
            sender.client,
            self._clock(),
            tuple(jobs),
            uses_gpu,
            sender.key,
            prompt[:_MAX_PROMPT_CHARS],
            sender.owner,
        )
        listing: LockedFile | None = None
        with contextlib.suppress(OSError):
            listing = self._list(request)
        try:
            yield
        finally:
            if listing is not None:
                listing.remove()

    def _list(self, request: ActiveRequest) -> LockedFile:
        folder, name, content = str(self._folder), f"{request.id}.json", json.dumps(vars(request)).encode()
        try:
            return LockedFile(folder, name, content, mode=_PRIVATE)
        except (FileNotFoundError, NotADirectoryError):
            ensure_folder(self._folder)
            return LockedFile(folder, name, content, mode=_PRIVATE)

    def all(self) -> tuple[ActiveRequest, ...]:
        """The requests of living processes, the oldest first. Removes those of dead ones."""
        # The pattern matches hidden names too: those are still being written.
        paths = [path for path in self._folder.glob("*.json") if not path.name.startswith(".")]
        requests = [self._read(path) for path in paths]
        return tuple(
            sorted(
                (request for request in requests if request is not None), key=lambda request: request.since
            )
        )

    def remove_temporary_files(self) -> None:
        """Remove files of processes that were killed while they listed a request, and damaged ones."""
        for path in (*self._folder.glob(".*"), *self._folder.glob("*.corrupt")):
            with contextlib.suppress(OSError):
                if time.time() - path.stat().st_mtime > _MAX_TEMPORARY_AGE_S:
                    path.unlink()

    def _read(self, path: Path) -> ActiveRequest | None:
        with contextlib.suppress(OSError):
            descriptor = os.open(path, os.O_RDWR)
            try:
                if lock_descriptor(descriptor, blocking=False):
                    path.unlink()
                    return None
            finally:
                os.close(descriptor)
            return read_state(path, _request)
        return None


def _request(document: Any) -> ActiveRequest:
    """Raises KeyError, TypeError or ValueError if the document is not a request."""
    request = ActiveRequest(**{**document, "jobs": tuple(document["jobs"])})
    texts = [request.id, request.request_id, request.model, request.client, request.key, request.prompt]
    texts += (request.owner, *request.jobs)
    if not all(isinstance(text, str) for text in texts) or not isinstance(request.since, int | float):
        raise ValueError("not a request")
    return request
