"""The HTTP session for the servers that the owner configured. The jobs of ComfyUI have `http_connections`."""

from __future__ import annotations

import socket
from typing import Any

import requests
from requests.adapters import HTTPAdapter
from urllib3 import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import (
    ConnectTimeoutError,
    NameResolutionError,
    NewConnectionError,
)
from urllib3.util.ssl_ import create_urllib3_context

from bounded_socket import BoundedTlsSocket, connect


class DirectSession(requests.Session):
    """A `requests.Session` that connects to the given URL and nothing else.

    It ignores proxies, passwords and certificates in the environment, does not follow redirects and does not request
    compression. Every call keeps to the time limit of its thread (see `deadline`), from connecting to the last byte of
    the body.
    """

    def __init__(self) -> None:
        super().__init__()
        self.trust_env = False
        self.headers = requests.structures.CaseInsensitiveDict(
            {"User-Agent": "easel", "Accept-Encoding": "identity"}
        )
        for scheme in ("http://", "https://"):
            self.mount(scheme, _Adapter())

    def get_redirect_target(self, response: requests.Response) -> None:
        """No response is a redirect to follow. Without this, requests would read the target, which may be malformed, and
        the whole body."""


class _BoundedConnection:
    """For urllib3's connection classes: a socket that keeps to the time limit"""

    def _new_conn(self) -> socket.socket:
        connection: Any = self
        try:
            return connect(connection._dns_host, connection.port, connection.timeout)
        except socket.gaierror as error:
            raise NameResolutionError(connection.host, connection, error) from error
        except TimeoutError as error:
            raise ConnectTimeoutError(connection, f"connecting to {connection.host} timed out") from error
        except OSError as error:
            raise NewConnectionError(connection, f"Failed to establish a connection: {error}") from error


class _Connection(_BoundedConnection, HTTPConnection):
    pass


class _TlsConnection(_BoundedConnection, HTTPSConnection):
    def connect(self) -> None:
        if self.ssl_context is None:
            self.ssl_context = create_urllib3_context()
        self.ssl_context.sslsocket_class = BoundedTlsSocket
        super().connect()


class _Pool(HTTPConnectionPool):
    ConnectionCls = _Connection


class _TlsPool(HTTPSConnectionPool):
    ConnectionCls = _TlsConnection


class _Adapter(HTTPAdapter):
    def init_poolmanager(self, *args: Any, **options: Any) -> None:
        super().init_poolmanager(*args, **options)
        self.poolmanager.pool_classes_by_scheme = {"http": _Pool, "https": _TlsPool}
