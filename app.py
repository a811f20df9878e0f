"""create_app(): constructs the services from the settings and connects them."""

from __future__ import annotations

import contextlib
import logging
import os
import platform
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout
from flask import Flask

from access import AuditLog, Gate
from api import GalleryFeed, Services, draw_job, register_api
from arbiter import Arbiter
from commands import register_commands
from compiler import Catalogue, SourcePaths
from conversation import Forwarder
from deadline import remaining_s
from engine import NO_CREDENTIALS, Credentials, Engine, EngineProcess, EngineSelector, EngineTenant
from engine.selection import PROBE_URLS
from engines import (
    AssemblyOptions,
    CostStore,
    Drains,
    EngineEntry,
    EngineUnit,
    Fleet,
    LastGoodEngines,
    LiveEngines,
    assemble,
    engines_of_text,
)
from errors import EaselError, EngineUnreachable, InvalidImage, NoThumbnail, SettingsInvalid
from generation import Generator, facts_of_file
from generation.live_catalogue import LiveCatalogue, installation_choices
from image_jobs import JobQueue, JobWorkers, KeyedRequests
from image_store import ImageIndex, ImageStore
from installation import VERSION
from licences import Acceptances, LicencePolicy, Licences
from logs import PictureLog
from loopback import is_loopback
from metrics import Build, Exposition, Recorder, ServerState, ValueFiles
from model_files import ModelFolders, PullStore, find_model_folders
from observer import BeginTrace, Observer, Observers
from page import page_blueprint
from pictures import thumbnail
from schemas import read_yaml
from service_options import (
    check_combination,
    event_log_bytes,
    gpu_policy,
    hidden_variables,
    http_options,
    load_cluster,
    load_engines,
    load_stacks,
    load_upstreams,
    refuse_public_without_keys,
)
from settings import OWN_FOLDER, Settings, load_settings
from sketch import SharedFiles, SketchProcess, SketchSupervisor
from state_files import KeptFile, read_file
from status import HostReadiness, LastEngineError, Readiness, SystemStatus

if TYPE_CHECKING:
    from cluster.host_list import HostList
    from cluster.remote_runs import ClusterHosts
    from tracing import Tracer

log = logging.getLogger("easel")
ROOT = Path(__file__).resolve().parent


