"""Runs a plan: pulls each file once, some at the same time, after a look at the free space."""

from __future__ import annotations

import contextlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from errors import EaselError, ModelDiskFull
from model_files.download import download, failure
from model_files.folders import ModelFolders
from model_files.http_source import HttpOptions, check_total, size_at
from model_files.plan import FileProgress, FileState, PullPlan, check_space
from model_files.stop_signal import Cancelled, StopSignal

AT_ONCE = 3
"""Files that are pulled at the same time"""


@dataclass
class Pull:
    """One run over the files of a plan. `progress` may be read by other threads while `run` runs."""

    plan: PullPlan
    folders: ModelFolders
    options: HttpOptions
    stop: StopSignal = field(default_factory=StopSignal)
    at_once: int = AT_ONCE
    progress: list[FileProgress] = field(init=False)
    error: EaselError | None = field(init=False, default=None)
    """The first that ended the pull"""

    def __post_init__(self) -> None:
        self.progress = [FileProgress(file.name, file.folder, file.size) for file in self.plan.files]

    def run(self) -> None:
        """Pull all files. One that fails does not end the others, unless the disk is full. Raises the first error, and
        Cancelled after `stop`."""
        self._learn_sizes()
        check_space(
            (target, entry.size) for target, entry in zip(self.plan.targets, self.progress, strict=True)
        )
        with ThreadPoolExecutor(self.at_once) as pool:
            try:
                list(pool.map(self._pull_one, range(len(self.plan.files))))
            except BaseException:  # such as Ctrl-C: the threads must not pull on
                self.stop.set()
                raise
        if self.error is not None:
            raise self.error
        if self.stop.is_set():
            raise Cancelled

    def _learn_sizes(self) -> None:
        """Ask the servers for the sizes that the catalogue does not know."""

        def ask(index: int) -> None:
            file, entry = self.plan.files[index], self.progress[index]
            if file.url is not None and not self.stop.is_set():
                with contextlib.suppress(EaselError, Cancelled):  # its download reports it
                    entry.size = size_at(file.url, self.options, self.stop, gated=file.gated)

        unknown = [index for index, entry in enumerate(self.progress) if entry.size is None]
        with ThreadPoolExecutor(self.at_once) as pool:
            list(pool.map(ask, unknown))

    def _pull_one(self, index: int) -> None:
        file, target, entry = self.plan.files[index], self.plan.targets[index], self.progress[index]

        def report(state: FileState, received: int, reason: str) -> None:
            entry.state, entry.received, entry.reason = state, received, reason
            if state == "done":
                entry.size = received

        def has_arrived() -> bool:
            return self.folders.find(file) is not None

        try:
            check_total(entry.size, file.size, file.name)
            if self.stop.is_set():
                raise Cancelled
            download(file, target, has_arrived, self.options, report, self.stop)
        except Cancelled:
            report("cancelled", entry.received, "")
        except Exception as error:
            found = failure(error)
            entry.code = found.code
            report("failed", entry.received, found.message)
            self.error = self.error or found
            if isinstance(found, ModelDiskFull):
                self.stop.set()
