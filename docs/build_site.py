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
BESIDE_DOCS = (
    "CHANGELOG.md",
    "SECURITY.md",
    "arbiter/README.md",
    "observability/alerts.yaml",
    "observability/dashboard.json",
)
"""Files outside docs/ that are pages or downloads of the site"""
_NOT_IN_SITE = shutil.ignore_patterns("*.py", "site.yaml", "__pycache__")
_LINK_TARGET = re.compile(r"(?<=\]\()[^)#:\s]+(?=[)#])")


def build(site: Path) -> str:
    """Write the site into `site`, replacing it; the warnings. Raises RuntimeError if there is no site at all."""
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        shutil.copytree(DOCS, work / "docs", ignore=_NOT_IN_SITE)
        for name in BESIDE_DOCS:
            (work / "docs" / name).parent.mkdir(exist_ok=True)
            shutil.copy(ROOT / name, work / "docs" / name)
        for page in (work / "docs").rglob("*.md"):
            name = page.relative_to(work / "docs")
            page.write_text(_with_moved_links(page.read_text("utf-8"), name), "utf-8")
        (work / "mkdocs.yml").write_text(yaml.safe_dump(_configuration()), "utf-8")
        command = [sys.executable, "-m", "zensical", "build", "--strict"]
        done = subprocess.run(command, cwd=work, capture_output=True, text=True, check=False)  # noqa: S603  our own
        if not (work / "site/index.html").exists():
            raise RuntimeError(done.stdout + done.stderr)
        shutil.rmtree(site, ignore_errors=True)
        shutil.copytree(work / "site", site)
    return click.unstyle(done.stdout + done.stderr) if done.returncode else ""


def _configuration() -> dict[str, Any]:
    """site.yaml with all decisions in its navigation."""
    configuration: dict[str, Any] = yaml.safe_load((DOCS / "site.yaml").read_text("utf-8"))
    (design,) = (entry["Design"] for entry in configuration["nav"] if "Design" in entry)
    design[-1]["Decisions"] = [f"decisions/{path.name}" for path in sorted((DOCS / "decisions").glob("*.md"))]
    return configuration


def _with_moved_links(text: str, name: Path) -> str:
    source = ROOT / name if str(name) in BESIDE_DOCS else DOCS / name

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
    warnings = build(Path(sys.argv[1]).absolute())
    if warnings:
        sys.exit(warnings)


if __name__ == "__main__":
    main()
