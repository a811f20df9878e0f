"""Build the documentation as a site: `python docs/build_site.py FOLDER`. Ends with status 1 if there was a warning.

Pages link to files of the project that are not in docs/. In the site both lie in one folder, so links are moved."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import click
import yaml

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
_NOT_IN_SITE = shutil.ignore_patterns("*.py", "site.yaml", "__pycache__")
_LINK_TARGET = re.compile(r"(?<=\]\()[^)#:\s]+(?=[)#])")


def build(site: Path) -> str:
    """Write the site into `site`, replacing it; the warnings. Raises RuntimeError if no site was built, and FileExistsError
    if `site` has something else, which stays."""
    if site.exists() and not is_site(site) and (not site.is_dir() or any(site.iterdir())):
        raise FileExistsError(
            f"{site} is no site that this program built: name an empty folder, or a new one."
        )
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        shutil.copytree(DOCS, work / "docs", ignore=_NOT_IN_SITE)
        _copy_linked_files(work / "docs")
        (work / "mkdocs.yml").write_text(yaml.safe_dump(_configuration()), "utf-8")
        command = [sys.executable, "-m", "zensical", "build", "--strict"]
        done = subprocess.run(command, cwd=work, capture_output=True, text=True, check=False)  # noqa: S603  our own
        if not (work / "site/index.html").exists():
            raise RuntimeError(done.stdout + done.stderr)
        shutil.rmtree(site, ignore_errors=True)
        shutil.copytree(work / "site", site)
    return click.unstyle(done.stdout + done.stderr) if done.returncode else ""


def is_site(folder: Path) -> bool:
    """Whether `folder` is what `build` has written."""
    page = folder / "index.html"
    return page.is_file() and "zensical" in page.read_text("utf-8", "replace")


def _configuration() -> dict[str, Any]:
    """site.yaml with all decisions in its navigation."""
    configuration: dict[str, Any] = yaml.safe_load((DOCS / "site.yaml").read_text("utf-8"))
    (design,) = (entry["Design"] for entry in configuration["nav"] if "Design" in entry)
    design[-1]["Decisions"] = [f"decisions/{path.name}" for path in sorted((DOCS / "decisions").glob("*.md"))]
    return configuration


def _copy_linked_files(folder: Path) -> None:
    """Copy the files outside docs/ that pages in `folder` link to, and point the links of all pages at where files lie in
    the site."""
    pages = [(DOCS / path.relative_to(folder), path) for path in folder.rglob("*.md")]
    while pages:
        source, page = pages.pop()
        text = page.read_text("utf-8")
        for link in set(_LINK_TARGET.findall(text)):
            target = Path(os.path.normpath(source.parent / link))
            place = folder / target.relative_to(ROOT) if target.is_relative_to(ROOT) else None
            if place is None or target.is_relative_to(DOCS) or place.exists() or not target.is_file():
                continue
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(target, place)
            if place.suffix == ".md":
                pages.append((target, place))
        page.write_text(_with_moved_links(text, source, page.relative_to(folder)), "utf-8")


def _with_moved_links(text: str, source: Path, name: Path) -> str:
    def moved(match: re.Match[str]) -> str:
        target = Path(os.path.normpath(source.parent / match[0]))
        base = DOCS if target.is_relative_to(DOCS) else ROOT
        return (
            os.path.relpath(target.relative_to(base), name.parent)
            if target.is_relative_to(base)
            else match[0]
        )

    return _LINK_TARGET.sub(moved, text)


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit("Usage: python docs/build_site.py FOLDER")
    try:
        warnings = build(Path(sys.argv[1]).absolute())
    except FileExistsError as error:
        sys.exit(str(error))
    if warnings:
        sys.exit(warnings)


if __name__ == "__main__":
    main()
