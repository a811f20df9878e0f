"""`python -m demo.tied COMMAND…`: runs a command until standard input ends, so that it does not outlive whoever holds the
other end, even if that process is killed."""

from __future__ import annotations

import os
import subprocess
import sys
import threading


def main() -> int:
    """The exit status of the command."""
    process = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)  # noqa: S603  the demo's own server
    threading.Thread(target=_terminate_at_the_end_of_stdin, args=(process,), daemon=True).start()
    return process.wait()


def _terminate_at_the_end_of_stdin(process: subprocess.Popen[bytes]) -> None:
    while os.read(0, 4096):
        pass
    process.terminate()


if __name__ == "__main__":
    sys.exit(main())
