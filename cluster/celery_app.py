"""Celery as it carries jobs to hosts and runs them there. Only this module and celery_*.py beside it know it."""

from __future__ import annotations

import logging
import os
import signal
import ssl
from collections.abc import Callable
from typing import Any

from celery import Celery, signals

from cluster import names
from cluster.celery_pool import PoolSize
from cluster.heartbeat import Heartbeat
from cluster.host import Host
from cluster.options import ClusterOptions
from cluster.redis_connection import redis_errors
from cluster.slots import Slots

log = logging.getLogger("easel.cluster")
_NOT_DELIVERED_AGAIN_S = 7 * 24 * 3600
"""Longer than any job takes: one that still runs would be delivered to another process of its host. The job of a host that
is gone is sent again by whoever waits for it"""


def make_celery(options: ClusterOptions) -> Celery:
    """An application of its own: other Celery applications in the process are not touched."""
    app = Celery("easel", broker=options.broker_url, set_as_current=False, autofinalize=False)
    app.conf.update(
        broker_transport="cluster.celery_transport:Transport",
        task_serializer="json",
        accept_content=["json"],
        task_ignore_result=True,
        task_default_queue="easel",
        # At least once: a job whose process is killed is delivered again.
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        worker_prefetch_multiplier=1,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        # Redis may be started after this host, or again.
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_transport_options={
            "socket_keepalive": True,
            "health_check_interval": 10,
            "visibility_timeout": _NOT_DELIVERED_AGAIN_S,
        },
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
    )
    if options.uses_tls:
        tls: dict[str, Any] = {"ssl_cert_reqs": ssl.CERT_REQUIRED}
        if options.ca_file:
            tls["ssl_ca_certs"] = options.ca_file
        app.conf.broker_use_ssl = tls
    return app


def task_sender(options: ClusterOptions) -> Callable[[str, list[Any], str], None]:
    """Gives Celery a task: name, arguments, queue. Raises the errors of kombu and redis."""
    app = make_celery(options)

    def send(name: str, arguments: list[Any], queue: str) -> None:
        app.send_task(name, args=arguments, queue=queue, retry=False, ignore_result=True)

    return send


def run_worker(
    options: ClusterOptions, make_host: Callable[[], Host], heartbeat: Heartbeat, *, slots: Slots
) -> int:
    """Draw jobs until a signal ends it; returns the exit status. `make_host`: called once in each child. `slots`: how many
    there are. Raises the errors of Redis if it does not let a worker work."""
    app = make_celery(options)
    hosts: list[Host] = []
    leaving: list[bool] = []

    @app.task(name=names.TASK, shared=False, bind=True)  # type: ignore[untyped-decorator]
    def draw(task: Any, id: str, attempt: int) -> None:
        delivery = task.request.delivery_info or {}
        hosts[0].draw(str(id), int(attempt), may_have_run=bool(delivery.get("redelivered")))

    def begin(**_: Any) -> None:
        hosts[:] = [make_host()]

    def ready(**_: Any) -> None:
        heartbeat.start()
        log.info("The host %s is ready.", options.name)

    def leave(**_: Any) -> None:
        # First: the second signal may interrupt this.
        leaving.append(True)
        if len(leaving) > 1:
            # Celery waits for the job that runs, however often it is told to end.
            os.kill(os.getpid(), signal.SIGQUIT)
        heartbeat.leave()

    signals.worker_process_init.connect(begin, weak=False)
    signals.worker_ready.connect(ready, weak=False)
    signals.worker_shutting_down.connect(leave, weak=False)
    app.steps["consumer"].add(type("PoolSizeOfHost", (PoolSize,), {"slots": slots}))
    app.finalize()
    worker = app.Worker(
        hostname=f"easel@{options.name}",
        concurrency=slots.processes,
        pool="prefork",
        queues=[names.queue(options.name)],
        loglevel="WARNING",
        without_gossip=True,
        without_mingle=True,
        # Flower turns them on when it looks.
        task_events=False,
        quiet=True,
    )
    try:
        with redis_errors():
            worker.start()
    finally:
        heartbeat.stop()
    return int(worker.exitcode or 0)
