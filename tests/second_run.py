"""`python -m tests.second_run STATUS`: after a run of pytest that ended with STATUS, runs the tests that failed again, one
after the other. A test that fails twice, more than a few that fail, and whatever else ends a run, fails."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.conftest import ROOT

MAX_FAILED = 3
_TESTS_FAILED = 1
"""pytest's exit status"""


def failed_tests(cache: Path) -> list[str]:
    """Those of the last run, as pytest has noted them in its `cache` folder."""
    return sorted(json.loads((cache / "v" / "cache" / "lastfailed").read_text("utf-8")))


def run_again(status: int, cache: Path, command: list[str]) -> int:
    """The exit status. `command`: what runs tests, without their names."""
    if status != _TESTS_FAILED:
        return status
    failed = failed_tests(cache)
    if not 0 < len(failed) <= MAX_FAILED:
        print(f"{len(failed)} tests failed: too many for the machine to be the reason.", file=sys.stderr)
        return status
    print(f"Run again, alone: {', '.join(failed)}", file=sys.stderr, flush=True)
    return subprocess.run([*command, *failed], check=False).returncode


if __name__ == "__main__":
    sys.exit(run_again(int(sys.argv[1]), ROOT / ".pytest_cache", [sys.executable, "-m", "pytest"]))
