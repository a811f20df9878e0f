"""The line of `easel connect aider`, run in a shell, with one question instead of a session."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from row_support import ANSWER, TIMEOUT_S, printed_lines

ONE_QUESTION = (
    "--no-git --yes-always --no-check-update --analytics-disable --no-show-model-warnings --no-pretty "
    "--map-tokens 0 --edit-format ask --message Hello"
)


def test_the_printed_line_chats(tmp_path: Path) -> None:
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["sh", "-c", f"{printed_lines('aider').strip()} {ONE_QUESTION}"],
        cwd=tmp_path,
        env={**os.environ, "HOME": str(tmp_path), "PATH": programs},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    assert ANSWER in done.stdout, done.stdout + done.stderr
