"""gunicorn's configuration: numbers from the settings, and the hooks of `server/hooks.py`."""

from __future__ import annotations

import sys
from pathlib import Path

# gunicorn reads this file before it puts the project on the path. It would also put the working directory there, which
# may have modules of the same names.
chdir = str(Path(__file__).resolve().parent)
sys.path.insert(0, chdir)

from server import GRACEFUL_TIMEOUT_S, ServerHooks, bind_address, max_connections, raise_file_limit
from wsgi import app

_container = app.extensions["easel"]
_settings = _container.settings
_hooks = ServerHooks(_container)

bind = bind_address(_settings)
workers = _settings["workers"]
# A request that waits for a picture costs one thread and nothing else, hence threads, and many of them.
threads = _settings["threads"]
# More than that, and idle ones are closed. Before the fork, so that the workers inherit the limit of open files.
worker_connections = max_connections(raise_file_limit(), threads)
worker_class = "server.worker.EaselWorker"
# The catalogue is read and checked once, in the master, and the workers share its memory.
preload_app = True
# Seconds without a heartbeat after which a worker is killed; the heartbeat does not wait for requests.
timeout = 60
max_requests = 0
keepalive = 75
graceful_timeout = GRACEFUL_TIMEOUT_S
# Large bodies are kept there until they are complete, as files without names.
tmp_upload_dir = str(_container.state_dir)
# `trusted_proxies` alone decides which X-Forwarded headers are believed.
forwarded_allow_ips = ""
proc_name = "easel"
# gunicorn's control socket would lie in the home directory, and nobody uses it.
control_socket_disable = True
loglevel = _settings["log_level"]
if _settings["log_format"] == "json":
    logger_class = "server.json_logger.JsonLogger"

on_starting = _hooks.on_starting
when_ready = _hooks.when_ready
pre_fork = _hooks.pre_fork
on_exit = _hooks.on_exit
post_worker_init = _hooks.post_worker_init
worker_int = _hooks.worker_int
worker_exit = _hooks.worker_exit
