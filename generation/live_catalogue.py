"""The current catalogue, reloaded when its files change. A valid edit takes effect without a restart; an invalid one
is refused and the last good catalogue stays. That is the one stored last by any process of the server, see
`last_good`: after an invalid edit all workers serve the same catalogue. A worker of a server reads and checks an edit in
a thread of its own, so that no request waits for that."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from operator import itemgetter
from pathlib import Path
from typing import NamedTuple

from atomic_file import write_atomic
from compiler import (
    Catalogue,
    LoraTags,
    OwnFileNote,
    Size,
    SourcePaths,
    Sources,
    Task,
    is_own_file,
    load_catalogue,
    proofs_to_keep,
    read_sources,
)
from errors import CatalogueInvalid, EaselError, SettingsInvalid, list_names, shorten
from generation.last_good import LastGoodFile, Version

log = logging.getLogger("easel.catalogue")


class FileStamp(NamedTuple):
    """Identifies one state of a file."""

    name: str
    inode: int
    changed_ns: int
    size: int
    is_learned: bool = False
    """Whether it contains the nodes that `easel snapshot-nodes` has learned"""
    access: tuple[int, int, int] = (0, 0, 0)
    """Mode, user and group: whether it can be read"""


Stamp = tuple[FileStamp, ...]
"""The stamps of all source files. Equal stamps mean equal files."""

ApplyChoices = Callable[[Catalogue], Catalogue]
"""Puts this installation's choices (default model, hidden models) into a new catalogue, or raises SettingsInvalid."""


CHECK_INTERVAL_S = 0.25
"""Between two looks at the files of a catalogue that is watched"""
_LEARNED_WAIT_S = 10.0
"""How long a request waits for the catalogue with nodes that were just learned; reading it takes about a second"""
_TURN_S = 0.0005
_MAX_LOGGED = 20
MAX_READS_AT_START = 5
"""How often the files are read again if they change while the first catalogue is checked"""


