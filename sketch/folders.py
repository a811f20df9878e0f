"""The three folders of a ComfyUI (output, input, temp) and who may name which file in them."""

from __future__ import annotations

import os
import re
import threading
import time
from pathlib import Path

KINDS = ("output", "input", "temp")
MOST_FILES = 2000
MOST_BYTES = 4 * 1024**3


class Folders:
    """Lays out `root` and finds, names and numbers the files in it."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        self._lock = threading.Lock()
        self._kept: dict[str, dict[Path, int]] = {kind: {} for kind in KINDS}
        for kind in KINDS:
            self.of(kind).mkdir(parents=True, exist_ok=True)

    def of(self, kind: str) -> Path:
        """The folder of a kind; KeyError for one that does not exist."""
        if kind not in KINDS:
            raise KeyError(kind)
        return self.root / kind

    def remember(self, file: Path) -> None:
        """Call it with each file that was written. Unlike ComfyUI, which keeps all, the latest few thousand of each
        folder stay, and of big ones fewer: this engine runs unasked on people's disks."""
        with self._lock:
            kept = self._kept[file.relative_to(self.root).parts[0]]
            kept.pop(file, None)
            kept[file] = file.stat().st_size
            while len(kept) > MOST_FILES or (len(kept) > 1 and sum(kept.values()) > MOST_BYTES):
                oldest = next(iter(kept))
                del kept[oldest]
                oldest.unlink(missing_ok=True)

    def uploads(self) -> list[str]:
        """Names of the files at the top of the input folder, sorted."""
        return sorted(entry.name for entry in os.scandir(self.of("input")) if entry.is_file())

    def uploaded(self, name: str) -> Path | None:
        """The file that an image input names ("a.png", "job/a.png", "a.png [output]"), or None.

        Stricter than ComfyUI 0.3.64, which also reads images outside of its folders.
        """
        plain, kind = annotated(name)
        place = inside(self.of(kind or "input"), plain)
        return place if place is not None and place.exists() else None

    def next_picture(self, prefix: str, kind: str, width: int, height: int) -> tuple[Path, str, str, int]:
        """Where a picture with this prefix goes: (directory, base name, subfolder, first free number).

        Raises Exception, as ComfyUI does, when the prefix leads out of the folder.
        """
        whole = os.path.normpath(_filled_in(prefix, width, height))
        subfolder, name = os.path.split(whole)
        place = inside(self.of(kind), subfolder)
        if place is None:
            raise Exception(f"the prefix {prefix!r} leads outside the output folder {self.of(kind)}")
        place.mkdir(parents=True, exist_ok=True)
        return place, name, subfolder, 1 + max(_numbers(place, name), default=0)


def annotated(name: str) -> tuple[str, str | None]:
    """ "a.png [input]" -> ("a.png", "input"); the kind is None where the name has no such ending."""
    for kind in KINDS:
        if name.endswith(f" [{kind}]"):
            return name[: -len(kind) - 3], kind
    return name, None


def inside(folder: Path, name: str) -> Path | None:
    """The place that `name` means within `folder`; None when it is outside or cannot be a name."""
    if "\0" in name:
        return None
    place = Path(os.path.abspath(folder / name))
    return place if place.is_relative_to(folder) else None


def _filled_in(prefix: str, width: int, height: int) -> str:
    now = time.localtime()
    fields = {"width": width, "height": height, "year": now.tm_year, "month": f"{now.tm_mon:02}"}
    fields |= {"day": f"{now.tm_mday:02}", "hour": f"{now.tm_hour:02}"}
    fields |= {"minute": f"{now.tm_min:02}", "second": f"{now.tm_sec:02}"}
    for key, value in fields.items():
        prefix = prefix.replace(f"%{key}%", str(value))
    return prefix


def _numbers(place: Path, name: str) -> list[int]:
    numbered = re.compile(re.escape(name) + r"_(\d+)_?(?:\.|$)", re.IGNORECASE)
    return [int(match[1]) for entry in os.listdir(place) if (match := numbered.match(entry))]
