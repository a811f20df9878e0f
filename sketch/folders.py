"""The folders of a ComfyUI (output, input, temp, user) and the rules for file names in them."""

from __future__ import annotations

import os
import re
import threading
import time
from pathlib import Path

KINDS = ("output", "input", "temp")
USER = "user"
"""Its folder is not one that images are loaded from or saved to"""
MAX_FILES = 2000
MAX_BYTES = 4 * 1024**3


class OutsideFolder(Exception):
    """A name leads outside its folder."""


class Folders:
    """Creates the folders in `root`, and resolves, names and numbers the files in them."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        self._lock = threading.Lock()
        self._sizes: dict[str, dict[Path, int]] = {kind: {} for kind in (*KINDS, USER)}
        self.restore()

    def restore(self) -> None:
        """Create the folders again if somebody has deleted them. Raises OSError."""
        for kind in KINDS:
            self.of(kind).mkdir(parents=True, exist_ok=True)

    def of(self, kind: str) -> Path:
        """The folder of a kind; KeyError for an unknown kind."""
        if kind not in KINDS:
            raise KeyError(kind)
        return self.root / kind

    @property
    def user_files(self) -> Path:
        """The folder of the only user, which need not exist."""
        return self.root / USER / "default"

    def register(self, file: Path) -> None:
        """Call this for each file that was written. Deletes the oldest files of its folder beyond MAX_FILES or MAX_BYTES.

        ComfyUI keeps all files, but this engine runs on people's disks without being asked for.
        """
        with self._lock:
            sizes = self._sizes[file.relative_to(self.root).parts[0]]
            sizes.pop(file, None)
            sizes[file] = file.stat().st_size
            while len(sizes) > MAX_FILES or (len(sizes) > 1 and sum(sizes.values()) > MAX_BYTES):
                oldest = next(iter(sizes))
                del sizes[oldest]
                oldest.unlink(missing_ok=True)

    def input_names(self) -> list[str]:
        """Names of the files directly in the input folder, sorted."""
        self.restore()
        return sorted(entry.name for entry in os.scandir(self.of("input")) if entry.is_file())

    def image_path(self, name: str) -> Path | None:
        """The file that an image input names ("a.png", "job/a.png", "a.png [output]"), or None.

        Stricter than ComfyUI 0.3.64, which also reads images outside its folders.
        """
        plain_name, kind = split_annotation(name)
        path = resolve_inside(self.of(kind or "input"), plain_name)
        return path if path is not None and path.exists() else None

    def next_file(self, prefix: str, kind: str, width: int, height: int) -> tuple[Path, str, str, int]:
        """Where to save a picture with this prefix: (directory, base name, subfolder, first free number).

        Raises OutsideFolder if the prefix leads outside the folder.
        """
        relative = os.path.normpath(_fill_prefix(prefix, width, height))
        subfolder, name = os.path.split(relative)
        directory = resolve_inside(self.of(kind), subfolder)
        if directory is None:
            raise OutsideFolder(f"the prefix {prefix!r} leads outside the output folder {self.of(kind)}")
        directory.mkdir(parents=True, exist_ok=True)
        return directory, name, subfolder, 1 + max(_used_numbers(directory, name), default=0)


def split_annotation(name: str) -> tuple[str, str | None]:
    """ "a.png [input]" -> ("a.png", "input"); the kind is None if the name has no such suffix."""
    for kind in KINDS:
        if name.endswith(f" [{kind}]"):
            return name[: -len(kind) - 3], kind
    return name, None


def resolve_inside(folder: Path, name: str) -> Path | None:
    """The path of `name` in `folder`; None if it is outside or cannot be a file name."""
    if "\0" in name:
        return None
    path = Path(os.path.abspath(folder / name))
    return path if path.is_relative_to(folder) else None


def _fill_prefix(prefix: str, width: int, height: int) -> str:
    now = time.localtime()
    fields = {"width": width, "height": height, "year": now.tm_year, "month": f"{now.tm_mon:02}"}
    fields |= {"day": f"{now.tm_mday:02}", "hour": f"{now.tm_hour:02}"}
    fields |= {"minute": f"{now.tm_min:02}", "second": f"{now.tm_sec:02}"}
    for key, value in fields.items():
        prefix = prefix.replace(f"%{key}%", str(value))
    return prefix


def _used_numbers(directory: Path, name: str) -> list[int]:
    numbered = re.compile(re.escape(name) + r"_(\d+)_?(?:\.|$)", re.IGNORECASE)
    return [int(match[1]) for entry in os.listdir(directory) if (match := numbered.match(entry))]
