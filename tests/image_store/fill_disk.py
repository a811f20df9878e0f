"""Run by test_store_disk.py on a separate disk of 2 MB: fills the disk and prints the results as JSON."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

from errors import EaselError, StoreFull
from image_store import ImageStore

PICTURE = bytes(range(256)) * 1000


class Clock:
    now = 1_700_000_000.0

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


def fill(store: ImageStore) -> tuple[list[str], EaselError | None]:
    kept: list[str] = []
    try:
        while len(kept) < 100:
            kept.append(store.keep(PICTURE, "png").name)
    except StoreFull as error:
        return kept, error
    return kept, None


def are_complete(store: ImageStore, names: list[str]) -> bool:
    return all((store.directory / name).read_bytes() == PICTURE for name in names)


def main(disk: Path) -> dict[str, object]:
    clock = Clock()
    store = ImageStore(disk / "images", max_count=10_000, max_bytes=1 << 40, clock=clock)
    results: dict[str, object] = {}

    kept, error = fill(store)
    results["kept"] = len(kept)
    results["full"] = error.message if error else None
    results["errno"] = error.__cause__.errno if error and isinstance(error.__cause__, OSError) else None
    results["complete"] = are_complete(store, kept)
    results["leftovers"] = [path.name for path in store.directory.glob(".*.part")]
    results["names"] = len(list(store.directory.glob("*.png"))) == len(kept)

    clock.now += 7200.0
    store.open(kept[0])
    late = store.keep(PICTURE, "png").name
    results["evicted"] = [kept.index(name) for name in kept if not (store.directory / name).exists()]
    results["late"] = are_complete(store, [late])

    with (disk / "others").open("wb") as file:  # now not even the tally can be written
        file.write(b"x" * os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize)
    again, error = fill(store)
    results["again"] = (are_complete(store, again), error is not None)

    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    results["readable"] = store.open(late).length == len(PICTURE)
    try:
        store.keep(b"x", "png")
    except EaselError as refused:
        results["read_only"] = [type(refused).__name__, refused.__cause__.errno == errno.EROFS]  # type: ignore[union-attr]
    return results


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]))))
