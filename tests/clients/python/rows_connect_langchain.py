"""The lines of `easel connect langchain`, run as a program."""

from __future__ import annotations

import subprocess
import sys

from row_support import ANSWER, TIMEOUT_S, fetch_picture, printed_lines


def test_the_printed_lines_chat_and_draw() -> None:
    done = subprocess.run(
        [sys.executable, "-c", printed_lines("langchain")], capture_output=True, text=True, timeout=TIMEOUT_S
    )
    assert done.returncode == 0, done.stderr
    answer, url = done.stdout.splitlines()
    assert answer == ANSWER
    assert min(fetch_picture(url).size) > 0