class LiveCatalogue:
    """`current()` returns the current catalogue. Thread-safe; each process has its own.

    In a process that called `watch`, a thread looks at the files. In others, such as a command, `current` does.
    """

    def __init__(
        self,
        paths: SourcePaths,
        last_good_file: Path,
        *,
        apply_choices: ApplyChoices = lambda catalogue: catalogue,
        settle_s: float = 0.2,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Reads and checks the files. Raises CatalogueInvalid: a server does not start with a broken catalogue.

        The last good texts are written to `last_good_file`. A file must be unchanged for `settle_s` before it is
        read, so that an editor's half-written file never is. `clock` gives seconds since the epoch.
        """
        self._paths, self._apply_choices = paths, apply_choices
        self._last_good = LastGoodFile(last_good_file, paths)
        self._settle_s, self._clock = settle_s, clock
        self._lock = threading.Lock()
        self._pid = os.getpid()
        self._compiles_ahead = False
        self._watching_pid = 0
        """The process whose thread looks at the files; not a child forked from it"""
        self._failures: dict[Callable[[], object], str] = {}
        """What a look does -> why it failed last"""
        self.error: EaselError | None = None
        """Why the files as they are now were refused, or None."""
        self._last_good_version: Version | None = None
        """Version of the last good file that was read after the files had been refused"""
        for _ in range(MAX_READS_AT_START):
            self._checked_stamp = self._read_stamp()
            self._sources = read_sources(paths)
            self._catalogue = self._parse(self._sources)
            if self._last_good.store(self._sources, self._is_unchanged):
                break
        self.loaded_at = int(time.time())
        """Unix time at which the current catalogue was loaded"""

    def current(self) -> Catalogue:
        """The current catalogue. Reads no files where they are watched, except for one `stat`; never raises for an
        invalid edit."""
        # Who has just learned nodes draws with them at once: that is worth a `stat`, and worth waiting for.
        if self._watching_pid != os.getpid() or self._has_learned():
            self.refresh()
        return self._catalogue

    def compile_ahead(self) -> None:
        """Compile the templates of this catalogue now, and those of later ones when they are loaded, so that no request
        waits for that. For a server; a command uses one template or none, and all take a second."""
        self._compiles_ahead = True
        self._catalogue.prepare()

    def watch(self, after_each_look: Callable[[], object] = lambda: None) -> None:
        """Look at the files now, and then in a thread until this process ends. Call it in each worker after the fork.
        `after_each_look` is called in that thread."""
        self._try(self.refresh)
        threading.Thread(
            target=self._watch, args=(after_each_look,), name="catalogue-watch", daemon=True
        ).start()
        self._watching_pid = os.getpid()

    def _watch(self, after_each_look: Callable[[], object]) -> None:
        while True:
            time.sleep(CHECK_INTERVAL_S)
            self._try(self.refresh)
            self._try(after_each_look)

    def _try(self, action: Callable[[], object]) -> None:
        try:
            action()
        except Exception as error:
            # Such as too little memory. Without the thread no edit would ever be noticed.
            failure = repr(error)  # MemoryError has no text
            if self._failures.get(action) != failure:  # four times a second would fill the log
                log.exception("cannot look at the files of the catalogue")
            self._failures[action] = failure
        else:
            self._failures.pop(action, None)

    def refresh(self) -> None:
        """Look at the files' modification times, and load the catalogue again if they have changed."""
        if self._pid != os.getpid():
            self._after_fork()
        stamp = self._read_stamp()
        if (stamp != self._checked_stamp or self._is_outdated()) and self._acquire_lock(stamp):
            try:
                if stamp != self._checked_stamp:
                    if not self._is_being_written(stamp):
                        self._reload(stamp)
                        _give_memory_back()
                else:
                    self._use_last_good()
            finally:
                self._lock.release()

    def _acquire_lock(self, stamp: Stamp) -> bool:
        """While another thread reads an edit, the old catalogue serves. But who has learned nodes has waited for that,
        and draws at once."""
        has_learned = _learned(stamp) != _learned(self._checked_stamp)
        return (
            self._lock.acquire(timeout=_LEARNED_WAIT_S) if has_learned else self._lock.acquire(blocking=False)
        )

    @property
    def served(self) -> Catalogue:
        """The current catalogue, without a look at the files."""
        return self._catalogue

    def is_latest(self, catalogue: Catalogue) -> bool:
        """Whether this process serves `catalogue` and no other process has stored a newer one."""
        sources = self._sources
        return self._last_good.read() in (None, sources) and self._catalogue is catalogue

    def _is_outdated(self) -> bool:
        """Whether another process has stored a good catalogue since this one refused the files."""
        return self.error is not None and self._last_good.version() != self._last_good_version

    def _reload(self, stamp: Stamp) -> None:
        try:
            sources = read_sources(self._paths)
            is_new = sources != self._sources
            catalogue = self._parse(sources) if is_new else self._catalogue
        except EaselError as error:
            self._refuse(stamp, error)
        except Exception as error:
            # A parser may raise anything. That must refuse the edit, and fail nothing else.
            text = f"{self._paths.catalogue.name}: {type(error).__name__}: {shorten(str(error), 300)}"
            self._refuse(stamp, CatalogueInvalid(text))
        else:
            # Otherwise the files have changed again: the next look reads them once they have settled.
            if self._last_good.store(sources, lambda: self._read_stamp() == stamp):
                self._checked_stamp, self.error = stamp, None
                if is_new:
                    self._use(sources, catalogue)
                    log.info("catalogue reloaded: %d models", len(catalogue.models))

    def _is_being_written(self, stamp: Stamp) -> bool:
        # A modification time in the future means that the clock was set back, not that the file is being written.
        # Learned nodes are written in one step.
        edited = [entry for entry in stamp if not entry.is_learned]
        last_change = max((entry.changed_ns for entry in edited), default=0) / 1e9
        return 0 <= self._clock() - last_change < self._settle_s

    def _is_unchanged(self) -> bool:
        return self._read_stamp() == self._checked_stamp

    def _parse(self, sources: Sources) -> Catalogue:
        with _short_turns():
            catalogue = self._apply_choices(load_catalogue(sources))
            if self._compiles_ahead:
                catalogue.prepare()
        self._keep_proofs(catalogue, sources)
        _log_own_faults(catalogue)
        _log_undrawable(catalogue)
        _log_unverified(catalogue)
        return catalogue

    def _keep_proofs(self, catalogue: Catalogue, sources: Sources) -> None:
        """Those of the owner's entries, so that the next start and the other workers need not make them. Without them,
        these only take longer."""
        path = self._paths.own_proofs
        if path is None:
            return
        text = proofs_to_keep(catalogue, [sources.shipped_proofs])
        if not text or text == sources.own_proofs:
            return
        with contextlib.suppress(OSError):
            write_atomic(path, text.encode("utf-8"))

    def _use(self, sources: Sources, catalogue: Catalogue) -> None:
        # In this order, for `is_latest` in another thread.
        self._catalogue, self._sources, self.loaded_at = catalogue, sources, int(time.time())

    def _refuse(self, stamp: Stamp, error: EaselError) -> None:
        # The frames that it came through have the whole document, 200 MB for 10,000 models.
        error.__traceback__ = error.__cause__ = error.__context__ = None
        self._checked_stamp, self.error = stamp, error
        self._use_last_good()
        log.error("the changed catalogue is not valid; the last good one stays in use: %s", error.message)

    def _use_last_good(self) -> None:
        """Load the stored catalogue, unless it is the current one."""
        stored, self._last_good_version = self._last_good.read_or_restore(self._sources)
        if stored == self._sources:
            return
        try:
            self._use(stored, self._parse(stored))
            log.info("another process has stored a newer catalogue: it is in use here too")
        except Exception as error:
            log.warning(
                "the last good catalogue cannot be loaded, it is replaced by the current one: %s", error
            )
            _, self._last_good_version = self._last_good.read_or_restore(self._sources, rejected=stored)

    def _after_fork(self) -> None:
        """A worker forked from the master has the catalogue of the server's start. If the files have changed since and
        are now invalid, the last good file has what the older workers loaded in between."""
        self._pid, self._lock = os.getpid(), threading.Lock()
        if self._is_unchanged() or self._last_good.read() is None:
            return
        with self._lock:
            self._use_last_good()

    def _has_learned(self) -> bool:
        """Whether `easel snapshot-nodes` has learned nodes that the current catalogue does not have yet."""
        path = self._paths.learned_nodes
        return path is not None and _stamp_of([path], path) != _learned(self._checked_stamp)

    def _read_stamp(self) -> Stamp:
        stamp = _stamp_of(self._paths.files(), self._paths.learned_nodes)
        return stamp + _stamp_of_own(self._paths.own_folder)


def _stamp_of(paths: Iterable[Path], learned_nodes: Path | None) -> Stamp:
    """Without the files that do not exist."""
    stamp: list[FileStamp] = []
    for path in paths:
        with contextlib.suppress(OSError):
            stamp.append(_file_stamp(path.name, path.stat(), is_learned=path == learned_nodes))
    return tuple(stamp)


def _file_stamp(name: str, found: os.stat_result, *, is_learned: bool = False) -> FileStamp:
    access = found.st_mode, found.st_uid, found.st_gid
    return FileStamp(name, found.st_ino, found.st_mtime_ns, found.st_size, is_learned, access)


def _stamp_of_own(folder: Path | None) -> Stamp:
    """Of the owner's folder and its files; those that do not exist, such as the target of a link, have the inode 0. It takes
    4 µs for each file, several times less than with `Path`."""
    stamp: list[FileStamp] = []
    if folder is not None:
        with contextlib.suppress(OSError):
            found = os.stat(folder)
            # Not its time: that changes with each file that an editor keeps there meanwhile.
            stamp.append(
                FileStamp("", found.st_ino, 0, 0, access=(found.st_mode, found.st_uid, found.st_gid))
            )
            with os.scandir(folder) as entries:
                stamp += [_own_file_stamp(entry) for entry in entries if is_own_file(entry.name)]
    return tuple(sorted(stamp, key=itemgetter(0)))  # by name


def _own_file_stamp(entry: os.DirEntry[str]) -> FileStamp:
    try:
        return _file_stamp(entry.name, entry.stat())
    except OSError:
        return FileStamp(entry.name, 0, 0, 0)


@contextlib.contextmanager
def _short_turns() -> Iterator[None]:
    """Let threads that want the interpreter wait for 0.5 ms instead of Python's 5 ms. A request asks for it about twenty
    times: beside the check of 10,000 models a picture takes 0.1 s then, instead of 0.2 s."""
    interval_s = sys.getswitchinterval()
    sys.setswitchinterval(_TURN_S)
    try:
        yield
    finally:
        sys.setswitchinterval(interval_s)


def _give_memory_back() -> None:
    """Return to the system what reading a large catalogue has left: 50 to 100 MB for 10,000 models, in 0.1 s. Python frees
    it some time, and glibc keeps it even then."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def _learned(stamp: Stamp) -> Stamp:
    return tuple(entry for entry in stamp if entry.is_learned)


def _log_own_faults(catalogue: Catalogue) -> None:
    """A few lines even for a thousand wrong files."""
    faults, overrides = catalogue.own_faults, catalogue.own_overrides
    for fault in faults[:_MAX_LOGGED]:
        log.error("%s", fault)
    if len(faults) > _MAX_LOGGED:
        log.error("and %d more faults, which `easel check-catalogue` lists", len(faults) - _MAX_LOGGED)
    for note in overrides[:_MAX_LOGGED]:
        log.info("%s", note)
    if len(overrides) > _MAX_LOGGED:
        log.info("and %d more, which `easel check-catalogue` lists", len(overrides) - _MAX_LOGGED)


def _log_unverified(catalogue: Catalogue) -> None:
    found = [model.id for model in catalogue.models.values() if catalogue.unverified(model)]
    if found:
        log.info(
            "%d models are unverified, no recorded ComfyUI has what they use: %s",
            len(found),
            list_names(found),
        )


def _log_undrawable(catalogue: Catalogue) -> None:
    """One line for all models with the same faults: a mistake in a template is one of each of its models."""
    models: dict[tuple[Task, tuple[str, ...]], list[str]] = {}
    for model, tasks in catalogue.undrawable.items():
        for task, faults in tasks.items():
            models.setdefault((task, faults), []).append(model)
    for (task, faults), names in models.items():
        log.error("cannot draw the task %s with %s: %s", task, list_names(names), "; ".join(faults))


def installation_choices(
    default_model: str,
    default_size: str,
    visible: tuple[str, ...],
    preload: tuple[str, ...] = (),
    lora_tags: LoraTags = "apply",
) -> ApplyChoices:
    """A function that applies the settings `images.default_model`, `images.default_size`, `images.visible` and
    `images.lora_tags` to a catalogue.

    It raises SettingsInvalid if a model is not in the catalogue (those of `images.preload` too), or if the default
    model is hidden. But if a file in the owner's folder has a fault, so that a model may be missing because of that, the
    rest is served: the setting then does without the model, and that is one of the catalogue's `own_faults`.
    """
    named = {
        "images.visible": visible,
        "images.preload": preload,
        "images.default_model": (default_model,) if default_model else (),
    }

    def apply(catalogue: Catalogue) -> Catalogue:
        # By any name: a file of the owner's folder may take the id of a shipped model, also as an alias.
        ids = {name.casefold(): model.id for model in catalogue.models.values() for name in model.names}
        unknown = {
            setting: missing
            for setting, names in named.items()
            if (missing := [name for name in names if name.casefold() not in ids])
        }
        if unknown and not catalogue.own_faults:
            listed = dict.fromkeys(name for names in unknown.values() for name in names)
            raise SettingsInvalid(
                f"images: {', '.join(listed)} is not in the catalogue, which has {', '.join(catalogue.models)}."
            )
        default = ids.get(default_model.casefold(), catalogue.default_model)
        shown = {ids.get(name.casefold()) for name in visible}
        hidden = frozenset(catalogue.models) - shown if visible else frozenset()
        if default in hidden:
            raise SettingsInvalid(
                f"images.visible does not list the default model {default!r}."
                + "".join(f"\n{fault}" for fault in catalogue.own_faults)
            )
        try:
            size = Size.parse(default_size) if default_size else None
        except ValueError as error:
            raise SettingsInvalid(f"images.default_size: {error}.") from error
        notes = tuple(_without_models(setting, names, default) for setting, names in unknown.items())
        return replace(
            catalogue,
            default_model=default,
            default_size=size,
            hidden=hidden,
            lora_tags=lora_tags,
            own_faults=(*catalogue.own_faults, *notes),
        )

    return apply


def _without_models(setting: str, names: list[str], default: str) -> OwnFileNote:
    """The note that a setting names models which the catalogue does not have."""
    effect = f"; requests without a model use {default}" if setting == "images.default_model" else ""
    return OwnFileNote(
        setting, f"there is no model {', '.join(names)}, perhaps because of these faults{effect}"
    )