class Container:
    """Lazily constructed services of one process: a command that needs no engine starts none."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.state_dir = settings.path("state_dir")
        self.hidden_variables = frozenset(hidden_variables(settings))
        self._process_of_settings = EngineProcess.from_setting(
            settings["engine.start"], self.state_dir, self.hidden_variables
        )
        self.engine_url = settings["engine.url"].rstrip("/") or (
            PROBE_URLS[0] if self._process_of_settings.can_start else ""
        )
        self.engine_entries = load_engines(settings)
        if self.engine_entries:
            self.engine_url = self.engine_entries[0].url
        self.cluster = load_cluster(settings)
        self.is_host = False
        """Whether this process draws for others, or tells them about it, in `easel worker`"""
        self.stacks = load_stacks(settings, [entry.gpu for entry in self.engine_entries])
        self.model_directory = load_upstreams(settings)
        check_combination(settings, self.stacks)
        self._started_at = time.time()
        self._is_command = False
        self._command_sketch_url: str | None = None
        self._sketch_files = SharedFiles(
            self.state_dir / "sketch-nodes.json", self.state_dir / "sketch-files.json"
        )
        self._keeps_sketch_files = False
        """Only in the processes of a server: a command may use another catalogue"""

    @property
    def sketch_allowed(self) -> bool:
        """Whether the sketch engine draws if there is no other: not where other hosts draw."""
        return bool(self.settings["engine.sketch"]) and not self.engine_url and not self.draws_elsewhere

    @property
    def draws_elsewhere(self) -> bool:
        """Whether other hosts draw what is requested here."""
        return self.cluster is not None and not self.is_host

    @property
    def source_paths(self) -> SourcePaths:
        return SourcePaths(
            catalogue=self.settings.path("catalogue"),
            templates=self.settings.path("templates"),
            schemas=ROOT / "schemas",
            learned_nodes=self.state_dir / "nodes.json",
            own_folder=self.settings.path("catalogue_dir"),
            own_proofs=self.state_dir / "proofs.json",
        )

    def _warn_about_unread_folder(self) -> None:
        """Who writes their first easel.yaml has perhaps used the folder in the state directory before."""
        used, unread = self.settings.path("catalogue_dir"), self.state_dir / OWN_FOLDER
        if self.settings["catalogue_dir"] or unread == used:
            return
        with contextlib.suppress(OSError):
            if any(unread.iterdir()):
                log.warning(
                    "%s is not read, because there is a %s: move its files to %s, or set catalogue_dir",
                    *(unread, self.settings.file_name, used),
                )

    @cached_property
    def live_catalogue(self) -> LiveCatalogue:
        self._warn_about_unread_folder()
        apply_choices = installation_choices(
            self.settings["images.default_model"],
            self.settings["images.default_size"],
            self.settings["images.visible"],
            self.settings["images.preload"],
            self.settings["images.lora_tags"],
        )

        def apply(catalogue: Catalogue) -> Catalogue:
            self.licences.check_settings(catalogue)
            chosen = replace(apply_choices(catalogue), licences=self.licences)
            default = chosen.models[chosen.default_model]
            if self.licences.blocks_drawing(default):
                log.warning("requests without a model are refused, because of the licence of %s", default.id)
            return chosen

        return LiveCatalogue(
            self.source_paths, self.state_dir / "catalogue.last_good.json", apply_choices=apply
        )

    @cached_property
    def licences(self) -> Licences:
        policy = LicencePolicy(
            frozenset(self.settings["licences.allow"]),
            frozenset(self.settings["licences.deny"]),
            self.settings["licences.accept"],
        )
        return Licences(policy, Acceptances(self.state_dir / "licences.json"))

    @property
    def models_dir(self) -> Path | None:
        """ComfyUI's folder `models`; None if no setting says where it is."""
        return self.settings.path("engine.models_dir") if self.settings["engine.models_dir"] else None

    def catalogue(self) -> Catalogue:
        """The current catalogue."""
        catalogue = self.live_catalogue.current()
        if self._keeps_sketch_files:
            self._restore_sketch_files(catalogue, lambda: self.live_catalogue.is_latest(catalogue))
        return catalogue

    def catalogue_error(self) -> EaselError | None:
        """Why the files of the catalogue are not what is served; None if they are."""
        return self.live_catalogue.error

    def prepare_catalogue(self) -> None:
        """Read the catalogue, with all its templates. For the master process of a server, before it forks: the workers share
        the memory. Raises CatalogueInvalid."""
        self.live_catalogue.compile_ahead()

    def watch_catalogue(self) -> None:
        """Look at the catalogue's files in a thread from now on. For each worker of a server."""
        # The sketch engine gets a new catalogue there, too: no request has to write its files.
        self.live_catalogue.watch(after_each_look=self.catalogue)

    def _restore_sketch_files(self, catalogue: Catalogue, is_latest: Callable[[], bool]) -> None:
        """Make sure that the sketch engine has all nodes that the catalogue knows and all files in it."""
        self._sketch_files.restore(catalogue, catalogue.nodes, catalogue.files, is_latest=is_latest)

    def start_sketch_engine(self) -> None:
        """For the master process of a server, before it forks. Does nothing if an engine is configured."""
        if self.sketch_allowed:
            self._keeps_sketch_files = True
            self.catalogue()
            self.sketch_supervisor.start()

    @cached_property
    def sketch_supervisor(self) -> SketchSupervisor:
        """Runs the sketch engine of a server; only the server's master process starts it."""
        return SketchSupervisor(
            self._sketch_files,
            url_file=self.state_dir / "sketch-url",
            folder=self.state_dir / "sketch",
            # The workers may have a newer catalogue: only files that the engine cannot read are replaced.
            prepare=lambda: self._restore_sketch_files(self.live_catalogue.served, lambda: False),
        )

    def sketch_url(self) -> str | None:
        """URL of the sketch engine, the command's or the server's; None if it is disabled or not running."""
        if not self.sketch_allowed:
            return None
        return self._command_sketch_url if self._is_command else self.sketch_supervisor.url()

    @property
    def engine_selector(self) -> EngineSelector:
        """Of the first engine."""
        return self.fleet.first.selector

    @property
    def engine_process(self) -> EngineProcess:
        """Of the first engine."""
        return self.fleet.first.process

    @property
    def arbiter(self) -> Arbiter:
        """Controls who uses the GPU of the first engine. Its reconciler is started separately, by a worker or a command."""
        return self.fleet.first.arbiter

    def _new_engine_selector(self) -> EngineSelector:
        if not self.engine_url and self.credentials != NO_CREDENTIALS:
            log.warning(
                "there are credentials for ComfyUI, but no engine.url: they are sent nowhere; set it too"
            )
        return EngineSelector(
            self.engine_url or None,
            sketch_url=self.sketch_url,
            state_dir=self.state_dir,
            # Easel itself may listen on port 8000.
            probe_urls=[url for url in PROBE_URLS if url.rpartition(":")[2] != str(self.settings["port"])],
            make_engine=self._make_engine,
        )

    def _make_engine(self, url: str) -> Engine:
        # Credentials are for the engine that the owner named: anything may listen on the ports that are probed.
        return Engine(
            url,
            credentials=self.credentials if url == self.engine_url else NO_CREDENTIALS,
            stall_timeout_s=self.settings["engine.stall_timeout_s"],
        )

    @property
    def credentials(self) -> Credentials:
        """The credentials for the engine that the owner named, in the settings or as an argument of a command."""
        return Credentials(
            user=self.settings["engine.user"],
            password=self.settings["engine.password"],
            token=self.settings["engine.token"],
            query_token=self.settings["engine.query_token"],
            query_name=self.settings["engine.query_token_name"],
        )

    @cached_property
    def store(self) -> ImageStore:
        folder = self.state_dir / "images"
        return ImageStore(
            folder,
            max_count=self.settings["image_store.max_count"],
            max_bytes=self.settings["image_store.max_mb"] * 1_000_000,
            index=ImageIndex(
                folder, keeps_prompts=self.settings["images.keep_prompts"], read_facts=facts_of_file
            ),
            make_thumbnail=_make_thumbnail,
        )

    def _uses_gpu(self, engine: Engine) -> bool:
        """False for the sketch engine that Easel started. Never raises."""
        try:
            return not (engine.is_sketch and engine.url == self.sketch_url())
        except EngineUnreachable:
            return True

    def _engine_uses_gpu(self) -> bool:
        """False if only the sketch engine runs. Never raises."""
        try:
            return self._uses_gpu(self.engine_selector.current())
        except EngineUnreachable:
            return True

    @cached_property
    def fleet(self) -> Fleet:
        """All engines of this host."""
        if not self.engine_entries:
            return Fleet([self._only_engine()])
        return Fleet(
            [self._named_engine(entry) for entry in self.engine_entries],
            drains=Drains(self.state_dir / "engines.json"),
            need_bytes=self._need_bytes,
            model_id=self._model_id,
            # Each job of a host is placed by another process.
            placing_lock=self.state_dir / "placing.lock" if self.is_host else None,
        )

    @cached_property
    def live_engines(self) -> LiveEngines | None:
        """Follows the list of engines in easel.yaml; None if it is not there."""
        if (
            not self.engine_entries
            or not self.settings.file_name
            or "engines" in self.settings.from_environment
        ):
            return None
        path = self.settings.base / self.settings.file_name
        return LiveEngines(
            self.fleet,
            self.engine_entries,
            path,
            lambda text: engines_of_text(text, os.environ),
            self._named_engine,
            self.last_good_engines,
        )

    @cached_property
    def last_good_engines(self) -> LastGoodEngines:
        """What the processes of this server, or of this `easel worker`, accepted last. Both may use one state directory."""
        host = f".{self.cluster.name}" if self.is_host and self.cluster is not None else ""
        return LastGoodEngines(self.state_dir / f"engines.last_good{host}.json", os.environ)

    def engines_error(self) -> EaselError | None:
        """Why the engines in easel.yaml are not those that are used; None if they are. Only in a process that follows the
        file."""
        return self.live_engines.error if self.live_engines is not None else None

    def watch_engines(self, *, runs_reconcilers: bool = True) -> None:
        """Follow the list of engines in easel.yaml in a thread from now on. For each worker of a server;
        `runs_reconcilers`: whether this process runs those of the engines."""
        if self.live_engines is not None:
            self.live_engines.start(runs_reconcilers=runs_reconcilers)

    def _only_engine(self) -> EngineUnit:
        """That of the settings `engine.*`, or one that was found."""
        process = self._process_of_settings
        selector = self._new_engine_selector()
        tenant = EngineTenant(
            selector.current,
            process,
            start_timeout_s=self.settings["engine.start_timeout_s"],
            uses_gpu=self._uses_gpu,
        )
        arbiter = Arbiter(
            self.state_dir / "gpu",
            tenants={"inference": self.stacks, "generation": tenant} if self.stacks else None,
            engine=tenant,
            policy=gpu_policy(self.settings),
            available_bytes=tenant.available_bytes,
            engine_down=tenant.can_be_started,
            engine_uses_gpu=self._engine_uses_gpu,
            event_log_bytes=event_log_bytes(self.settings),
            observer=self.observer,
        )
        return EngineUnit(
            *("engine", selector, tenant, arbiter, process),
            url=self.engine_url,
            can_start=process.can_start and bool(self.stacks),
            uses_gpu=self._uses_gpu,
            # Other hosts must know what is loaded here, and what drawing takes.
            costs=CostStore(self.state_dir / "gpu" / "costs.json") if self.is_host else None,
        )

    def _named_engine(self, entry: EngineEntry) -> EngineUnit:
        stacks = self.stacks.on_gpu(entry.gpu)
        options = AssemblyOptions(
            self.state_dir,
            gpu_policy(self.settings),
            event_log_bytes(self.settings),
            start_timeout_s=self.settings["engine.start_timeout_s"],
            stall_timeout_s=self.settings["engine.stall_timeout_s"],
            observer=self.observer,
            hidden_variables=self.hidden_variables,
        )
        return assemble(entry, stacks or None, options)

    def _model_id(self, name: str) -> str:
        """The id of the model with this name or alias; `name` itself if there is none."""
        try:
            return self.live_catalogue.served.find(name).id
        except EaselError:
            return name

    def _need_bytes(self, model: str) -> int:
        """The GPU memory that a model needs; 0 if the catalogue does not say."""
        # Not `catalogue()`, which looks at the files: this is asked many times for each job.
        entry = self.live_catalogue.served.models.get(model)
        return int((entry.min_vram_gb or 0) * 1e9) if entry is not None else 0

    @cached_property
    def generator(self) -> Generator:
        return Generator(
            self.catalogue,
            self.fleet,
            self.store,
            metadata=self.settings["images.metadata"],
            max_waiting=self.settings["max_waiting"],
            has_several_keys=self.gate.has_several_keys,
            observer=self.observer,
            keeps_all=self.settings["image_store.keep"] == "all",
            lists_prompts=self.settings["images.keep_prompts"],
            hosts=self.hosts,
        )

    @cached_property
    def hosts(self) -> ClusterHosts | None:
        """The other hosts, if these draw; None if the engines of this one do. Raises SettingsInvalid if Celery is not
        installed."""
        if self.cluster is None or not self.draws_elsewhere:
            return None
        try:
            from cluster.joined import join_hosts  # an extra
        except ImportError as error:
            raise SettingsInvalid(
                f"cluster.redis is set, and {error.name} is not installed. Install what requirements-cluster.txt lists "
                "(`pip install 'easel[cluster]'`)."
            ) from error
        return join_hosts(self.cluster, self.arbiter, self._need_bytes)

    @property
    def host_list(self) -> HostList | None:
        """For commands; None if there are no other hosts."""
        return self.hosts.front.hosts if self.hosts is not None else None

    @cached_property
    def forwarder(self) -> Forwarder:
        return Forwarder(
            self.model_directory,
            lambda stack: self.fleet.arbiter_of(self.stacks.gpu_of(stack)),
            max_requests=self.settings["llm.max_requests"],
            lease_timeout_s=self.settings["request_timeout_s"],
            has_several_keys=self.gate.has_several_keys,
        )

    @cached_property
    def system_status(self) -> SystemStatus:
        return SystemStatus(
            self.generator,
            self.stacks,
            self.readiness,
            self.state_dir / "gpu",
            last_error=self.last_engine_error,
            hosts=self.hosts.front.hosts if self.hosts is not None else None,
        )

    @cached_property
    def last_engine_error(self) -> LastEngineError:
        return LastEngineError(self.state_dir / "gpu" / "last_error.json")

    @cached_property
    def readiness(self) -> Readiness:
        return (
            Readiness(self.generator)
            if self.hosts is None
            else HostReadiness(self.generator, self.hosts.front.hosts)
        )

    @cached_property
    def services(self) -> Services:
        return Services(
            options=http_options(self.settings),
            gate=self.gate,
            audit=self.audit,
            generator=self.generator,
            store=self.store,
            catalogue=self.catalogue,
            catalogue_loaded_at=lambda: self.live_catalogue.loaded_at,
            catalogue_error=self.catalogue_error,
            engine=lambda: self.engine_selector.current(),
            fleet=self.fleet,
            forwarder=self.forwarder,
            models_of_llms=self.model_directory,
            system_status=self.system_status,
            readiness=self.readiness,
            pulls=self.pulls,
            keyed_requests=KeyedRequests(self.state_dir / "idempotency"),
            jobs=self.image_jobs,
            model_folders=self.model_folders,
            fetch_image=_image_fetcher() if self.settings["images.fetch_urls"] else None,
            exposition=self.exposition,
            image_feed=GalleryFeed(self.store),
            metrics_problem=lambda: self.metric_files.problem,
            engines_error=self.engines_error,
            observer=self.observer,
            begin_trace=self._begin_trace,
        )

    @cached_property
    def gate(self) -> Gate:
        return Gate(
            self.state_dir,
            self.settings["api_keys"],
            # If the last key is gone, a public server does not become open.
            always_closed=not is_loopback(self.settings["host"]) and not self.settings["allow_open"],
        )

    @cached_property
    def audit(self) -> AuditLog:
        return AuditLog(self.state_dir / "audit.jsonl")

    @cached_property
    def observer(self) -> Observer:
        """Is told of all requests, drawings and switches."""
        observers: list[Observer] = [
            Recorder(self.metric_files, is_on=lambda: not self._is_command),
            PictureLog(with_prompts=self.settings["log_prompts"]),
            self.last_engine_error,
        ]
        return Observers(*observers, *([self.tracer] if self.tracer is not None else []))

    @cached_property
    def tracer(self) -> Tracer | None:
        """None without a collector. Raises SettingsInvalid if OpenTelemetry is not installed."""
        url = self.settings["traces.url"]
        if not url and not os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT"):
            return None
        from tracing import Tracer  # an extra

        return Tracer(url, VERSION)

    @property
    def _begin_trace(self) -> BeginTrace | None:
        return self.tracer.begin if self.tracer is not None else None

    @cached_property
    def metric_files(self) -> ValueFiles:
        return ValueFiles(self.state_dir / "metrics")

    @cached_property
    def exposition(self) -> Exposition:
        build = Build(VERSION, platform.python_version(), self._started_at)
        return Exposition(self.metric_files, self._server_state, build)

    def _server_state(self) -> ServerState:
        status, images, pulls = self.system_status.report(), None, list[dict[str, Any]]()
        with contextlib.suppress(OSError):
            images = self.store.totals()
        with contextlib.suppress(OSError):
            pulls = self.pulls.reports()
        engines = self.system_status.engine_facts()
        return ServerState(status, engines.get(self.fleet.first.name), pulls, images, engines)

    @cached_property
    def image_jobs(self) -> JobQueue:
        return JobQueue(
            self.state_dir / "image-jobs",
            max_count=self.settings["jobs.max_count"],
            max_bytes=int(self.settings["jobs.max_mb"] * 1_000_000),
            has_several_owners=self.gate.has_several_keys,
        )

    @cached_property
    def job_workers(self) -> JobWorkers:
        """The threads of a worker that draw image jobs; they are started separately."""
        draw = partial(draw_job, self.services)
        return JobWorkers(
            self.image_jobs,
            draw,
            count=self.settings["jobs.threads"],
            has_several_owners=self.gate.has_several_keys,
        )

    def model_folders(self, models_dir: Path | None = None) -> ModelFolders:
        """Where ComfyUI has its models. `models_dir`: instead of the setting. Raises ModelsFolderMissing and
        SettingsInvalid."""
        of_setting, extra = (
            str(self.settings.path(name)) if self.settings[name] else ""
            for name in ("engine.models_dir", "engine.extra_model_paths")
        )
        return find_model_folders(str(models_dir or of_setting), extra, read_yaml)

    @cached_property
    def pulls(self) -> PullStore:
        return PullStore(self.state_dir / "pulls")

    @contextlib.contextmanager
    def command_engine(self) -> Iterator[None]:
        """Runs the reconciler and, if there is no other engine, a sketch engine for this command inside the context."""
        self._is_command = True
        for unit in self.fleet.units:
            unit.arbiter.reconciler.start()  # it acts only if no server is running
        try:
            if not self.sketch_allowed or self._has_engine():
                yield
                return
            catalogue = self.catalogue()
            with SketchProcess(nodes=catalogue.nodes, files=catalogue.files) as sketch:
                self._command_sketch_url = sketch.url
                yield
        finally:
            if self.is_server_running():
                for unit in self.fleet.units:
                    unit.arbiter.reconciler.stop(_STOP_TIMEOUT_S)
            else:
                self.hand_gpu_back()

    def hand_gpu_back(self, is_hurried: Callable[[], bool] = lambda: False) -> None:
        """For the last process of this installation that ends. The reconciler must run. Stops waiting if
        `is_hurried`."""
        arbiters = [unit.arbiter for unit in self.fleet.units]
        # At the same time: each may take as long as all are given.
        threads = [
            threading.Thread(target=arbiter.restore_before_exit, args=(_RESTORE_TIMEOUT_S, is_hurried))
            for arbiter in arbiters[1:]
            if arbiter.shares_gpu
        ]
        for thread in threads:
            thread.start()
        arbiters[0].restore_before_exit(_RESTORE_TIMEOUT_S, is_hurried)
        for thread in threads:
            thread.join(_RESTORE_TIMEOUT_S)
        for arbiter in arbiters:
            arbiter.reconciler.stop(_STOP_TIMEOUT_S)

    def is_server_running(self) -> bool:
        """Whether a server uses this state directory; it then decides about the GPU."""
        try:
            with FileLock(self.server_lock_file).acquire(blocking=False):
                return False
        except Timeout:
            return True
        except OSError:
            return False

    def check_exposure(self) -> None:
        """Raises SettingsInvalid if a server would listen on a public address without keys."""
        refuse_public_without_keys([self.settings["host"]], self.settings, self.gate)

    @property
    def server_lock_file(self) -> Path:
        """Locked by the server that uses this state directory."""
        return self.state_dir / "server.lock"

    def _has_engine(self) -> bool:
        try:
            self.engine_selector.current()
        except EngineUnreachable:
            return False
        return True

    def address_file(self, address: tuple[str, int] | None, scheme: str = "http") -> KeptFile | None:
        """The file that gives commands the server's URL; needed if `port` is 0. `address`: host and port, None if the
        server has only a Unix socket; there is no file then."""
        if address is None:
            return None
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address[0], address[0])  # noqa: S104
        url_host = f"[{host}]" if ":" in host else host
        return KeptFile(self._address_file, f"{scheme}://{url_host}:{address[1]}".encode())

    def remove_address_file(self) -> None:
        """Remove the address of an earlier server."""
        with contextlib.suppress(OSError):
            self._address_file.unlink()

    def server_address(self) -> tuple[str, str | None]:
        """The URL of this installation's server, and a key for it or None."""
        keys = self.settings["api_keys"]
        url = self.stored_server_url() or f"http://127.0.0.1:{self.settings['port']}"
        return url, keys[0] if keys else self.gate.command_key()

    def stored_server_url(self) -> str | None:
        """The base URL that the server of this state directory has written; None if it has written none."""
        with contextlib.suppress(OSError, UnicodeDecodeError):
            stored = read_file(self._address_file).decode("ascii")
            return stored if _URL.fullmatch(stored) else None
        return None

    @property
    def _address_file(self) -> Path:
        return self.state_dir / "server-url"

    def close_traces(self) -> None:
        """Send the last spans of this process, for two seconds at most."""
        if self.tracer is not None:
            self.tracer.close()

    def end_event_streams(self) -> None:
        """Clients that follow events keep no thread of a server that stops. For a signal handler."""
        self.services.shutdown.has_begun = True

    def stop_jobs(self, reason: EaselError) -> None:
        """Cancel this process's running jobs in the engine. Their requests, and those that wait for the GPU, fail with
        `reason`."""
        self.fleet.fail_waiting(reason)
        if self.hosts is not None:
            self.hosts.front.end_all(reason)
        for unit in self.fleet.with_leaving:
            unit.selector.cancel_all(reason)
        self.forwarder.cancel_all(reason)


