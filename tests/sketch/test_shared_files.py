"""The files of the sketch engine, which all processes of a server write, agree with the newest catalogue."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sketch import SharedFiles

OLD: Any = ("old", {"nodes": {"A": {}}}, {"checkpoints": ["a"]})
NEW: Any = ("new", {"nodes": {"A": {}, "B": {}}}, {"checkpoints": ["a", "b"]})


class Process:
    """A process of the server with its own view of the two files."""

    def __init__(self, folder: Path) -> None:
        self.files = SharedFiles(folder / "nodes.json", folder / "files.json")

    def serve(self, catalogue: Any, *, is_latest: bool = True) -> None:
        version, nodes, files = catalogue
        self.files.restore(version, nodes, files, is_latest=lambda: is_latest)

    def content(self) -> tuple[Any, Any]:
        return json.loads(self.files.nodes.read_text()), json.loads(self.files.files.read_text())


def test_a_process_with_an_older_catalogue_leaves_the_files_of_a_newer_one(tmp_path: Path) -> None:
    first, second = Process(tmp_path), Process(tmp_path)
    first.serve(OLD)
    second.serve(OLD)
    second.serve(NEW)
    written_at = second.files.nodes.stat().st_mtime_ns
    for _ in range(3):
        first.serve(OLD, is_latest=False)
        second.serve(NEW)
    assert first.content() == NEW[1:]
    assert second.files.nodes.stat().st_mtime_ns == written_at


@pytest.mark.parametrize("damage", ["{half", "[]", '{"nodes": 5}', ""])
def test_a_process_with_an_older_catalogue_replaces_files_that_no_engine_can_read(
    tmp_path: Path, damage: str
) -> None:
    process = Process(tmp_path)
    process.serve(NEW)
    process.files.nodes.write_text(damage)
    process.serve(OLD, is_latest=False)
    assert process.content() == OLD[1:]


def test_valid_files_of_another_server_are_replaced(tmp_path: Path) -> None:
    process = Process(tmp_path)
    process.serve(NEW)
    Process(tmp_path).serve(OLD)
    process.serve(NEW)
    assert process.content() == NEW[1:]


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    Process(tmp_path / "file" / "below").serve(OLD)
