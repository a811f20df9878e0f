"""The two files that tell the sketch engine which nodes and files of weights it offers. All processes of a server write
them, and the engine reads them again when they change."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from state_files import KeptFile, read_file


class SharedFiles:
    """`nodes` and `files`: the paths. Thread-safe, and safe to use after a fork: it has no lock."""

    def __init__(self, nodes: Path, files: Path) -> None:
        self.nodes, self.files = nodes, files
        self._content: tuple[object, KeptFile, KeptFile] | None = None

    def restore(
        self,
        version: object,
        nodes: Mapping[str, Any],
        files: Mapping[str, Sequence[str]],
        *,
        is_latest: Callable[[], bool],
    ) -> None:
        """Write the files unless they have this content. As long as they are intact, that costs two calls of `lstat`.

        `version`: the same object as long as the content is the same. `is_latest`: whether no other process has newer
        content; otherwise files that the engine can read stay as they are. Does nothing if the folder cannot be written:
        the engine goes on with what it has read.
        """
        content = self._content
        if content is None or content[0] is not version:
            kept_nodes = KeptFile(self.nodes, json.dumps(nodes).encode())
            content = (version, kept_nodes, KeptFile(self.files, json.dumps(files).encode()))
            self._content = content
        _, *kept = content
        if all(file.is_intact() for file in kept) or (self._is_readable() and not is_latest()):
            return
        with contextlib.suppress(OSError):
            for file in kept:
                file.restore()

    def _is_readable(self) -> bool:
        try:
            read_nodes(self.nodes)
            read_files(self.files)
        except (OSError, ValueError):
            return False
        return True


def read_nodes(path: Path) -> Mapping[str, Any]:
    """The document with the signatures. Raises OSError, and ValueError if the file is damaged."""
    document = json.loads(read_file(path))
    if not isinstance(document, dict) or not isinstance(document.get("nodes"), dict):
        raise ValueError(f"{path.name} has no nodes")
    return document


def read_files(path: Path) -> dict[str, list[str]]:
    """The names of the files by folder, sorted. Raises OSError, and ValueError if the file is damaged."""
    document = json.loads(read_file(path))
    if not isinstance(document, dict) or not all(map(_is_list_of_names, document.values())):
        raise ValueError(f"{path.name} does not list files by folder")
    return {folder: sorted(names) for folder, names in document.items()}


def _is_list_of_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)
