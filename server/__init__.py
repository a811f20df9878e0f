"""How gunicorn serves Easel: the worker class, and what happens when the server starts and stops."""

from server.hooks import ServerHooks, bind_address

__all__ = ["ServerHooks", "bind_address"]
