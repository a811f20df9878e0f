"""The files of another commit of this repository, in a temporary folder outside of it."""

from __future__ import annotations

import contextlib
import subprocess
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bench.server import ROOT
from scratch_folder import ScratchFolder


@dataclass(frozen=True)
class Checkout:
    """`commit`: its short hash"""

    root: Path
    commit: str


@contextlib.contextmanager
def checked_out(reference: str) -> Iterator[Checkout]:
    """The files of the commit, branch or tag `reference`, removed at the end. The repository stays as it is, even if this
    process is killed: it gets no worktree. Raises SystemExit if there is no such commit."""
    found = _git("rev-parse", "--verify", "--quiet", "--short", f"{reference}^{{commit}}")
    if found.returncode:
        raise SystemExit(f"There is no commit {reference!r} in {ROOT}; `git fetch` may bring it.")
    commit = found.stdout.strip()
    with ScratchFolder("easel-bench-checkout-") as folder:
        archive, root = folder / "files.zip", folder / "easel"
        written = _git("archive", "--format=zip", f"--output={archive}", commit)
        if written.returncode:
            raise SystemExit(f"git archive {commit} failed: {written.stderr.strip()}")
        with zipfile.ZipFile(archive) as files:
            files.extractall(root)
        yield Checkout(root, commit)


def _git(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
