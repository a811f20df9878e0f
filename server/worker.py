"""gunicorn's threaded worker, with an event loop that gives a thread only to complete requests.

A connection costs no thread while its TLS handshake, its request head or its body is incomplete, while it is idle, and while
its client has the response and has not closed yet. The design is described in `docs/decisions/0015-slow-clients.md`."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import resource
import select
import selectors
import signal
import socket
import ssl
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from gunicorn import sock as gunicorn_sockets
from gunicorn.http.errors import UnsupportedTransferCoding
from gunicorn.http.unreader import IterUnreader
from gunicorn.http.wsgi import create as create_environ
from gunicorn.util import write_nonblock
from gunicorn.workers.gthread import ThreadWorker

from api import body_limit, in_networks
from api.connection import BODY_IDLE_TIMEOUT_S, BODY_TOTAL_TIMEOUT_S
from errors import (
    BodyTimeout,
    EaselError,
    HeadTimeout,
    InvalidRequest,
    QueueFull,
    ServerStopping,
    TooManyConnections,
)
from server.connection import Connection, EaselRequest, Phase
from server.framing import MAX_HEAD_BYTES
from server.responses import PageRecorder, error_bytes
from system_errors import shortage_in, write_error

HEAD_TIMEOUT_S = 10.0
"""Maximum time for a TLS handshake, and again for the head of a request; it is not extended by data that arrives"""
CLOSE_TIMEOUT_S = 2.0
"""How long a connection whose response was sent is read, so that the client gets the response before the connection ends"""
STOP_CLOSE_TIMEOUT_S = 0.5
"""The same while the worker stops"""
ORPHAN_TIMEOUT_S = 0.8
"""How long a worker whose master died waits until its requests have ended"""
BLOCKED_SEND_TIMEOUT_S = 1.0
"""How long a client may not read its response while other requests wait for a thread"""
STOP_SEND_TIMEOUT_S = 5.0
"""The same while the worker stops"""
STOP_HEAD_TIMEOUT_S = 1.0
"""How long a connection that has sent nothing yet may take, after the stop has begun, until its request is complete: it may
have been accepted just before, and to close it would look like a crash to its client"""
CHECK_DELAY_S = 0.1
"""How long a small body may be incomplete before the application is asked whether it refuses the request anyway"""
MIN_CONNECTIONS = 16
MAX_CONNECTIONS = 8192
MAX_OPEN_FILES = 1_048_576
"""Linux's default for the highest limit that a process may set"""
MAX_READING_SHARE = 0.25
"""Of the threads: so many may read a body that cannot be stored on disk, however slowly it arrives"""
MAX_BUFFERED_BODIES = 16
"""Of the largest size, per worker: more data of requests that are not complete is refused"""
_READ_SIZE = 256 * 1024
_MAX_READS = 4
"""From one connection, before others get their turn"""
_ACCEPT_PAUSE_S = 0.05
_SHORTAGE_LOG_INTERVAL_S = 60.0
_BLOCKED_CHECK_S = 0.25
_NOTIFY_INTERVAL_S = 1.0
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_IDLE_PHASES = (Phase.IDLE, Phase.HANDSHAKE, Phase.HEAD)
_NO_RESOURCES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_STOP_SIGNALS = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGQUIT})


def raise_file_limit() -> int:
    """Raise the number of files that this process may open as far as it may, and return it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = MAX_OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, MAX_OPEN_FILES)
    if soft == resource.RLIM_INFINITY or soft >= limit:
        return limit
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
        return limit
    return soft


def max_connections(file_limit: int, threads: int) -> int:
    """How many connections a worker may keep open: each may need a second file for its body, and a thread needs some for
    its picture; an LLM stream needs two, for the upstream and its lease. At most half of the files are kept for the
    threads, few of which draw at the same time."""
    reserved = min(64 + 4 * threads, file_limit // 2)
    return max(MIN_CONNECTIONS, min(MAX_CONNECTIONS, (file_limit - reserved) // 2))


def block_stop_signals_until_forked() -> None:
    """Call it in the master before it forks a worker. Until the worker has its own signal handlers it has the master's,
    which would swallow a SIGTERM: the worker would run on until it is killed after `graceful_timeout`."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)


