"""What a pull works with: files of weights, and models that need them. The catalogue's own types have these fields."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol


class Weights(Protocol):
    """A file of weights: its name (with `/` between subfolders), ComfyUI's folder, and what is known of its content."""

    @property
    def name(self) -> str: ...
    @property
    def folder(self) -> str: ...
    @property
    def url(self) -> str | None: ...
    @property
    def size(self) -> int | None:
        """bytes"""

    @property
    def sha256(self) -> str | None: ...
    @property
    def gated(self) -> bool:
        """Its publisher gives it only to accounts that accepted the terms."""


class Licensed(Protocol):
    """The terms of a model."""

    @property
    def name(self) -> str: ...
    @property
    def url(self) -> str | None: ...


class ModelWithFiles(Protocol):
    """A model of the catalogue and the files it needs."""

    @property
    def id(self) -> str: ...
    @property
    def files(self) -> Mapping[str, Weights]:
        """by role"""

    @property
    def licence(self) -> Licensed: ...
