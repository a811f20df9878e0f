"""Upgrades over state directories that older versions have made, and the way back.

Only with EASEL_TEST_INSTALL=1 (`make test-install`), in a git checkout with its history."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.deploy import state_content
from tests.server.running import running, started

if not os.environ.get("EASEL_TEST_INSTALL"):
    pytest.skip("no older version is upgraded: set EASEL_TEST_INSTALL=1", allow_module_level=True)

OLDER = {
    "76e7810": "keys and jobs, no index of images",
    "863290e": "the first version of the index",
    "969aef6": "the second version of the index",
}


@pytest.fixture(params=OLDER)
def older(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A checkout of an older version."""
    tree = tmp_path / "older"
    command = ["git", "worktree", "add", "--quiet", "--detach", str(tree), request.param]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"{request.param} is NOT tested: {done.stderr.strip()}")
    yield tree
    subprocess.run(["git", "worktree", "remove", "--force", str(tree)], cwd=ROOT, check=True)


def test_what_an_older_version_kept_is_there_after_the_upgrade_and_a_downgrade_damages_nothing(
    older: Path, tmp_path: Path, catalogue_files: dict[str, list[str]]
) -> None:
    state = tmp_path / "state"
    content = state_content.write(older, state, catalogue_files)
    with running(state) as server:
        state_content.check(content, server.url)
    with running(state, older) as server:
        # Of two versions on one directory the second is refused, whichever it is.
        with started(state) as second:
            second.wait_for(f"Another Easel already uses the state directory .* at {server.url}")
            assert second.process.wait(60) == 1
        # One that does not know the index says so, for the gallery alone.
        state_content.check_pictures(content, server.url)
    with running(state) as server:
        state_content.check(content, server.url)
