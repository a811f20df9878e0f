"""The built-in engine deletes old files, so that it does not fill the disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from sketch.folders import MAX_BYTES, MAX_FILES, Folders


def write_file(folders: Folders, kind: str, name: str, size: int = 0) -> None:
    """Write and register a sparse file of this size."""
    path = folders.of(kind) / name
    with path.open("wb") as file:
        file.truncate(size)
    folders.register(path)


def names_in(folders: Folders, kind: str) -> list[str]:
    return sorted(path.name for path in folders.of(kind).iterdir())


@pytest.mark.parametrize("kind", ["output", "input", "temp"])
def test_only_the_latest_files_of_a_folder_are_kept(tmp_path: Path, kind: str) -> None:
    folders = Folders(tmp_path)
    for index in range(MAX_FILES + 5):
        write_file(folders, kind, f"{index:05}.png")
    assert len(names_in(folders, kind)) == MAX_FILES
    assert names_in(folders, kind)[0] == "00005.png"


def test_many_pictures_do_not_delete_uploads(tmp_path: Path) -> None:
    folders = Folders(tmp_path)
    write_file(folders, "input", "upload.png")
    for index in range(MAX_FILES + 1):
        write_file(folders, "output", f"{index:05}.png")
    assert names_in(folders, "input") == ["upload.png"]


def test_a_file_that_is_written_again_counts_once_and_as_new(tmp_path: Path) -> None:
    folders = Folders(tmp_path)
    write_file(folders, "temp", "again.png")
    for index in range(MAX_FILES - 1):
        write_file(folders, "temp", f"{index:05}.png")
        write_file(folders, "temp", "again.png")
    write_file(folders, "temp", "one more.png")
    assert len(names_in(folders, "temp")) == MAX_FILES
    assert "again.png" in names_in(folders, "temp")


def test_fewer_large_files_are_kept_but_always_the_latest(tmp_path: Path) -> None:
    folders = Folders(tmp_path)
    for name in "abc":
        write_file(folders, "temp", name, MAX_BYTES // 2)
    assert names_in(folders, "temp") == ["b", "c"]
    write_file(folders, "temp", "huge", MAX_BYTES + 1)
    assert names_in(folders, "temp") == ["huge"]
