"""What an event stream needs to know of the stored images: what changed after a position, in every worker the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

from access import Caller
from api.responses import Links


class ImageChange(Protocol):
    """One change of the stored images, see `ImageFeed.changes_after`."""

    @property
    def number(self) -> int: ...
    @property
    def kind(self) -> Literal["added", "changed", "removed"]: ...
    @property
    def name(self) -> str: ...


class ImageFeed(Protocol):
    """The changes of all images, numbered from 1 within an epoch. A lost index begins a new epoch."""

    def position(self) -> tuple[str, int]:
        """The epoch, and the number of the last change."""

    def changes_after(self, epoch: str, number: int, owner: str | None) -> Sequence[ImageChange] | None:
        """What changed since `position` returned these, oldest first; of the images of `owner`, or of all. None if that is
        not known any more: the images must be listed anew."""

    def owner_of(self, caller: Caller) -> str | None:
        """Whose images `caller` may see; None: everybody's."""

    def documents(self, names: Sequence[str], links: Links) -> Mapping[str, Mapping[str, Any]]:
        """name -> the image as JSON; without those that are gone."""
