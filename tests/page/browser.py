"""A Chromium for the page's tests, and what a person would do with it."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import Any

WIDTHS = {"phone": 390, "wide": 1440}
HEIGHTS = {"phone": 844, "wide": 900}

AXE = "axe-core@4.14.1"
AXE_SHA256 = "e6b0ce02b84d892e2e33e403485e7f3d6c29e2be6df65daf44d89ba564139745"
_CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "easel-tests"
_CHROMIUM_NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")


def find_chromium() -> str | None:
    """The path of a Chromium: EASEL_TEST_CHROMIUM, or one of the usual names."""
    named = os.environ.get("EASEL_TEST_CHROMIUM")
    return named or next((path for name in _CHROMIUM_NAMES if (path := shutil.which(name))), None)


def axe_source() -> str | None:
    """The script of axe-core, fetched once with npm; None if that is not possible. Raises ValueError if it is another
    file than the one that was pinned."""
    tarball = _CACHE / f"{AXE.replace('@', '-')}.tgz"
    if not tarball.exists() and not _fetch_axe(tarball):
        return None
    packed = tarball.read_bytes()
    if hashlib.sha256(packed).hexdigest() != AXE_SHA256:
        raise ValueError(f"{tarball} is not the pinned {AXE}: delete it")
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        member = archive.extractfile("package/axe.min.js")
        assert member is not None
        return member.read().decode("utf-8")


def _fetch_axe(tarball: Path) -> bool:
    npm = shutil.which("npm")
    if npm is None:
        return False
    tarball.parent.mkdir(parents=True, exist_ok=True)
    result = subprocess.run(
        [npm, "pack", AXE, "--pack-destination", str(tarball.parent), "--silent"],
        capture_output=True,
        timeout=120,
        check=False,
    )
    return result.returncode == 0 and tarball.exists()


def violations(page: Any, source: str) -> list[str]:
    """What axe-core objects to in `page`, as texts: rule, elements, what to do. The page's policy forbids inline scripts,
    so the script is run by the debugger."""
    page.evaluate(source)
    found = page.evaluate(
        "() => axe.run(document, {resultTypes: ['violations']}).then((result) => result.violations)"
    )
    return [
        f"{one['id']}: {one['help']}: {json.dumps([node['html'][:200] for node in one['nodes'][:3]])}"
        for one in found
    ]