_RESTORE_TIMEOUT_S = 38.0
"""How long a server that stops waits for the LLMs to be loaded again: its workers may have taken 47 s to end, and systemd
kills it after 90 s"""
_STOP_TIMEOUT_S = 1.0
_URL = re.compile(r"https?://[^\s/]+:\d+")
_THUMBNAIL_PIXELS = 320
"""The longest side"""
_FETCH_MAX_BYTES = 50_000_000
_FETCH_TIMEOUT_S = 20.0


def _make_thumbnail(data: bytes) -> bytes:
    """Raises NoThumbnail."""
    try:
        return thumbnail(data, _THUMBNAIL_PIXELS)
    except InvalidImage as error:
        raise NoThumbnail(f"The stored image cannot be made smaller. {error.message}") from error


def _image_fetcher() -> Callable[[str, str], bytes]:
    """(URL, param) -> the bytes at that URL"""
    from pictures.fetch import fetch_image  # not before it is needed, see `pictures`

    def fetch(url: str, param: str) -> bytes:
        timeout_s = min(_FETCH_TIMEOUT_S, remaining_s())
        return fetch_image(url, max_bytes=_FETCH_MAX_BYTES, timeout_s=timeout_s, param=param)

    return fetch


def create_app(settings: Settings | None = None) -> Flask:
    """Create the WSGI application. Raises SettingsInvalid. The catalogue is read on first use."""
    container = Container(settings or load_settings())
    logging.getLogger("easel").setLevel(container.settings["log_level"].upper())
    app = Flask("easel", static_folder=None)
    app.json.sort_keys = False  # type: ignore[attr-defined]
    app.extensions["easel"] = container
    register_api(app, container.services)
    app.register_blueprint(page_blueprint(VERSION))
    register_commands(app)
    return app
