"""What is said when Redis, or what is in it, cannot be used."""

from __future__ import annotations

import contextlib
import socket
import threading

import pytest

from cluster.dispatcher import _entries
from cluster.options import ClusterOptions
from cluster.placing import WaitingJob
from cluster.redis_connection import connect, redis_errors
from errors import ClusterUnreachable
from tests.cluster.running_hosts import KEY


def test_a_failure_of_tls_is_told_from_a_redis_that_is_away() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]

        def refuse() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listening.accept()
                    with connection:
                        connection.sendall(b"-ERR this is not TLS\r\n")

        threading.Thread(target=refuse, daemon=True).start()
        client = connect(ClusterOptions(f"rediss://127.0.0.1:{port}/0", KEY.encode(), "one"))
        with pytest.raises(ClusterUnreachable, match="TLS with Redis fails: "), redis_errors():
            client.ping()
        listening.shutdown(socket.SHUT_RDWR)
    away = connect(ClusterOptions(f"redis://127.0.0.1:{port}/0", KEY.encode(), "one"))
    with pytest.raises(ClusterUnreachable, match="does not answer"), redis_errors():
        away.ping()


def test_an_entry_that_is_none_is_named_once_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(3):
        assert _entries({b"an entry of this test": b"[1,2"}, WaitingJob.read) == []
    assert caplog.text.count("an entry of this test") == 1
