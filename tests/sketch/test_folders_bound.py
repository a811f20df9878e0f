"""The embedded engine does not fill the disk it was never asked to use."""

from __future__ import annotations

from pathlib import Path

import pytest

from sketch.folders import MOST_BYTES, MOST_FILES, Folders


def kept(folders: Folders, kind: str, name: str, size: int = 0) -> None:
    """A file of this size, written as an upload or a picture is; it takes no room on this disk."""
    path = folders.of(kind) / name
    with path.open("wb") as file:
        file.truncate(size)
    folders.remember(path)


def left(folders: Folders, kind: str) -> list[str]:
    return sorted(path.name for path in folders.of(kind).iterdir())


@pytest.mark.parametrize("kind", ["output", "input", "temp"])
def test_only_the_latest_files_of_a_folder_stay(tmp_path: Path, kind: str) -> None:
    folders = Folders(tmp_path)
    for index in range(MOST_FILES + 5):
        kept(folders, kind, f"{index:05}.png")
    assert len(left(folders, kind)) == MOST_FILES
    assert left(folders, kind)[0] == "00005.png"


def test_many_pictures_do_not_push_uploads_out(tmp_path: Path) -> None:
    folders = Folders(tmp_path)
    kept(folders, "input", "upload.png")
    for index in range(MOST_FILES + 1):
        kept(folders, "output", f"{index:05}.png")
    assert left(folders, "input") == ["upload.png"]


def test_a_file_that_is_written_again_counts_once_and_as_a_new_one(tmp_path: Path) -> None:
    folders = Folders(tmp_path)
    kept(folders, "temp", "again.png")
    for index in range(MOST_FILES - 1):
        kept(folders, "temp", f"{index:05}.png")
        kept(folders, "temp", "again.png")
    kept(folders, "temp", "one more.png")
    assert len(left(folders, "temp")) == MOST_FILES
    assert "again.png" in left(folders, "temp")


def test_of_big_files_fewer_stay_but_the_latest_always(tmp_path: Path) -> None:
    folders = Folders(tmp_path)
    for name in "abc":
        kept(folders, "temp", name, MOST_BYTES // 2)
    assert left(folders, "temp") == ["b", "c"]
    kept(folders, "temp", "huge", MOST_BYTES + 1)
    assert left(folders, "temp") == ["huge"]
