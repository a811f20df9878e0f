"""The pulls of this installation: one folder each in the state directory, which survives every process. A pull of the
server runs in a process of its own (`python -m model_files FOLDER`), one of the command in that command's."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from atomic_file import write_atomic
from errors import EaselError, PullNotFound
from model_files.folders import ModelFolders
from model_files.plan import FileProgress, PullPlan
from state_files import read_state

PullState = Literal["waiting", "running", "interrupted", "done", "failed", "cancelled"]
_ENDED = ("done", "failed", "cancelled")
_MAX_KEPT = 50
_MAX_FRUITLESS_STARTS = 5
_MAX_RUNNING = 4
"""Pulls of the server at the same time, each of which is a process; further ones wait"""
_STARTING_S = 30.0
"""How long a process that was started may take until it says that it runs"""
_WATCH_S = 5.0
_POLL_S = 0.05
_ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class StoredFile:
    """A file of weights as a pull's folder keeps it"""

    name: str
    folder: str
    url: str | None
    size: int | None
    sha256: str | None
    gated: bool


@dataclass(frozen=True)
class Job:
    """What a pull is about, as it was asked for."""

    id: str
    models: tuple[str, ...]
    files: tuple[StoredFile, ...]
    targets: tuple[str, ...]
    models_dir: str
    extra: Mapping[str, list[str]]
    defaults: Mapping[str, str]
    created: int
    by: Literal["server", "command"]

    @classmethod
    def of(cls, plan: PullPlan, folders: ModelFolders, by: Literal["server", "command"], pull_id: str) -> Job:
        names = StoredFile.__dataclass_fields__
        files = [StoredFile(**{name: getattr(file, name) for name in names}) for file in plan.files]
        return cls(
            id=pull_id,
            models=plan.models,
            files=tuple(files),
            targets=tuple(map(str, plan.targets)),
            models_dir=str(folders.models_dir),
            extra={name: [str(path) for path in paths] for name, paths in folders.extra.items()},
            defaults={name: str(path) for name, path in folders.defaults.items()},
            created=int(time.time()),
            by=by,
        )

    @classmethod
    def parse(cls, value: Any) -> Job:
        """Raises an Exception for a value of the wrong shape."""
        files = tuple(StoredFile(**file) for file in value.pop("files"))
        models, targets = tuple(value.pop("models")), tuple(value.pop("targets"))
        return cls(files=files, models=models, targets=targets, **value)

    @property
    def plan(self) -> PullPlan:
        return PullPlan(self.models, self.files, tuple(map(Path, self.targets)))

    @property
    def folders(self) -> ModelFolders:
        extra = {name: [Path(path) for path in paths] for name, paths in self.extra.items()}
        defaults = {name: Path(path) for name, path in self.defaults.items()}
        return ModelFolders(Path(self.models_dir), extra, defaults)


