"""How gunicorn runs Easel: addresses and numbers from the settings, one sketch engine, a polite end.

Waiting for a picture costs a thread and no more, hence threads, and many of them."""

from __future__ import annotations

import json
import logging
import signal
import sys
import threading
import uuid
from pathlib import Path
from typing import Any

# gunicorn reads this file before it puts the project on the path.
sys.path.insert(0, str(Path(__file__).resolve().parent))

import gunicorn.util
from filelock import FileLock, Timeout

import wsgi
from api import envelope, status_of
from app import House, refuse_open_door
from errors import EaselError, InvalidRequest, ServerStopping, SettingsInvalid
from generation import preload

house: House = wsgi.app.extensions["easel"]
settings = house.settings

bind = f"{'[' + settings['host'] + ']' if ':' in settings['host'] else settings['host']}:{settings['port']}"
workers = settings["workers"]
threads = settings["threads"]
worker_class = "gthread"
# The catalogue is read and proved once, here, and the workers share its memory.
preload_app = True
# A worker that answers no heartbeat for so long is dead; requests run in threads and do not count.
timeout = 60
max_requests = 0
keepalive = 75
graceful_timeout = 30
JOBS_MAY_RUN_ON_S = 20
"""After SIGTERM; what is not done then is taken back from the engine, in time for its client to be told."""
# Who the client is and how it called us is decided by `trusted_proxies`, in one place.
forwarded_allow_ips = ""
proc_name = "easel"
# Nobody asked for a second door, and it would lie in the home directory.
control_socket_disable = True
loglevel = settings["log_level"]

_lock: FileLock | None = None


def on_starting(server: Any) -> None:
    """Everything that must be right before the first worker is born."""
    try:
        refuse_open_door(
            [address[0] for address in server.cfg.address if isinstance(address, tuple)], settings
        )
        _take_state_dir()
        house.catalogue()
        house.arbiter.books.mark_start()
    except EaselError as fault:
        sys.exit(f"{fault.code}: {fault.message}")
    except OSError as fault:
        sys.exit(f"{SettingsInvalid.code}: state_dir cannot be used: {fault}")
    _log_to_stderr()


def _take_state_dir() -> None:
    """One server a state directory: two would keep two sketch engines and evict each other's images."""
    global _lock
    try:
        house.state_dir.mkdir(parents=True, exist_ok=True)
        _lock = FileLock(house.state_dir / "server.lock")
        _lock.acquire(blocking=False)
    except Timeout:
        raise SettingsInvalid(
            f"Another Easel already uses the state directory {settings['state_dir']!r}; set EASEL_STATE_DIR."
        ) from None
    except OSError as fault:
        raise SettingsInvalid(f"state_dir cannot be used: {fault}") from fault


def _log_to_stderr() -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    root = logging.getLogger("easel")
    root.addHandler(handler)
    root.propagate = False


def when_ready(server: Any) -> None:
    # The sketch engine is this process's child: one, whatever the number of workers. Not earlier: a start that fails
    # at the bind would leave it behind.
    if house.may_sketch:
        house.sketch_keeper.start(house.sketch_files)
    host, port = server.LISTENERS[0].sock.getsockname()[:2]
    try:
        house.tell_address(host, port)
    except OSError as fault:
        server.log.error("flask gpu will need --url: the state directory cannot be written: %s", fault)
    server.log.info("Easel is at http://%s:%s", host, port)


def on_exit(server: Any) -> None:
    house.sketch_keeper.stop()


def post_worker_init(worker: Any) -> None:
    """In a fresh worker: how it ends, its share in passing the GPU on, and, in the first one, loading the models that the
    owner wants warm."""
    before = signal.getsignal(signal.SIGTERM)

    def leave(number: int, frame: Any) -> None:
        house.arbiter.dismiss(_stopping())
        timer = threading.Timer(JOBS_MAY_RUN_ON_S, house.stop_jobs, [_stopping()])
        timer.daemon = True
        timer.start()
        if callable(before):
            before(number, frame)

    signal.signal(signal.SIGTERM, leave)
    house.arbiter.reconciler.start()
    if worker.age == 1 and settings["images.preload"]:
        arguments = (house.generator, settings["images.preload"])
        threading.Thread(target=preload, args=arguments, kwargs={"timeout_s": 3600}, daemon=True).start()


def worker_int(worker: Any) -> None:
    """Ctrl-C: do not wait for pictures."""
    house.stop_jobs(_stopping())


def _stopping() -> ServerStopping:
    return ServerStopping("The server is stopping; the job was taken back.")


def _write_json_error(connection: Any, status: int, reason: str, message: str) -> None:
    """For requests that are not HTTP enough to reach the application, where gunicorn would write a page."""
    fault = InvalidRequest(message) if status < 500 else EaselError("Something failed inside.")
    body = json.dumps(envelope(fault)).encode()
    head = (
        f"HTTP/1.1 {status if status < 500 else status_of(type(fault))} {reason}\r\nConnection: close\r\n"
        f"x-request-id: {uuid.uuid4().hex}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    gunicorn.util.write_nonblock(connection, head.encode("latin-1") + body)


gunicorn.util.write_error = _write_json_error
