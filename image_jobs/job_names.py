"""The file names of the queue, which hold what its order and its limits depend on: nothing has to be opened to list it."""

from __future__ import annotations

import hashlib
import re
import uuid
from dataclasses import dataclass
from functools import lru_cache

_ID = r"imgjob_[0-9a-f]{32}"
_QUEUED = re.compile(rf"(\d{{10}})\.(\d{{20}})\.([0-9a-f]{{16}})\.(\d{{1,15}})\.({_ID})")
_ENDED = re.compile(rf"(\d{{12}})\.(\d{{20}})\.([0-9a-f]{{16}})\.({_ID})")
_MAX_CACHED = 32_768


def new_job_id() -> str:
    """A new id, which cannot be guessed."""
    return f"imgjob_{uuid.uuid4().hex}"


def is_job_id(text: str) -> bool:
    """Whether `new_job_id` could have returned `text`."""
    return re.fullmatch(_ID, text) is not None


def owner_digest(owner: str) -> str:
    """Stands for the name of a key, which may have any characters."""
    return hashlib.sha256(owner.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class QueuedName:
    """A job that has not ended. The lowest `turn` is drawn first, of these the lowest `number`,
    unless turns have passed, see `turns.py`. `size`: bytes of what it was
    sent."""

    turn: int
    number: int
    owner: str
    size: int
    id: str

    @property
    def text(self) -> str:
        """The name of its file; sorting these gives the order of the queue, without delays."""
        return f"{self.turn:010d}.{self.number:020d}.{self.owner}.{self.size}.{self.id}"

    @classmethod
    @lru_cache(maxsize=_MAX_CACHED)
    def parse(cls, text: str) -> QueuedName | None:
        """None for any other file."""
        match = _QUEUED.fullmatch(text)
        return cls(int(match[1]), int(match[2]), match[3], int(match[4]), match[5]) if match else None


@dataclass(frozen=True)
class EndedName:
    """A job that has ended, at `ended`, in Unix seconds."""

    ended: int
    number: int
    owner: str
    id: str

    @property
    def text(self) -> str:
        """The name of its file; sorting these gives the order in which they ended."""
        return f"{self.ended:012d}.{self.number:020d}.{self.owner}.{self.id}"

    @classmethod
    @lru_cache(maxsize=_MAX_CACHED)
    def parse(cls, text: str) -> EndedName | None:
        """None for any other file."""
        match = _ENDED.fullmatch(text)
        return cls(int(match[1]), int(match[2]), match[3], match[4]) if match else None
