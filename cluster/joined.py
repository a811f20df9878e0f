"""Joins a process that waits for pictures to the hosts that draw them."""

from __future__ import annotations

import time
from collections.abc import Callable

from arbiter import Arbiter
from cluster.celery_app import task_sender
from cluster.front import Front
from cluster.options import ClusterOptions
from cluster.remote_runs import ClusterHosts


def join_hosts(options: ClusterOptions, requests: Arbiter, need_bytes: Callable[[str], int]) -> ClusterHosts:
    """Connects when it is first used. `requests`: lists the requests of this host. `need_bytes`: the GPU memory that a model
    needs, 0 if that is not known."""
    return ClusterHosts(Front(options, task_sender(options), need_bytes), requests, time.monotonic)
