"""What the API needs from the other packages. Created once by `app`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from access import AuditLog, Gate
from api.image_feed import ImageFeed
from arbiter import Arbiter
from compiler import Catalogue
from conversation import Forwarder, ModelDirectory
from engine import Engine
from engines import Fleet
from errors import EaselError
from generation import Generator
from image_jobs import JobQueue, KeyedRequests
from image_store import ImageStore
from metrics import Exposition
from model_files import ModelFolders, PullStore
from observer import BeginTrace, Observer
from status import Readiness, SystemStatus

WsgiApp = Callable[[dict[str, Any], Any], Iterable[bytes]]


@dataclass(frozen=True)
class HttpOptions:
    """The HTTP options of this installation, taken from its settings."""

    on_loopback: bool = True
    allowed_hosts: tuple[str, ...] = ()
    allowed_origins: tuple[str, ...] = ()
    trusted_proxies: tuple[str, ...] = ()
    public_url: str = ""
    url_style: str = "absolute"
    default_response_format: str = "auto"
    max_request_bytes: int = 128_000_000
    request_timeout_s: float = 290
    images_enabled: bool = True
    lists_all_models: bool = False
    answers_later: bool = True
    """Whether there are threads that draw jobs"""
    max_event_streams: int = 32
    """Clients that follow jobs or `GET /api/events`: each holds a thread of the worker"""


class Shutdown:
    """Set once when this process begins to stop. A plain attribute: it is set in a signal handler, where a lock that the
    interrupted thread holds would never become free."""

    has_begun = False


@dataclass(frozen=True)
class Services:
    """The services that the API uses. `fleet`: all engines."""

    options: HttpOptions
    gate: Gate
    audit: AuditLog
    generator: Generator
    store: ImageStore
    catalogue: Callable[[], Catalogue]
    catalogue_loaded_at: Callable[[], int]
    """Unix time at which the current catalogue was loaded"""
    catalogue_error: Callable[[], EaselError | None]
    engine: Callable[[], Engine]
    fleet: Fleet
    forwarder: Forwarder
    models_of_llms: ModelDirectory
    system_status: SystemStatus
    readiness: Readiness
    pulls: PullStore
    keyed_requests: KeyedRequests
    jobs: JobQueue
    model_folders: Callable[[], ModelFolders]
    """Raises ModelsFolderMissing if it is not known where the engine has its models"""
    exposition: Exposition
    image_feed: ImageFeed
    """What changes among the stored images"""
    metrics_problem: Callable[[], str | None]
    """Why the metrics cannot be stored, if so"""
    engines_error: Callable[[], EaselError | None] = lambda: None
    """Why the engines in easel.yaml as it is now are not those that are used"""
    shutdown: Shutdown = field(default_factory=Shutdown)
    observer: Observer = field(default_factory=Observer)
    begin_trace: BeginTrace | None = None
    """None if requests are not traced"""
    fetch_image: Callable[[str, str], bytes] | None = None
    """(URL, param) -> the bytes at that URL; None if the setting `images.fetch_urls` is off"""

    @property
    def arbiter(self) -> Arbiter:
        """That of the GPU of the first engine."""
        return self.fleet.first.arbiter
