"""The files of the page: read once, compressed once, below a version that changes with any of them."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from werkzeug.datastructures import Accept

FOLDER = Path(__file__).resolve().parent

MIMES: Mapping[str, str] = {
    ".js": "text/javascript",
    ".css": "text/css",
    ".json": "application/json",
    ".svg": "image/svg+xml",
    ".webmanifest": "application/manifest+json",
}
"""Files with other endings are not served"""

FIRST_TEXTS = ("common", "draw")
"""What is sent at once, as `first.json`; the others are loaded with their view"""


@dataclass(frozen=True)
class File:
    """One file as it is sent."""

    body: bytes
    mime: str

    @cached_property
    def digest(self) -> str:
        return hashlib.sha256(self.body).hexdigest()[:16]

    @cached_property
    def compressed(self) -> bytes:
        return gzip.compress(self.body, 9, mtime=0)

    def sent(self, encodings: Accept) -> tuple[bytes, dict[str, str]]:
        """The body for a client that accepts `encodings`, and its headers."""
        if encodings["gzip"] > 0 and len(self.compressed) < len(self.body):
            return self.compressed, {"ETag": f'"{self.digest}-gzip"', "Content-Encoding": "gzip"}
        return self.body, {"ETag": f'"{self.digest}"'}


class Files(dict[str, File]):
    """Name in the URL -> file."""

    @cached_property
    def version(self) -> str:
        """Changes whenever a file does, so that browsers may keep files for ever."""
        names = (f"{name} {self[name].digest}" for name in sorted(self))
        return hashlib.sha256("\n".join(names).encode()).hexdigest()[:12]

    @cached_property
    def languages(self) -> list[str]:
        """English first: it is also for those whose language is missing."""
        codes = {name.split("/")[1] for name in self if name.startswith("texts/")}
        return sorted(codes, key=lambda code: (code != "en", code))

    def texts(self, language: str) -> dict[str, str]:
        """Key -> text, of what is there before another view is opened."""
        texts: dict[str, str] = json.loads(self[f"texts/{language}/first.json"].body)
        return texts


def read_files(folder: Path = FOLDER) -> Files:
    """All files of the page, as they are sent; texts that are needed at first are one file."""
    static = folder / "static"
    files = Files(
        (path.relative_to(static).as_posix(), File(_sent(path), MIMES[path.suffix]))
        for path in sorted(static.rglob("*"))
        if path.is_file() and path.suffix in MIMES
    )
    for language, texts in _texts(folder / "texts"):
        for name, named in texts.items():
            body = json.dumps(named, ensure_ascii=False, separators=(",", ":")).encode()
            files[f"texts/{language}/{name}.json"] = File(body, MIMES[".json"])
    return files


def _sent(path: Path) -> bytes:
    """A file without indentation and lines that are only a comment, which are a sixth of what would be transferred. Each
    line keeps its number, so that errors name the right one."""
    if path.suffix not in (".js", ".css"):
        return path.read_bytes()
    lines, is_comment = [], False
    for line in map(str.strip, path.read_text("utf-8").split("\n")):
        begins = line.startswith("/*")
        is_whole = is_comment or begins or (path.suffix == ".js" and line.startswith("//"))
        is_comment = (is_comment or begins) and not line.endswith("*/")
        lines.append("" if is_whole else line)
    return "\n".join(lines).encode()


def _texts(folder: Path) -> Iterator[tuple[str, dict[str, dict[str, str]]]]:
    """(language, file -> its texts): a file for each view, in a folder for each language."""
    for language in sorted(path for path in folder.iterdir() if path.is_dir()):
        files: dict[str, dict[str, str]] = {"first": {}}
        for path in sorted(language.glob("*.json")):
            name = "first" if path.stem in FIRST_TEXTS else path.stem
            files.setdefault(name, {}).update(json.loads(path.read_text("utf-8")))
        yield language.name, files
