"""The parts of gunicorn that are no public interface and that `server/` uses. If a test here fails after an update of
gunicorn, read what changed there and adapt `server/worker.py` and `server/connection.py` before anything else."""

from __future__ import annotations

import inspect

import gunicorn
import pytest
from gunicorn import sock, util
from gunicorn.http import message, parser, unreader, wsgi
from gunicorn.workers import base, gthread

CHANGED = "gunicorn changed this internal; adapt server/worker.py and server/connection.py: "


def test_gunicorn_is_the_version_that_the_worker_was_written_for() -> None:
    assert gunicorn.version_info[0] == 27, f"{CHANGED}its major version is {gunicorn.__version__}"


@pytest.mark.parametrize(
    ("function", "parameters"),
    [
        (gthread.TConn.__init__, "self, cfg, sock, client, server"),
        (gthread.TConn.init, "self"),
        (gthread.TConn.close, "self, graceful=False"),
        (gthread.ThreadWorker.accept, "self, listener"),
        (gthread.ThreadWorker.enqueue_req, "self, conn"),
        (gthread.ThreadWorker.finish_request, "self, conn, fs"),
        (gthread.ThreadWorker.handle, "self, conn"),
        (gthread.ThreadWorker.handle_request, "self, req, conn"),
        (gthread.ThreadWorker.handle_exit, "self, sig, frame"),
        (gthread.ThreadWorker.handle_quit, "self, sig, frame"),
        (gthread.ThreadWorker.check_config, "cfg, log"),
        (gthread.ThreadWorker.init_process, "self"),
        (gthread.ThreadWorker.run, "self"),
        (gthread.ThreadWorker.set_accept_enabled, "self, enabled"),
        (gthread.ThreadWorker.wait_for_and_dispatch_events, "self, timeout"),
        (gthread.PollableMethodQueue.run_callbacks, "self, _fileobj, max_callbacks=50"),
        (gthread.PollableMethodQueue.defer, "self, callback, *args"),
        (base.Worker.__init__, "self, age, ppid, sockets, app, timeout, cfg, log"),
        (base.Worker.init_signals, "self"),
        (base.Worker.load_wsgi, "self"),
        (base.Worker.notify, "self"),
        (base.Worker.handle_error, "self, req, client, addr, exc"),
        (message.Request.__init__, "self, cfg, unreader, peer_addr, req_number=1"),
        (message.Request.set_body_reader, "self"),
        (message.Message.force_close, "self"),
        (parser.Parser.__init__, "self, cfg, source, source_addr"),
        (parser.Parser.finish_body, "self, deadline=None, max_bytes=None"),
        (parser.Parser.__next__, "self"),
        (unreader.SocketUnreader.__init__, "self, sock, max_chunk=8192"),
        (unreader.SocketUnreader.chunk, "self, size_hint=None"),
        (unreader.Unreader.take_buffered, "self"),
        (unreader.IterUnreader.__init__, "self, iterable"),
        (wsgi.create, "req, sock, client, server, cfg, response_class=None, response_args=()"),
        (sock.ssl_context, "conf"),
        (util.write_nonblock, "sock, data, chunked=False"),
    ],
)
def test_a_function_has_the_parameters_that_are_used(function: object, parameters: str) -> None:
    signature = str(inspect.signature(function))  # type: ignore[arg-type]
    assert signature == f"({parameters})", f"{CHANGED}{function}"


@pytest.mark.parametrize(
    ("function", "text"),
    [
        # A prepared connection is not prepared again, and its parser is used as it is.
        (gthread.TConn.init, "if self.initialized:"),
        (gthread.ThreadWorker.handle, "if not conn.initialized and not conn.data_ready:"),
        (gthread.ThreadWorker.handle, "req = next(conn.parser)"),
        (gthread.ThreadWorker.enqueue_req, "self.method_queue.defer(self.finish_request, conn, fut)"),
        (gthread.ThreadWorker.handle_request, "if not self.alive or not self.cfg.keepalive:"),
        # The worker counts the connections.
        (gthread.ThreadWorker.__init__, "self.nr_conns = 0"),
        (gthread.ThreadWorker.__init__, "self.worker_connections = self.cfg.worker_connections"),
        # The answer to Expect is sent by the worker.
        (wsgi.create, "if req._expected_100_continue:"),
        (message.Message.__init__, "self._expected_100_continue = False"),
        (message.Message.should_close, "if self.must_close:"),
        # The page that becomes JSON.
        (util.write_error, "<h1><p>%(reason)s</p></h1>"),
    ],
)
def test_gunicorn_still_does_what_the_worker_relies_on(function: object, text: str) -> None:
    assert text in inspect.getsource(function), f"{CHANGED}{function} no longer contains {text!r}"  # type: ignore[arg-type]
