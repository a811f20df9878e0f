"""python -m model_files FOLDER PID: run the pull in FOLDER, as long as the server PID runs."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path

from errors import DownloadFailed, EaselError
from model_files.plan import FileProgress
from model_files.pull_store import PullFolder
from model_files.run_pull import http_options, run_pull
from model_files.stop_signal import Cancelled


def main(folder: PullFolder, server: int) -> None:
    """Run the pull. What becomes of it is in its folder."""
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s %(message)s", level=logging.INFO)
    log = logging.getLogger("easel.pull")
    job = folder.job
    if job is None:
        return
    if not folder.count_start():
        with folder.lock() as is_mine:
            if is_mine:
                files = [FileProgress(file.name, file.folder, file.size) for file in job.files]
                text = "Its process ended five times without a byte. Read the server's log, and pull again."
                folder.write("failed", files, error=DownloadFailed(text))
        return
    log.info("pulling %s", ", ".join(job.models))
    try:
        run_pull(folder, http_options(os.environ), is_given_up=_server_has_ended(server))
    except EaselError as error:
        log.error("%s: %s: %s", ", ".join(job.models), error.code, error.message)
    except Cancelled:
        log.info("%s: cancelled", ", ".join(job.models))


def _server_has_ended(pid: int) -> Callable[[], bool]:
    """A function that tells whether the process `pid` has ended."""

    def check() -> bool:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            return False
        return False

    return check


if __name__ == "__main__":
    main(PullFolder(Path(sys.argv[1])), int(sys.argv[2]))
