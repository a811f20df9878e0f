"""The files in ComfyUI's folder `models`, whatever else is there: loops of links, unreadable folders, odd names."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

FOLDERS: dict[str, tuple[str, ...]] = {
    "checkpoints": ("checkpoints",),
    "diffusion_models": ("diffusion_models", "unet"),
    "loras": ("loras",),
    "text_encoders": ("text_encoders", "clip"),
    "vae": ("vae",),
    "upscale_models": ("upscale_models",),
    "background_removal": ("background_removal",),
}
"""ComfyUI's name of a kind of files -> the folders that have them"""
MAX_FILES = 100_000
_MAX_DEPTH = 20
_SUFFIXES = (".safetensors", ".sft", ".ckpt", ".pt", ".pth", ".bin", ".gguf")


@dataclass(frozen=True)
class FoundFile:
    """`name`: as ComfyUI lists it, relative to its folder and with slashes. `size`: bytes."""

    folder: str
    name: str
    path: Path
    size: int

    @property
    def is_safetensors(self) -> bool:
        return self.name.lower().endswith((".safetensors", ".sft"))


@dataclass
class Scan:
    """`unreadable`: what could not be looked at, and why."""

    files: list[FoundFile] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)


def scan_models(root: Path, more: Mapping[str, Sequence[Path]] | None = None) -> Scan:
    """Every file of weights below the folders of `root`, in the order of their names. Links are followed, loops are not.
    `more`: folder -> further places, whose files are used if no place before has one of this name.
    Names that are no UTF-8, or have control characters, are left out and listed."""
    scan = Scan()
    for folder, names in FOLDERS.items():
        found: dict[str, FoundFile] = {}
        seen: set[tuple[int, int]] = set()  # a further place may lie in another one
        for start in (*(root / name for name in names), *(more or {}).get(folder, ())):
            if start.is_dir():
                for file in _files(folder, start, scan, seen):
                    found.setdefault(file.name, file)
        scan.files += list(found.values())[: MAX_FILES - len(scan.files)]
    scan.files.sort(key=lambda file: (file.folder, file.name))
    return scan


def _files(folder: str, start: Path, scan: Scan, seen: set[tuple[int, int]]) -> Iterator[FoundFile]:
    """`seen`: folders that were read already, by device and inode."""
    waiting = [(start, "", 0)]
    while waiting:
        path, prefix, depth = waiting.pop()
        try:
            found = os.stat(path)
            if (found.st_dev, found.st_ino) in seen or depth > _MAX_DEPTH:
                continue
            seen.add((found.st_dev, found.st_ino))
            entries = sorted(os.scandir(path), key=lambda entry: entry.name)
        except OSError as error:
            scan.unreadable.append(f"{_printable(str(path))}: {error.strerror}")
            continue
        for entry in entries:
            name = prefix + entry.name
            try:
                if entry.is_dir():
                    waiting.append((Path(entry.path), f"{name}/", depth + 1))
                    continue
                if not entry.is_file() or not name.lower().endswith(_SUFFIXES):
                    continue
                size = entry.stat().st_size
            except OSError as error:
                scan.unreadable.append(f"{_printable(entry.path)}: {error.strerror}")
                continue
            if not name.isprintable() or "\\" in name:
                scan.unreadable.append(
                    f"{_printable(entry.path)}: its name has characters that cannot be used"
                )
            elif len(scan.files) < MAX_FILES:
                yield FoundFile(folder, name, Path(entry.path), size)


def _printable(text: str) -> str:
    return "".join(char if char.isprintable() else "?" for char in text)
