"""The head of a safetensors file: the names and shapes of its tensors, and its metadata."""

from __future__ import annotations

import json
import os
import stat
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

MAX_HEADER_BYTES = 32_000_000
"""Those of the largest models have about 2 MB. The format allows 100 MB, which need seconds and a gigabyte to read."""
_MAX_DIMENSIONS = 16


class HeaderInvalid(Exception):
    """The file is no safetensors file, or is damaged; the text says why."""


@dataclass(frozen=True)
class Header:
    """`tensors`: name -> shape. `metadata`: what the program that wrote the file noted."""

    tensors: Mapping[str, tuple[int, ...]]
    metadata: Mapping[str, str] = field(default_factory=dict)


def read_header(path: Path) -> Header:
    """The head of the file. Raises HeaderInvalid, OSError."""
    # O_NONBLOCK, because opening a pipe would block.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise HeaderInvalid("it is not a file")
        start = file.read(8)
        if len(start) < 8:
            raise HeaderInvalid("it is shorter than 8 bytes")
        (length,) = struct.unpack("<Q", start)
        if length > found.st_size - 8:
            raise HeaderInvalid("its head is longer than the file: it is truncated, or no safetensors file")
        if length > MAX_HEADER_BYTES:
            raise HeaderInvalid(f"its head has {length} bytes; at most {MAX_HEADER_BYTES} are read")
        content = file.read(length)
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise HeaderInvalid("its head is not JSON") from error
    return _parse(document, found.st_size - 8 - length)


def _parse(document: Any, data_bytes: int) -> Header:
    if not isinstance(document, dict):
        raise HeaderInvalid("its head is not an object")
    metadata = document.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict):
        raise HeaderInvalid("its metadata is not an object")
    end = 0
    tensors: dict[str, tuple[int, ...]] = {}
    for name, entry in document.items():
        shape, last = _tensor(entry)
        tensors[name] = shape
        end = max(end, last)
    if not tensors:
        raise HeaderInvalid("it has no tensors")
    if end > data_bytes:
        raise HeaderInvalid(f"it is truncated: {end - data_bytes} bytes are missing at its end")
    texts = {key: value for key, value in metadata.items() if isinstance(value, str)}
    return Header(tensors, texts)


def _tensor(entry: Any) -> tuple[tuple[int, ...], int]:
    """The shape, and where its bytes end. Raises HeaderInvalid."""
    shape = entry.get("shape") if isinstance(entry, dict) else None
    offsets = entry.get("data_offsets") if isinstance(entry, dict) else None
    if _are_sizes(shape) and _are_sizes(offsets) and len(offsets) == 2 and offsets[0] <= offsets[1]:
        return tuple(shape), offsets[1]
    raise HeaderInvalid("its head describes a tensor without a shape or without a place")


def _are_sizes(value: Any) -> TypeGuard[list[int]]:
    return (
        isinstance(value, list)
        and len(value) <= _MAX_DIMENSIONS
        and all(isinstance(each, int) and not isinstance(each, bool) and each >= 0 for each in value)
    )
