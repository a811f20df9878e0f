"""The embedded engine does not fill the disk it was never asked to use."""

from __future__ import annotations

from pathlib import Path

from engine.sketch.folders import MOST_PICTURES, Folders


def test_only_the_latest_pictures_stay(tmp_path: Path) -> None:
    folders = Folders(tmp_path)
    for index in range(MOST_PICTURES + 5):
        path = folders.of("output") / f"{index:05}.png"
        path.touch()
        folders.remember(path)
    left = sorted(path.name for path in folders.of("output").iterdir())
    assert (len(left), left[0]) == (MOST_PICTURES, "00005.png")