class PullStore:
    """The pulls in `folder`. All methods may be called by any process at any time. They raise OSError if the state
    directory cannot be read or written."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def add(self, plan: PullPlan, folders: ModelFolders, by: Literal["server", "command"]) -> PullFolder:
        """A new pull, which does not run yet."""
        self._forget_old()
        job = Job.of(plan, folders, by, uuid.uuid4().hex[:12])
        path = self._folder / job.id
        write_atomic(path / "job.json", json.dumps(asdict(job)).encode())
        return PullFolder(path)

    def start(self, plan: PullPlan, folders: ModelFolders) -> dict[str, Any]:
        """Pull in a process of its own, and report on it. A pull of the same models that has not ended is reported
        instead."""
        for report in self.reports():
            if not _has_ended(report) and report["models"] == list(plan.models):
                return report
        pull = self.add(plan, folders, "server")
        if self._running() < _MAX_RUNNING:
            self._start_process(pull)
        return self.report(pull.path.name)

    def reports(self) -> list[dict[str, Any]]:
        """All pulls, the newest first."""
        found = [report for pull in self._pulls() if (report := pull.report()) is not None]
        return sorted(found, key=lambda report: report["created"], reverse=True)

    def report(self, pull_id: str) -> dict[str, Any]:
        """Raises PullNotFound."""
        report = self._find(pull_id).report()
        if report is None:
            raise PullNotFound(f"No pull has the id {pull_id!r}.")
        return report

    def cancel(self, pull_id: str) -> dict[str, Any]:
        """Stop a pull; one that has ended stays as it is. Raises PullNotFound."""
        pull = self._find(pull_id)
        pull.cancel()
        return self.report(pull_id)

    def _find(self, pull_id: str) -> PullFolder:
        found = next((pull for pull in self._pulls() if pull.path.name == pull_id), None)
        if found is None:
            raise PullNotFound(f"No pull has the id {pull_id!r}.")
        return found

    def _pulls(self) -> Iterator[PullFolder]:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            for path in self._folder.iterdir():
                if (path / "job.json").exists():
                    yield PullFolder(path)

    def _forget_old(self) -> None:
        ended = [report for report in self.reports() if _has_ended(report)]
        for report in ended[_MAX_KEPT - 1 :]:
            shutil.rmtree(self._folder / report["id"], ignore_errors=True)

    def resume_in_background(self) -> None:
        """Restart pulls of the server whose process has ended, now and whenever one ends. For each worker of a server.
        Raises RuntimeError if the system gives no more threads."""

        def watch() -> None:
            while True:
                with contextlib.suppress(OSError, RuntimeError):
                    self.resume()
                time.sleep(_WATCH_S)

        threading.Thread(target=watch, daemon=True).start()

    def resume(self) -> None:
        """Start a process for each pull of the server that has none and has not ended, the oldest first, as long as not too
        many run. Raises OSError."""
        waiting = [
            (report["created"], report["id"])
            for report in self.reports()
            if report["state"] in ("interrupted", "waiting") and report["by"] == "server"
        ]
        for _, pull_id in sorted(waiting):
            pull = PullFolder(self._folder / pull_id)
            if not pull.is_starting and self._running() < _MAX_RUNNING:
                self._start_process(pull)

    def _running(self) -> int:
        """How many pulls of the server have a process."""
        return sum(
            report["by"] == "server"
            and (report["state"] == "running" or PullFolder(self._folder / report["id"]).is_starting)
            for report in self.reports()
        )

    def _start_process(self, pull: PullFolder) -> None:
        pull.mark_as_starting()
        # A session of its own: it goes on when its worker is replaced, and ends with the server, this worker's parent.
        process = subprocess.Popen(  # noqa: S603
            [sys.executable, "-m", "model_files", str(pull.path), str(os.getppid())],
            cwd=_ROOT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        threading.Thread(target=process.wait, daemon=True).start()  # so that it leaves no zombie


class PullFolder:
    """What is stored of one pull."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def job(self) -> Job | None:
        """None if it is damaged"""
        return read_state(self.path / "job.json", Job.parse)

    @property
    def is_of_server(self) -> bool:
        job = self.job
        return job is not None and job.by == "server"

    def mark_as_starting(self) -> None:
        (self.path / "starting").touch()

    @property
    def is_starting(self) -> bool:
        """Whether its first process was started a moment ago, and has not said yet that it runs."""
        try:
            begun = (self.path / "starting").stat().st_mtime
        except OSError:
            return False
        return not (self.path / "progress.json").exists() and 0 <= time.time() - begun < _STARTING_S

    @property
    def is_cancelled(self) -> bool:
        return (self.path / "cancel").exists()

    def cancel(self) -> None:
        (self.path / "cancel").touch()

    @contextlib.contextmanager
    def lock(self, timeout_s: float = 0) -> Iterator[bool]:
        """Whether this process may run the pull; false if another still does after `timeout_s`."""
        deadline = time.monotonic() + timeout_s
        descriptor = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            while not (is_mine := _lock(descriptor)) and time.monotonic() < deadline:
                time.sleep(_POLL_S)
            yield is_mine
        finally:
            os.close(descriptor)

    def _is_running(self) -> bool:
        with self.lock() as is_free:
            return not is_free

    def write(
        self,
        state: PullState,
        files: Iterable[FileProgress],
        bytes_per_s: float = 0,
        error: EaselError | None = None,
    ) -> None:
        """Store how far the pull is. Raises OSError."""
        progress = {
            "state": state,
            "files": [asdict(entry) for entry in files],
            "bytes_per_s": round(bytes_per_s),
            "error": {"code": error.code, "message": error.message} if error else None,
        }
        write_atomic(self.path / "progress.json", json.dumps(progress).encode())

    def report(self) -> dict[str, Any] | None:
        """The pull as the API shows it; None if it is damaged."""
        job = self.job
        if job is None:
            return None
        waiting = [asdict(FileProgress(file.name, file.folder, file.size)) for file in job.files]
        progress = read_state(self.path / "progress.json", _parse_progress)
        stored = progress or {"state": "waiting", "files": waiting, "bytes_per_s": 0, "error": None}
        state = stored["state"]
        if state not in _ENDED and not self._is_running():
            # Without a process it ends, or goes on with another.
            fresh = read_state(self.path / "progress.json", _parse_progress)
            stored = fresh or stored
            if stored["state"] not in _ENDED:
                is_new = progress is None
                state = "cancelled" if self.is_cancelled else "waiting" if is_new else "interrupted"
            else:
                state = stored["state"]
        return {
            "id": job.id,
            "object": "model.pull",
            "models": list(job.models),
            "state": state,
            "by": job.by,
            "received": sum(file["received"] for file in stored["files"]),
            "size": _total(stored["files"]),
            "bytes_per_s": stored["bytes_per_s"] if state == "running" else 0,
            "files": stored["files"],
            "error": stored["error"],
            "created": job.created,
        }

    def count_start(self) -> bool:
        """Count this start of the process; false if the last ones have brought nothing."""
        report = self.report()
        received = report["received"] if report else 0
        last = read_state(self.path / "starts.json", lambda value: (int(value[0]), int(value[1]))) or (0, -1)
        count = last[0] + 1 if received <= last[1] else 1
        write_atomic(self.path / "starts.json", json.dumps([count, received]).encode())
        return count <= _MAX_FRUITLESS_STARTS


def _lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _parse_progress(value: Any) -> dict[str, Any]:
    """Raises an Exception for a value of the wrong shape."""
    found = {name: value[name] for name in ("state", "files", "bytes_per_s", "error")}
    for file in found["files"]:
        _ = file["received"] + 0, file["size"], file["name"], file["folder"], file["state"]
    return found


def _has_ended(report: dict[str, Any]) -> bool:
    """Nobody starts an interrupted pull of a command again."""
    return report["state"] in _ENDED or (report["state"] == "interrupted" and report["by"] == "command")


def _total(files: list[dict[str, Any]]) -> int | None:
    """None while the size of a file is not known"""
    sizes = [file["size"] for file in files]
    return None if None in sizes else sum(sizes)
