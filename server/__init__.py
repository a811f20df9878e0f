"""How gunicorn serves Easel: the worker class, and what happens when the server starts and stops."""

from server.hooks import GRACEFUL_TIMEOUT_S, ServerHooks, bind_address
from server.worker import max_connections, raise_file_limit

__all__ = ["GRACEFUL_TIMEOUT_S", "ServerHooks", "bind_address", "max_connections", "raise_file_limit"]
