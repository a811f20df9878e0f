"""The changes of the image store, for event streams."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from access import Caller
from api.gallery import image_document, visible_owner
from api.image_feed import ImageChange
from api.responses import Links
from image_store import ImageStore


class GalleryFeed:
    """An `ImageFeed` of the index of `store`."""

    def __init__(self, store: ImageStore) -> None:
        self._store = store

    def position(self) -> tuple[str, int]:
        return self._store.index.position()

    def changes_after(self, epoch: str, number: int, owner: str | None) -> Sequence[ImageChange] | None:
        return self._store.index.changes_after(epoch, number, owner)

    def owner_of(self, caller: Caller) -> str | None:
        return visible_owner(caller)

    def documents(self, names: Sequence[str], links: Links) -> Mapping[str, Mapping[str, Any]]:
        return {record.name: image_document(record, links) for record in self._store.index.records(names)}
