"""What happens when the server starts, when a worker starts, and when either stops."""

from __future__ import annotations

import gc
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from filelock import Timeout

from app import Container
from detection import check_address
from engine.job_runner import CANCEL_TIMEOUT_S
from errors import EaselError, ServerStopping, SettingsInvalid
from generation import announce_unused_files, preload, warm_up
from logs import LogFormat, formatter
from loopback import is_loopback
from server.state_keeper import StateKeeper
from server.systemd import Notifier, inherited_addresses, inherits_sockets
from server.worker import block_stop_signals_until_forked
from service_options import refuse_public_without_keys
from settings import Settings
from state_format import check_format
from status import log_start

log = logging.getLogger("easel.server")

JOB_GRACE_S = 20
"""How long running jobs may continue after SIGTERM. Unfinished jobs are then cancelled in the engine. The clients get their
error response when the engine has stopped them."""
GRACEFUL_TIMEOUT_S = JOB_GRACE_S + int(CANCEL_TIMEOUT_S) + 7
"""gunicorn's `graceful_timeout`: after it a worker is killed, and its clients get no response. A job notices its
cancellation only when a call to the engine ends, which takes up to 5 s if the engine does not react."""


def bind_address(settings: Settings) -> str:
    """The settings `host` and `port` as gunicorn's `bind`."""
    return _netloc(settings["host"], settings["port"])


def _netloc(host: str, port: int) -> str:
    return f"{f'[{host}]' if ':' in host else host}:{port}"


def _check_inherited(addresses: list[tuple[str, int]], settings: Settings) -> None:
    """Raises SettingsInvalid if a socket of systemd is public and the setting `host` is not, or the reverse: by the setting
    Easel decides whether it needs keys and which host names it accepts. Another port is logged."""
    setting = settings["host"]
    for host, port in addresses:
        if is_loopback(host) != is_loopback(setting):
            raise SettingsInvalid(
                f"The socket that systemd opened (ListenStream in easel.socket) listens on {host}, but the setting `host` "
                f"is {setting}. Set EASEL_HOST={host} (or `host` in easel.yaml), or change the socket: by this setting "
                "Easel decides whether it needs keys."
            )
        if port != settings["port"]:
            log.warning(
                "systemd's socket (ListenStream in easel.socket) listens on port %d; the setting `port`, %d, is not used",
                port,
                settings["port"],
            )


def _shares_sockets(server: Any) -> bool:
    """Whether the listening sockets come from a master that is being replaced, or may be shared."""
    return bool("GUNICORN_FD" in os.environ or server.cfg.reuse_port)


