"""Downloads one file into its place: complete and checked, or not at all."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from errors import DownloadFailed, EaselError, ModelDiskFull, WrongFile
from model_files.http_source import (
    Answer,
    HttpOptions,
    TryAgain,
    check_total,
    is_range_wrong,
    names_hashes,
    open_at,
)
from model_files.part_file import PartFile, locked_part
from model_files.plan import FileState
from model_files.stop_signal import Cancelled, StopSignal
from model_files.weights import Weights
from system_errors import DISK_FULL

Report = Callable[[FileState, int, str], None]
"""state, bytes that have arrived, and a reason if there is one"""
_ENOUGH_PROGRESS = 1 << 16


def download(
    file: Weights,
    target: Path,
    has_arrived: Callable[[], bool],
    options: HttpOptions,
    report: Report,
    stop: StopSignal,
) -> None:
    """Pull `file` to `target`, or wait until another process has. `has_arrived`: whether the file is there.

    Raises DownloadFailed, WrongFile, ModelDiskFull, and Cancelled after `stop`.
    """
    try:
        _download(file, target, has_arrived, options, report, stop)
    except OSError as error:
        if error.errno in DISK_FULL:
            raise ModelDiskFull(
                f"The disk of the models folder became full while {file.name} arrived. What has arrived is kept."
            ) from error
        raise DownloadFailed(
            f"{file.folder}/{file.name} cannot be written: {error.strerror or error}."
        ) from error


def _download(
    file: Weights,
    target: Path,
    has_arrived: Callable[[], bool],
    options: HttpOptions,
    report: Report,
    stop: StopSignal,
) -> None:
    waiting = "another process pulls this file"
    with locked_part(target, has_arrived, lambda: report("waiting", 0, waiting), stop) as part:
        if part is None:
            if stop.is_set():
                raise Cancelled
            report("done", file.size or target.stat().st_size, "")
            return
        if target.exists():
            raise DownloadFailed(
                f"{file.folder}/{file.name} exists with {target.stat().st_size:,} bytes instead of {file.size:,}. Remove or "
                "rename it."
            )
        if file.url is None:
            raise DownloadFailed(f"The catalogue has no `url` for {file.folder}/{file.name}.")
        part.resume(
            file.url,
            lambda size: report("checking", size, ""),
            stop,
            hashes=file.sha256 is not None or names_hashes(file.url),
        )
        sha256 = _Attempts(file, file.url, part, options, report, stop).run()
        _verify(part, file, sha256)
        part.finish()
        report("done", part.size, "")


def _verify(part: PartFile, file: Weights, sha256: str | None) -> None:
    """Raises WrongFile; the file is kept beside its place then."""
    found = part.sha256() if sha256 is not None else None
    size_is_wrong = file.size is not None and part.size != file.size
    if size_is_wrong or (sha256 is not None and found != sha256):
        facts = f"{part.size:,} bytes instead of {file.size:,}" if size_is_wrong else f"the SHA-256 {found}"
        kept = part.set_aside()
        raise WrongFile(
            f"{file.name} is not the file of the catalogue: it has {facts}. It was kept as {kept.name}."
        )


class _Attempts:
    """Requests for the bytes of one file, each from where the last one broke off."""

    def __init__(
        self,
        file: Weights,
        url: str,
        part: PartFile,
        options: HttpOptions,
        report: Report,
        stop: StopSignal,
    ) -> None:
        self._file, self._url, self._part = file, url, part
        self._options, self._report, self._stop = options, report, stop
        self._starts_over = False
        self._named: str | None = None
        """The hash that the server named"""

    def run(self) -> str | None:
        """All bytes are there when this returns; the hash that they must have, if it is known. Raises DownloadFailed,
        Cancelled and OSError."""
        failed, most = 0, self._part.size
        while True:
            if self._stop.is_set():
                raise Cancelled
            try:
                if self._attempt():
                    return self._file.sha256 or self._named
            except TryAgain as error:
                self._starts_over = is_range_wrong(error)
                # Compared with the most that ever was there: a server may break off at the same place for ever.
                failed = 0 if self._part.size - most >= _ENOUGH_PROGRESS else failed + 1
                most = max(most, self._part.size)
                if failed >= self._options.attempts:
                    raise DownloadFailed(
                        f"{self._file.name} could not be pulled in {failed} attempts in a row: {error}. What has arrived is "
                        "kept; pull again later."
                    ) from None
                self._pause(error, failed)

    def _pause(self, error: TryAgain, failed: int) -> None:
        options = self._options
        delay_s = min(options.longest_delay_s, options.first_delay_s * 2 ** max(0, failed - 1))
        if error.after_s is not None:
            if error.after_s > options.longest_retry_after_s:
                raise DownloadFailed(
                    f"The server of {self._file.name} wants to be asked again only in {error.after_s:.0f} s: {error}."
                )
            delay_s = max(delay_s, error.after_s)
        self._report("retrying", self._part.size, f"{error}; next attempt in {delay_s:.0f} s")
        self._stop.wait(delay_s)

    def _attempt(self) -> bool:
        """Whether all bytes are there. Raises TryAgain."""
        part = self._part
        offset = part.size if self._can_resume() else 0
        if offset and offset == self._file.size:
            return True
        with open_at(
            self._url, offset, part.validator, self._options, self._stop, gated=self._file.gated
        ) as answer:
            self._named = answer.sha256 or self._named
            if answer.is_complete and self._file.size in (None, offset):
                return True
            if answer.body is None:
                part.begin("")  # the server has no such range: its file is another or shorter
                raise TryAgain("the server's file has changed")
            check_total(answer.total, self._file.size, self._file.name)
            if answer.start == 0:
                part.begin(answer.validator)
            with self._stop.breaks_off(answer.body.shutdown):
                self._receive(answer)
        return self._is_complete(answer)

    def _can_resume(self) -> bool:
        """Without a validator, only the hash tells whether the file is still the same."""
        return not self._starts_over and bool(self._part.validator or self._file.sha256 or self._named)

    def _receive(self, answer: Answer) -> None:
        """Raises TryAgain and OSError."""
        part, options = self._part, self._options
        limit = self._file.size if self._file.size is not None else answer.total
        begun, size_then = time.monotonic(), part.size
        self._report("pulling", part.size, "")
        for data in answer.chunks():
            if self._stop.is_set():
                raise Cancelled
            part.write(data)
            if limit is not None and part.size > limit:
                part.begin("")
                raise TryAgain("the server sent more bytes than the file has")
            self._report("pulling", part.size, "")
            if (passed := time.monotonic() - begun) > options.stall_timeout_s:
                if part.size - size_then < options.slowest * passed:
                    raise TryAgain("the server sends too slowly")
                begun, size_then = time.monotonic(), part.size

    def _is_complete(self, answer: Answer) -> bool:
        total = self._file.size if self._file.size is not None else answer.total
        if total is None:
            if self._file.sha256 or self._named:
                return True  # the hash tells
            raise DownloadFailed(
                f"Neither the catalogue nor the server tells the size or the hash of {self._file.name}, so nobody "
                "could tell whether it is complete. Add `size` or `sha256`."
            )
        if self._part.size < total:
            raise TryAgain("the connection broke off")
        return True


def failure(error: BaseException) -> EaselError:
    """The error to report for whatever a download raised."""
    return (
        error
        if isinstance(error, EaselError)
        else DownloadFailed(f"An unexpected error: {type(error).__name__}.")
    )
