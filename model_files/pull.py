"""Pulls the files of several models: each file once, some at the same time, after a look at the free space."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from errors import EaselError, ModelDiskFull
from model_files.download import Cancelled, FileState, download, failure
from model_files.folders import ModelFolders
from model_files.http_source import HttpOptions, check_total, size_at
from model_files.part_file import part_path
from model_files.weights import ModelWithFiles, Weights, licence_check

AT_ONCE = 3
"""Files that are pulled at the same time"""
_SPARE_BYTES = 100_000_000
"""What the disk keeps free"""


@dataclass
class FileProgress:
    """How far one file of a pull is. Sizes in bytes."""

    name: str
    folder: str
    size: int | None
    state: FileState = "waiting"
    received: int = 0
    reason: str = ""
    """Why it waits or failed; empty if there is nothing to say"""
    code: str | None = None
    """Of the error, if it failed"""


@dataclass(frozen=True)
class PullPlan:
    """The files that are missing, each with its place."""

    models: tuple[str, ...]
    files: tuple[Weights, ...]
    targets: tuple[Path, ...]
    present: int = 0
    """Files of the models that are there already"""

    @property
    def known_bytes(self) -> int:
        """Together, as far as the catalogue knows"""
        return sum(file.size or 0 for file in self.files)


def plan_pull(models: Sequence[ModelWithFiles], folders: ModelFolders) -> PullPlan:
    """What is missing of `models`. Raises what `licence_check` raises, ModelPathUnsafe, and ModelDiskFull if the sizes that
    the catalogue knows do not fit on the disk."""
    for model in models:
        licence_check(model)
    unique = {(file.folder, file.name): file for model in models for file in model.files.values()}
    missing = {
        folders.target(file): file for file in unique.values() if folders.find(file) is None
    }  # two spellings of a folder may mean one place
    plan = PullPlan(
        tuple(dict.fromkeys(model.id for model in models)),
        tuple(missing.values()),
        tuple(missing),
        len(unique) - len(missing),
    )
    check_space((target, file.size) for target, file in missing.items())
    return plan


def check_space(sizes: Iterable[tuple[Path, int | None]]) -> None:
    """Raises ModelDiskFull if what is missing of all files together does not fit on their disks."""
    needed: dict[int, int] = {}
    places: dict[int, Path] = {}
    for target, size in sizes:
        folder = next(path for path in target.parents if path.is_dir())
        disk = os.stat(folder).st_dev
        needed[disk] = needed.get(disk, 0) + max(0, (size or 0) - _size_of(part_path(target)))
        places[disk] = folder
    for disk, folder in places.items():
        space = os.statvfs(folder)
        free = space.f_bavail * space.f_frsize
        if needed[disk] and needed[disk] + _SPARE_BYTES > free:
            raise ModelDiskFull(
                f"The missing files need {needed[disk] / 1e9:.2f} GB, and the disk of {folder.name} has "
                f"{free / 1e9:.2f} GB free. Nothing was pulled.",
                needed=needed[disk],
                free=free,
            )


def _size_of(path: Path) -> int:
    try:
        return path.stat().st_blocks * 512
    except OSError:
        return 0


@dataclass
class Pull:
    """One run over the files of a plan. `progress` may be read by other threads while `run` runs."""

    plan: PullPlan
    folders: ModelFolders
    options: HttpOptions
    stop: threading.Event = field(default_factory=threading.Event)
    on_change: Callable[[], None] = lambda: None
    """Called often, from several threads"""
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
                with contextlib.suppress(EaselError):  # its download reports it
                    entry.size = size_at(file.url, self.options, gated=file.gated)

        unknown = [index for index, entry in enumerate(self.progress) if entry.size is None]
        with ThreadPoolExecutor(self.at_once) as pool:
            list(pool.map(ask, unknown))

    def _pull_one(self, index: int) -> None:
        file, target, entry = self.plan.files[index], self.plan.targets[index], self.progress[index]

        def report(state: FileState, received: int, reason: str) -> None:
            entry.state, entry.received, entry.reason = state, received, reason
            if state == "done":
                entry.size = received
            self.on_change()

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


class Speed:
    """Bytes a second over the last ten seconds."""

    def __init__(self) -> None:
        self._seen: list[tuple[float, int]] = []

    def update(self, received: int, now: float | None = None) -> float:
        """The speed, now that `received` bytes are there."""
        now = time.monotonic() if now is None else now
        self._seen = [(at, size) for at, size in self._seen if now - at <= 10] + [(now, received)]
        (begun, size_then), passed = self._seen[0], now - self._seen[0][0]
        return max(0.0, (received - size_then) / passed) if passed > 0 and begun else 0.0