def _unblock_stop_signals() -> None:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOP_SIGNALS)


os.register_at_fork(after_in_parent=_unblock_stop_signals)


class _MasterPipe:
    """A pipe that only the master keeps open for writing: its workers see the end of it when the master has died."""

    def __init__(self) -> None:
        self._ends: tuple[int, int] | None = None

    def open(self) -> None:
        """Call it in the master, before each fork."""
        if self._ends is None:
            self._ends = os.pipe()

    def reading_end(self) -> int:
        """Call it in the worker, once."""
        assert self._ends is not None, "open() was not called in the master"
        os.close(self._ends[1])
        return self._ends[0]


_master_pipe = _MasterPipe()


class _ThreadPool(ThreadPoolExecutor):
    """If the system gives no more threads, those that run handle the request later."""

    def _adjust_thread_count(self) -> None:
        try:
            super()._adjust_thread_count()
        except RuntimeError:
            if not any(thread.is_alive() for thread in self._threads):
                raise


class EaselWorker(ThreadWorker):
    """gunicorn parses and judges the requests; only when a thread gets them is decided here, and HTML error pages become
    JSON."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)  # in the master
        _master_pipe.open()

    def get_thread_pool(self) -> ThreadPoolExecutor:
        """gunicorn's name for: create the threads that handle requests."""
        return _ThreadPool(max_workers=self.cfg.threads)

    @classmethod
    def check_config(cls, cfg: Any, log: Any) -> None:
        """gunicorn would warn if there are more threads than connections, which does not matter here."""

    # --- start and stop ----------------------------------------------------------------------------

    def init_process(self) -> None:
        """Runs in the worker process until it stops."""
        self._waiting: dict[Phase, dict[Connection, None]] = {phase: {} for phase in Phase}
        """Ordered by their deadlines: all connections of a phase have the same time, counted from when they were added"""
        self._unchecked: dict[Connection, float] = {}
        """When the application is asked whether it wants their bodies"""
        self._per_client: Counter[str] = Counter()
        self._buffer = memoryview(bytearray(_READ_SIZE))
        self._buffered_bytes = 0
        self._next_shortage_log: dict[str, float] = {}
        self._next_blocked_check = self._next_notify = 0.0
        self._handled: set[Connection] = set()
        """Connections that were given to a thread, or wait for one"""
        self._reading: set[Connection] = set()
        """Those whose thread reads the body, because it could not be stored"""
        self._blocked: dict[Connection, float] = {}
        """Those whose clients do not read, and since when; only while requests wait for a thread"""
        self._is_orphan = False
        self._accept_at = 0.0
        self._unstarted: list[tuple[str, Callable[[], object]]] = []
        """Threads that this process needs and that the system did not give so far: name and how to start it"""
        self._tls = gunicorn_sockets.ssl_context(self.cfg) if self.cfg.is_ssl else None
        super().init_process()

    def init_signals(self) -> None:
        """Install the handlers, then unblock the stop signals that arrived since the fork."""
        super().init_signals()
        _unblock_stop_signals()

    def handle_quit(self, sig: int, frame: Any) -> None:
        """Stop without waiting for requests: the process ends when its threads have, so none may be blocked."""
        for conn in _not_writable(tuple(self._handled)):
            _cut(conn)
        super().handle_quit(sig, frame)

    def load_wsgi(self) -> None:
        """Load the application and what it says about connections."""
        super().load_wsgi()
        settings = self.wsgi.extensions["easel"].settings  # type: ignore[attr-defined]
        self._max_per_client: int = settings["max_client_connections"]
        self._is_proxy = in_networks(settings["trusted_proxies"])
        # Not the application's MAX_CONTENT_LENGTH, which is for the routes without images.
        self._max_buffered_bytes = int(MAX_BUFFERED_BODIES * settings["max_request_mb"] * 1_000_000)

    def run(self) -> None:
        """Handle events until a signal stops the worker or its master dies; then end what is running."""
        wake_up: Any = self.method_queue
        self.poller.register(wake_up.fileno(), selectors.EVENT_READ, wake_up.run_callbacks)
        self.poller.register(_master_pipe.reading_end(), selectors.EVENT_READ, self._end_with_master)
        while self.alive:
            self.notify()
            pause_s = self._accept_at - time.monotonic()
            if self.nr_conns >= self.worker_connections:
                self._make_room()
            self.set_accept_enabled(self.nr_conns < self.worker_connections and pause_s <= 0)
            self._handle_events(pause_s if pause_s > 0 else 1.0)
        self._begin_stop()
        deadline = time.monotonic() + (ORPHAN_TIMEOUT_S if self._is_orphan else self.cfg.graceful_timeout)
        new_until = time.monotonic() + STOP_HEAD_TIMEOUT_S
        while self.nr_conns > 0 and time.monotonic() < deadline:
            self.notify()
            self._handle_events(0.1)
            if time.monotonic() >= new_until:
                self._refuse_incomplete()
        if self._is_orphan:
            # Threads that still run would keep the process.
            os._exit(1)
        self.tpool.shutdown(wait=False)

    def notify(self) -> None:
        """Tell the master that this worker lives, for which gunicorn writes to a file; once a second is enough."""
        if (now := time.monotonic()) >= self._next_notify:
            self._next_notify = now + _NOTIFY_INTERVAL_S
            super().notify()
            self._start_threads()

    def keep_trying(self, name: str, start: Callable[[], object]) -> None:
        """Call `start`, which starts the thread `name`; if the system gives no more threads now, again every second. A
        worker that ended instead would take the whole server with it, because gunicorn stops if one fails to start."""
        if not self._can_start(name, start):
            self._unstarted.append((name, start))

    def _start_threads(self) -> None:
        for entry in tuple(self._unstarted):
            if self._can_start(*entry):
                self._unstarted.remove(entry)
                self.log.info("The thread %s has started.", entry[0])

    def _can_start(self, name: str, start: Callable[[], object]) -> bool:
        try:
            start()
        except (MemoryError, RuntimeError) as error:
            if shortage_in(error) is None:
                raise
            self._log_shortage(f"The thread {name} cannot be started, will retry: %s", error)
            return False
        return True

    def _handle_events(self, timeout_s: float = 1.0) -> None:
        if self._unchecked:
            timeout_s = min(timeout_s, CHECK_DELAY_S)
        if self._blocked:
            timeout_s = min(timeout_s, _BLOCKED_CHECK_S)
        self.wait_for_and_dispatch_events(timeout=timeout_s)
        self._close_expired()
        self._cut_blocked_responses()

    def _end_with_master(self, _: Any) -> None:
        """The master has died: free its port, cancel the running jobs, and end."""
        self.log.error("The master process has died; worker %s ends.", self.pid)
        self._is_orphan, self.alive = True, False
        self.cfg.worker_int(self)

    def _begin_stop(self) -> None:
        """Close the listeners and every connection without a complete request, but give new ones a moment."""
        self.set_accept_enabled(False)
        for listener in self.sockets:
            listener.close()
        self._refuse_incomplete(spares_new=not self._is_orphan)
        for conn in self._waiting[Phase.CLOSING]:
            conn.deadline = min(conn.deadline, time.monotonic() + STOP_CLOSE_TIMEOUT_S)

    def _refuse_incomplete(self, *, spares_new: bool = False) -> None:
        for phase in (Phase.IDLE, Phase.HEAD, Phase.BODY, Phase.HANDSHAKE):
            for conn in list(self._waiting[phase]):
                # A request may have arrived on a kept connection while the loop was busy.
                self._guarded(self._on_ready, conn)
                is_new = conn.phase is Phase.HEAD and not conn.received.size
                if conn.phase in (*_IDLE_PHASES, Phase.BODY) and not (spares_new and is_new):
                    self._guarded(self._refuse_stopping, conn)

    def _refuse_stopping(self, conn: Connection) -> None:
        if conn.received.size:
            self._refuse(conn, ServerStopping("The server is stopping."))
        else:
            self._close(conn)

    # --- new connections ---------------------------------------------------------------------------

    def accept(self, listener: Any) -> None:
        """Accept a connection and read what has arrived."""
        try:
            sock, client = listener.accept()
        except OSError as error:
            if error.errno in _NO_RESOURCES:
                self._pause_accepting(error)
            return
        folders = (self.cfg.tmp_upload_dir, None)
        try:
            conn = Connection(self.cfg, sock, client, listener.getsockname(), folders)
        except (MemoryError, OSError) as error:
            sock.close()
            self._pause_accepting(error)
            return
        self.nr_conns += 1
        if self.nr_conns >= self.worker_connections:
            self._make_room()
        self._guarded(self._greet, conn)

    def _pause_accepting(self, error: Exception) -> None:
        """Too many files are open, or there is too little memory. The next connections wait in the backlog; meanwhile
        the loop serves those that it has, whose end is what helps."""
        self._log_shortage("Connections cannot be accepted at the moment: %s", error)
        self._make_room()
        self._accept_at = time.monotonic() + _ACCEPT_PAUSE_S

    def _log_shortage(self, message: str, error: Exception) -> None:
        """It may happen for every connection."""
        if time.monotonic() >= self._next_shortage_log.get(message, 0):
            self._next_shortage_log[message] = time.monotonic() + _SHORTAGE_LOG_INTERVAL_S
            self.log.error(message, error)

    def _greet(self, conn: Connection) -> None:
        address = _address(conn.client)
        if self._tls is not None:
            conn.sock = self._tls.wrap_socket(
                conn.sock,
                server_side=True,
                suppress_ragged_eofs=self.cfg.suppress_ragged_eofs,
                do_handshake_on_connect=False,
            )
            self._wait(conn, Phase.HANDSHAKE, HEAD_TIMEOUT_S)
        else:
            conn.start_parser()
        # The client of a Unix socket is a proxy, too.
        is_exempt = not self._max_per_client or not address or self._is_proxy(address)
        if not is_exempt and self._per_client[address] >= self._max_per_client:
            message = f"{address or 'This client'} already has {self._max_per_client} connections open."
            self._refuse(conn, TooManyConnections(message))
            return
        self._per_client[address] += 1
        conn.is_counted = True
        if self._tls is None:
            self._wait(conn, Phase.HEAD, HEAD_TIMEOUT_S)
            self._read(conn)

    def _make_room(self) -> bool:
        """Close the connection that has waited longest without a complete head. If there is none, refuse the body that has
        not grown for the longest time, to close its connection at the next call. Never one whose request is complete.
        Whether there was such a connection."""
        closing = list(itertools.islice(self._waiting[Phase.CLOSING], 1))
        idle = [conn for phase in _IDLE_PHASES for conn in itertools.islice(self._waiting[phase], 1)]
        if oldest := closing or idle:
            self._close(min(oldest, key=lambda conn: conn.since))
            return True
        for conn in itertools.islice(self._waiting[Phase.BODY], 1):
            self._guarded(self._refuse_body, conn)
            return True
        return False

    def _refuse_body(self, conn: Connection) -> None:
        message = "Too many requests send their bodies at the same time."
        self._refuse(conn, QueueFull(message, retry_after_s=5))

    # --- reading -----------------------------------------------------------------------------------

    def _on_ready(self, conn: Connection) -> None:
        if conn.phase is Phase.HANDSHAKE:
            self._continue_handshake(conn)
        elif conn.phase is Phase.CLOSING:
            self._drain(conn)
        elif conn.phase is not None:
            self._read(conn)

    def _continue_handshake(self, conn: Connection) -> None:
        try:
            phase = conn.handshake()
        except ssl.SSLWantReadError:
            self._watch(conn, selectors.EVENT_READ)
        except ssl.SSLWantWriteError:
            self._watch(conn, selectors.EVENT_WRITE)
        else:
            self._wait(conn, phase, HEAD_TIMEOUT_S)
            self._read(conn)

    def _read(self, conn: Connection) -> None:
        """Take what has arrived and decide what happens next."""
        reads = 0
        while reads < _MAX_READS or conn.has_pending_data:
            reads += 1
            count = conn.receive(self._buffer)
            if count is None:
                return
            if count == 0:
                self._end_of_stream(conn)
                return
            if conn.phase is Phase.IDLE:
                self._wait(conn, Phase.HEAD, HEAD_TIMEOUT_S)
            self._add(conn, self._buffer[:count])
            if conn.phase not in (Phase.HEAD, Phase.BODY):
                return
            if count < len(self._buffer) and not conn.has_pending_data:
                return

    def _end_of_stream(self, conn: Connection) -> None:
        if conn.phase is Phase.BODY:
            # The client may have closed for writing only: it gets the answer to an incomplete body.
            self._hand_over(conn)
        else:
            self._close(conn)

    def _add(self, conn: Connection, data: memoryview | bytes) -> None:
        try:
            conn.add(data)
        except OSError as error:
            self._log_shortage("A request body cannot be buffered on disk: %s", error)
            if len(self._reading) < self.cfg.threads * MAX_READING_SHARE:
                self._hand_over(conn, reads_socket=True)
            else:
                self._refuse(conn, write_error(error, "the folder for incomplete requests"))
            return
        if conn.phase is Phase.BODY:
            self._count(conn, len(data))
        self._advance(conn)

    def _advance(self, conn: Connection) -> None:
        """Hand the request over if it is complete or will be refused; otherwise wait for more of it."""
        if max(conn.head_size, conn.received.size if conn.body is None else 0) > MAX_HEAD_BYTES:
            message = f"The head of the request is larger than {MAX_HEAD_BYTES} bytes."
            self._refuse(conn, InvalidRequest(message), 431)
        elif conn.body is None:
            pass  # the head's deadline runs
        elif conn.is_complete:
            self._hand_over(conn)
        elif conn.phase is Phase.HEAD:
            self._begin_body(conn)
        elif time.monotonic() > conn.last_body_deadline:
            self._refuse(conn, BodyTimeout(f"The body did not arrive within {BODY_TOTAL_TIMEOUT_S:g} s."))
        elif conn.body.size > conn.body_limit:
            self._hand_over(conn)  # the application says that it is too large
        elif self._buffered_bytes > self._max_buffered_bytes:
            self._refuse_body(conn)
        else:
            self._wait(conn, Phase.BODY, BODY_IDLE_TIMEOUT_S)

    def _begin_body(self, conn: Connection) -> None:
        conn.last_body_deadline = time.monotonic() + BODY_TOTAL_TIMEOUT_S
        conn.body_limit = sys.maxsize
        self._count(conn, conn.received.size)
        self._wait(conn, Phase.BODY, BODY_IDLE_TIMEOUT_S)
        if conn.is_small:
            # Most clients send the head and a small body one right after the other: the check would only cost time.
            self._unchecked[conn] = conn.since + CHECK_DELAY_S
        else:
            self._check_body(conn)

    def _check_body(self, conn: Connection) -> None:
        """Let the application refuse the request without its body."""
        self._unchecked.pop(conn, None)
        limit, expects_continue = self._check_head(conn)
        if limit is None or conn.body is None or conn.body.size > limit:
            self._hand_over(conn)
            return
        conn.body_limit = limit
        if expects_continue and conn.received.size == conn.head_size:
            conn.sock.send(_CONTINUE)

    def _check_head(self, conn: Connection) -> tuple[int | None, bool]:
        """The largest body that the application accepts, None if it refuses the request; and whether the client waits
        before it sends the body."""
        try:
            head = bytes(conn.received.memory[: conn.head_size])
            request = EaselRequest(self.cfg, IterUnreader([head]), conn.client)
            expects_continue, request._expected_100_continue = request._expected_100_continue, False  # type: ignore[attr-defined]
            _, environ = create_environ(request, conn.sock, conn.client, conn.server, self.cfg)
            return body_limit(self.wsgi, environ), expects_continue  # type: ignore[arg-type]
        except Exception as error:
            self.log.debug("The request is refused: %s", error)
            return None, False

    # --- threads -----------------------------------------------------------------------------------

    def _hand_over(self, conn: Connection, *, reads_socket: bool = False) -> None:
        """Let a thread handle the request."""
        self._release(conn)
        self._unwatch(conn)
        conn.hand_over(reads_socket=reads_socket)
        self._handled.add(conn)
        if reads_socket:
            self._reading.add(conn)
        self.enqueue_req(conn)

    def _cut_blocked_responses(self) -> None:
        """If requests wait for a thread, or the worker stops, cut the responses that their clients do not read: each blocks
        a thread, for SEND_TIMEOUT_S otherwise."""
        waiting = len(self._handled) - (self.cfg.threads if self.alive else 0)
        if waiting <= 0:
            self._blocked = {}
            return
        now = time.monotonic()
        if now < self._next_blocked_check:
            return
        self._next_blocked_check = now + _BLOCKED_CHECK_S
        self._blocked = {conn: self._blocked.get(conn, now) for conn in _not_writable(self._handled)}
        timeout_s = BLOCKED_SEND_TIMEOUT_S if self.alive else STOP_SEND_TIMEOUT_S
        for conn in sorted(self._blocked, key=self._blocked.__getitem__)[:waiting]:
            if now - self._blocked[conn] >= timeout_s:
                _cut(conn)

    def finish_request(self, conn: Connection, fs: Any) -> None:  # type: ignore[override]
        """A thread has handled the request: read the next one, or close."""
        self._handled.discard(conn)
        self._reading.discard(conn)
        try:
            is_kept = bool(fs.result()) if not fs.cancelled() else False
        except Exception:
            is_kept = False
        self._guarded(self._keep if is_kept else self._begin_close, conn)

    def _keep(self, conn: Connection) -> None:
        conn.sock.setblocking(False)
        rest = conn.take_rest()
        conn.start_request(b"")
        if not self.alive and not rest:
            self._begin_close(conn)
        elif rest:
            self._wait(conn, Phase.HEAD, HEAD_TIMEOUT_S)
            self._add(conn, rest)
            if not self.alive and conn.phase in (Phase.HEAD, Phase.BODY):
                self._refuse_stopping(conn)
        else:
            self._wait(conn, Phase.IDLE, self.cfg.keepalive)
            if conn.has_pending_data:
                self._read(conn)

    def handle_error(self, req: Any, client: Any, addr: Any, exc: BaseException) -> None:
        """Send the JSON envelope if a request could not be parsed or its handling raised."""
        if isinstance(exc, UnsupportedTransferCoding):
            # gunicorn's status for it, 501, would mean that another server might accept it.
            message = (
                f"Transfer-Encoding {exc.hdr!r} is not supported; send `chunked` alone, or a Content-Length."
            )
            self.log.warning("Invalid request from ip=%s: %s", _address(addr), message)
            response = error_bytes(InvalidRequest(message))
        elif shortage := shortage_in(exc):
            self.log.error("A request was refused: %s", exc)
            response = error_bytes(shortage)
        else:
            recorder: Any = PageRecorder()
            super().handle_error(req, recorder, addr, exc)
            response = recorder.as_json()
        try:
            write_nonblock(client, response)
        except OSError:
            self.log.debug("The client has disconnected; the error was not sent.")

    # --- closing -----------------------------------------------------------------------------------

    def _refuse(self, conn: Connection, error: EaselError, status: int | None = None) -> None:
        """Answer without the application, and close. The response fits the socket's buffer, or the client gets none."""
        self._release(conn)
        if conn.phase is not Phase.HANDSHAKE:
            conn.sock.setblocking(False)
            conn.sock.send(error_bytes(error, status))
        self._begin_close(conn)

    def _begin_close(self, conn: Connection) -> None:
        """Close for writing, and read until the client closes too: closing at once could destroy the response on its
        way."""
        conn.start_request(b"")
        conn.sock.setblocking(False)
        conn.sock.shutdown(socket.SHUT_WR)
        self._wait(conn, Phase.CLOSING, CLOSE_TIMEOUT_S if self.alive else STOP_CLOSE_TIMEOUT_S)
        self._drain(conn)

    def _drain(self, conn: Connection) -> None:
        for _ in range(_MAX_READS):
            count = conn.receive(self._buffer)
            if count is None:
                return
            if count == 0:
                self._close(conn)
                return

    def _close_expired(self) -> None:
        now = time.monotonic()
        while self._unchecked and (conn := next(iter(self._unchecked))) and self._unchecked[conn] <= now:
            self._guarded(self._check_body, conn)
        for phase in Phase:
            waiting = self._waiting[phase]
            while waiting and (conn := next(iter(waiting))).deadline <= now:
                self._guarded(self._expire, conn)

    def _expire(self, conn: Connection) -> None:
        if conn.phase is Phase.HEAD and conn.received.size:
            message = f"The head of the request did not arrive within {HEAD_TIMEOUT_S:g} s."
            self._refuse(conn, HeadTimeout(message))
        elif conn.phase is Phase.BODY:
            message = f"The body is not complete, and no data arrived for {BODY_IDLE_TIMEOUT_S:g} s."
            self._refuse(conn, BodyTimeout(message))
        else:
            self._close(conn)

    def _close(self, conn: Connection) -> None:
        if conn.is_closed:
            return
        conn.is_closed = True
        self._release(conn)
        self._unwatch(conn)
        conn.received.close()
        conn.close()
        self.nr_conns -= 1
        if conn.is_counted:
            address = _address(conn.client)
            self._per_client[address] -= 1
            if self._per_client[address] <= 0:
                del self._per_client[address]

    # --- bookkeeping -------------------------------------------------------------------------------

    def _guarded(self, action: Any, conn: Connection) -> None:
        """Call `action`; an error ends this connection and nothing else. A client whose request met a shortage of this
        server gets its name."""
        try:
            action(conn)
        except Exception as error:
            shortage = shortage_in(error)
            if shortage is not None:
                self.log.error("A request was refused: %s", error)
            elif not isinstance(error, OSError):
                self.log.exception("A connection failed.")
            with contextlib.suppress(Exception):
                if shortage is not None and conn.received.size and conn.phase is not Phase.CLOSING:
                    self._refuse(conn, shortage)
                    return
            with contextlib.suppress(Exception):
                self._close(conn)

    def _wait(self, conn: Connection, phase: Phase, timeout_s: float) -> None:
        if conn.phase is not None:
            self._waiting[conn.phase].pop(conn, None)
        conn.phase = phase
        conn.since = time.monotonic()
        conn.deadline = conn.since + timeout_s
        self._waiting[phase][conn] = None
        self._watch(conn, selectors.EVENT_READ)

    def _watch(self, conn: Connection, events: int) -> None:
        callback = partial(lambda conn, _: self._guarded(self._on_ready, conn), conn)
        if not conn.events:
            self.poller.register(conn.sock, events, callback)
        elif conn.events != events:
            self.poller.modify(conn.sock, events, callback)
        conn.events = events

    def _unwatch(self, conn: Connection) -> None:
        if conn.phase is not None:
            self._waiting[conn.phase].pop(conn, None)
            self._unchecked.pop(conn, None)
            conn.phase = None
        if conn.events:
            conn.events = 0
            with contextlib.suppress(OSError, KeyError, ValueError):
                self.poller.unregister(conn.sock)

    def _count(self, conn: Connection, size: int) -> None:
        conn.counted_bytes += size
        self._buffered_bytes += size

    def _release(self, conn: Connection) -> None:
        """The bytes of an incomplete request no longer count."""
        self._buffered_bytes -= conn.counted_bytes
        conn.counted_bytes = 0


def _address(client: Any) -> str:
    """The client's IP address; empty for a Unix socket."""
    return str(client[0]) if isinstance(client, tuple) else ""


def _cut(conn: Connection) -> None:
    """End the sending that a thread is blocked in."""
    # The method of the plain socket: the thread uses the TLS layer.
    with contextlib.suppress(OSError):
        socket.socket.shutdown(conn.sock, socket.SHUT_RDWR)


def _not_writable(connections: Iterable[Connection]) -> list[Connection]:
    """Those with a full send buffer."""
    poll = select.poll()
    by_descriptor = {}
    for conn in connections:
        descriptor = conn.sock.fileno()
        if descriptor >= 0:  # a thread may have closed it
            poll.register(descriptor, select.POLLOUT)
            by_descriptor[descriptor] = conn
    for descriptor, _ in poll.poll(0):
        del by_descriptor[descriptor]
    return list(by_descriptor.values())
