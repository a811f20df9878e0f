"""`easel worker`: draws on this host what other hosts were asked for. Its main process has the sketch engine, if there is no
other, and tells the others about this host; each child draws one job at a time."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections import Counter
from collections.abc import Mapping
from functools import partial
from typing import Any

from app import Container
from cluster.celery_app import run_worker
from cluster.heartbeat import Heartbeat
from cluster.host import Host, LocalRuns
from cluster.host_facts import HostFacts
from cluster.job_documents import JobDocument
from cluster.options import ClusterOptions
from cluster.slots import Slots
from compiler import Catalogue
from engines import Costs
from errors import EngineUnreachable, SettingsInvalid
from generation import RequestedJobs, TimeLeft, Uploads
from installation import VERSION
from server.hooks import log_to_stderr
from settings import Settings, load_settings
from state_format import check_format

log = logging.getLogger("easel.cluster")
_LOOK_TIMEOUT_S = 5.0
_MEMORY_AGE_S = 60.0


def work() -> int:
    """Serve until SIGTERM or SIGINT: a job that runs is finished first, a second signal ends at once. Returns the exit
    status. Raises SettingsInvalid, HostNameTaken, CatalogueInvalid and the errors of Redis."""
    settings = load_settings()
    log_to_stderr(settings["log_format"])
    container = _container(settings)
    options = container.cluster
    if options is None:
        raise SettingsInvalid(
            "easel worker draws for other hosts, and there are none: set cluster.redis (EASEL_CLUSTER_REDIS) to the "
            "address of the Redis that joins them."
        )
    check_format(container.state_dir)
    container.prepare_catalogue()
    slots = Slots(lambda: len(container.fleet.units))
    facts = _Facts(container, slots)
    heartbeat = Heartbeat(options, facts.now, partial(os.kill, os.getpid(), signal.SIGTERM))
    heartbeat.take_name()
    container.last_good_engines.clear()
    # Each child runs reconcilers; this process may not, because it forks.
    container.watch_engines(runs_reconcilers=False)
    container.start_sketch_engine()
    try:
        return run_worker(
            options,
            partial(_host, settings, options),
            heartbeat,
            slots=slots,
        )
    finally:
        _hand_gpu_back(container)
        container.sketch_supervisor.stop()


def _container(settings: Settings) -> Container:
    container = Container(settings)
    container.is_host = True
    logging.getLogger("easel").setLevel(settings["log_level"].upper())
    return container


def _host(settings: Settings, options: ClusterOptions) -> Host:
    """What draws in a child. It shares nothing with the main process, whose threads may hold any lock when a child that was
    killed is replaced."""
    container = _container(settings)
    container.watch_catalogue()
    # It catches up first: the settings are those of the worker's start, and this child may have been started for an engine
    # that was added since.
    container.watch_engines()
    for unit in container.fleet.units:
        unit.arbiter.reconciler.start()

    def runs(document: JobDocument, catalogue: Catalogue, uploads: Uploads, time_left: TimeLeft) -> LocalRuns:
        requested = RequestedJobs(document.request_id, document.compiled, catalogue, uploads, time_left)
        return container.generator.local_runs(requested)

    return Host(options, container.catalogue, runs)


def _hand_gpu_back(container: Container) -> None:
    if container.is_server_running() or not any(unit.arbiter.shares_gpu for unit in container.fleet.units):
        return
    for unit in container.fleet.units:
        unit.arbiter.reconciler.start()
    container.hand_gpu_back()


class _Facts:
    """What the others are told about this host."""

    def __init__(self, container: Container, slots: Slots) -> None:
        self._container, self._slots = container, slots
        self._memory: tuple[float, int | None] = -_MEMORY_AGE_S, None
        self._models: frozenset[str] = frozenset()
        self._stages: Mapping[str, tuple[Any, ...]] = {}
        self._is_checking = True

    def now(self) -> HostFacts:
        """May take some seconds."""
        container = self._container
        readiness, fleet = container.readiness, container.fleet
        state = readiness.engine(_LOOK_TIMEOUT_S)
        models = readiness.models(_LOOK_TIMEOUT_S)
        if models is not None:
            self._models = frozenset(each.id for each in models.states if each.is_drawable)
            self._is_checking = not models.is_complete
            self._stages = {each.id: each.values for each in models.stages}
        units = fleet.units
        loaded = dict.fromkeys(model for unit in units for model in fleet.loaded_models(unit))
        costs = units[0].costs
        now = time.time()
        return HostFacts(
            "",
            "",
            version=VERSION,
            comfyui=state.version or "",
            is_sketch=state.is_sketch,
            slots=self._slots.usable,
            problem=("", "") if state.error is None else (state.error.code, state.error.message),
            models=self._models,
            stages=self._stages,
            loaded=tuple(loaded),
            memory_bytes=self._gpu_memory(),
            costs=Costs() if costs is None else costs.read(),
            is_checking=self._is_checking,
            recent=Counter(
                job.model for unit in units if unit.costs is not None for job in unit.costs.read().history
            ),
            pictures_per_hour=sum(
                unit.costs.read().pictures_per_hour(now) for unit in units if unit.costs is not None
            ),
        )

    def _gpu_memory(self) -> int | None:
        """Of the smallest GPU; asked once a minute."""
        asked_at, known = self._memory
        if time.monotonic() - asked_at >= _MEMORY_AGE_S:
            found = []
            for unit in self._container.fleet.units:
                try:
                    stats = unit.engine().stats()
                except EngineUnreachable:
                    continue
                if stats.has_gpu and stats.vram_total:
                    found.append(stats.vram_total)
            known = min(found, default=None)
            self._memory = time.monotonic(), known
        return known