class ServerHooks:
    """gunicorn's server hooks for one application. The first four run in the master, the others in a worker."""

    def __init__(self, container: Container) -> None:
        self._container = container
        self._settings = container.settings
        self._keeper: StateKeeper | None = None
        self._stopping_since = 0.0
        self._notifier = Notifier(os.environ)

    def on_starting(self, server: Any) -> None:
        """Check settings, state directory and catalogue before the first worker starts; on an error exit with one
        sentence."""
        log_to_stderr(self._settings["log_format"])
        addresses = [address for address in server.cfg.address if isinstance(address, tuple)]
        inherited = inherited_addresses(os.environ)
        try:
            _check_inherited(inherited, self._settings)
            self._lock_state_dir()
            # Before anything is written.
            check_format(self._container.state_dir)
            self._container.last_good_engines.clear()
            gate = self._container.gate
            gate.keys.begin()
            refuse_public_without_keys([host for host, _ in inherited or addresses], self._settings, gate)
            if not inherits_sockets(os.environ) and not _shares_sockets(server):
                for address in addresses:
                    check_address(*address)
            self._container.metric_files.clear()
            self._container.prepare_catalogue()
        except EaselError as error:
            sys.exit(f"{error.code}: {error.message}")
        except OSError as error:
            sys.exit(f"{SettingsInvalid.code}: {_unusable(error)}")

    def when_ready(self, server: Any) -> None:
        """Start the sketch engine, store the server's address, and prepare the memory that the workers share."""
        # The sketch engine is a child of the master: one for all workers. It is not started earlier, because it would
        # survive a start that fails at the bind.
        self._container.start_sketch_engine()
        scheme = "https" if server.cfg.is_ssl else "http"
        names = [listener.sock.getsockname() for listener in server.LISTENERS]
        address = next((name[:2] for name in names if isinstance(name, tuple)), None)
        assert self._keeper is not None
        self._container.remove_address_file()
        try:
            self._keeper.start(self._container.address_file(address, scheme))
        except OSError as error:
            server.log.error("easel gpu needs --url: the state directory cannot be written: %s", error)
        # A Unix socket has a path.
        place = f"{scheme}://{_netloc(*address)}" if address else f"unix:{names[0]}"
        server.log.info("Easel is at %s", place)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT):
            signal.signal(number, partial(self._stop_master, signal.getsignal(number)))
        self._notifier.announce_ready(f"Easel is at {place}")
        # A garbage collection in a worker writes to every object that it looks at, which copies the page: the workers would
        # soon share nothing. Nothing of what is loaded now becomes garbage.
        gc.collect()
        gc.freeze()

    def _stop_master(self, default_handler: Any, number: int, frame: Any) -> None:
        self._notifier.stopping()
        default_handler(number, frame)

    def pre_fork(self, server: Any, worker: Any) -> None:
        """Make sure that no stop signal is lost while a worker starts."""
        block_stop_signals_until_forked()

    def on_exit(self, server: Any) -> None:
        """Hand the GPU back to the LLM servers and stop the sketch engine."""
        if self._keeper is not None:
            self._keeper.stop()
        if self._container.live_engines is not None:
            self._container.live_engines.catch_up()
        sharing = [unit.arbiter for unit in self._container.fleet.units if unit.arbiter.shares_gpu]
        if sharing:
            is_hurried = threading.Event()
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT):
                signal.signal(number, lambda *_: is_hurried.set())
            # The workers have ended, so the master becomes the leader.
            try:
                for arbiter in sharing:
                    arbiter.reconciler.start()
            except RuntimeError as error:  # no more threads
                server.log.error("The GPU is not handed back to the LLM servers: %s", error)
            else:
                self._container.hand_gpu_back(is_hurried.is_set)
        self._container.sketch_supervisor.stop()

    def post_worker_init(self, worker: Any) -> None:
        """Handle SIGTERM, start the worker's threads, prepare for the first request and, in the first worker, check the
        LLM stacks and preload models."""
        default_handler = signal.getsignal(signal.SIGTERM)

        def stop(number: int, frame: Any) -> None:
            self._stopping_since = self._stopping_since or time.monotonic()
            self._container.end_event_streams()
            self._container.fleet.fail_waiting(_stopping())
            timer = threading.Timer(JOB_GRACE_S, self._container.stop_jobs, [_stopping()])
            timer.daemon = True
            try:
                timer.start()
            except RuntimeError as error:  # no more threads
                worker.log.error("Running jobs are cancelled now instead of in %d s: %s", JOB_GRACE_S, error)
                self._container.stop_jobs(_stopping())
            if callable(default_handler):
                default_handler(number, frame)

        signal.signal(signal.SIGTERM, stop)
        generator, models = self._container.generator, self._settings["images.preload"]
        readiness = self._container.readiness
        # Requests do what the first two do, as long as those have not started.
        worker.keep_trying("catalogue-watch", self._container.watch_catalogue)
        worker.keep_trying("image-sweeps", self._container.store.sweep_in_background)
        worker.keep_trying("engines-watch", self._container.watch_engines)
        fleet = self._container.fleet
        for unit in fleet.units:
            name = "gpu-reconciler" if fleet.is_single else f"gpu-reconciler of {unit.name}"
            worker.keep_trying(name, unit.arbiter.reconciler.start)
        worker.keep_trying("warm-up", lambda: _start_thread(partial(warm_up, generator)))
        worker.keep_trying("model-pulls", self._container.pulls.resume_in_background)
        worker.keep_trying("image-jobs", self._container.job_workers.start)
        # The log names upstreams that do not answer, and models that two of them have.
        worker.keep_trying("llm-models", lambda: _start_thread(self._container.model_directory.listed))
        if worker.age == 1:
            worker.keep_trying("start-report", lambda: _start_thread(partial(log_start, readiness)))
            worker.keep_trying("stack-check", lambda: _start_thread(self._container.stacks.log_problems))
            worker.keep_trying(
                "unused-files", lambda: _start_thread(partial(announce_unused_files, generator))
            )
        if worker.age == 1 and models:
            work = partial(preload, generator, models, timeout_s=3600)
            worker.keep_trying("preload", lambda: _start_thread(work))
        self._notifier.worker_is_ready()

    def worker_exit(self, server: Any, worker: Any) -> None:
        """Wait for the image jobs that are drawn: they end, or are cancelled with the others and drawn again later. Then
        send the last traces."""
        elapsed_s = time.monotonic() - self._stopping_since if self._stopping_since else 0.0
        self._container.job_workers.stop(max(0.0, JOB_GRACE_S + CANCEL_TIMEOUT_S - elapsed_s))
        self._container.close_traces()

    def worker_int(self, worker: Any) -> None:
        """On Ctrl-C, cancel the running jobs at once."""
        self._container.end_event_streams()
        self._container.stop_jobs(_stopping())

    def _lock_state_dir(self) -> None:
        """Allow one server per state directory: two would run two sketch engines and delete each other's images."""
        try:
            self._keeper = StateKeeper(self._container.server_lock_file)
        except Timeout:
            url = self._container.stored_server_url()
            raise SettingsInvalid(
                f"Another Easel already uses the state directory {self._settings['state_dir']!r}"
                f"{f', at {url}' if url else ''}. "
                "Stop it, or set EASEL_STATE_DIR and EASEL_PORT for a second one."
            ) from None
        except OSError as error:
            raise SettingsInvalid(_unusable(error)) from error


def _unusable(error: OSError) -> str:
    return f"state_dir cannot be used: {error}. Set EASEL_STATE_DIR (or --state-dir) to a folder that this user may write."


def log_to_stderr(log_format: LogFormat) -> None:
    """What this project logs, in that form."""
    handler = logging.StreamHandler()
    handler.setFormatter(formatter(log_format))
    root = logging.getLogger("easel")
    root.addHandler(handler)
    root.propagate = False


def _start_thread(work: Callable[[], object]) -> None:
    """Raises RuntimeError if the system gives no more threads."""
    threading.Thread(target=work, daemon=True).start()


def _stopping() -> ServerStopping:
    return ServerStopping("The server is stopping.")
