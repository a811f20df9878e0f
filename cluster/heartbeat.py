"""Tells all others once a second that this host is there, and what it can draw. In the main process of its worker."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import replace

import redis

from cluster import names
from cluster.host_facts import GONE_AFTER_S, HEARTBEAT_S, HostFacts
from cluster.options import ClusterOptions
from cluster.redis_connection import connect, redis_errors
from cluster.sealing import Seal
from errors import ClusterMessageInvalid, EaselError, HostNameTaken

log = logging.getLogger("easel.cluster")
_MODELS_KEPT_S = 60
_REMEMBERED_S = 3600
"""A host that ended without saying so is listed as gone for so long"""


class Heartbeat:
    """`look`: what is known of this host now; it may take seconds. `on_name_taken`: called if another worker has the name.
    `start` and `stop` are for the main thread."""

    def __init__(
        self,
        options: ClusterOptions,
        look: Callable[[], HostFacts],
        on_name_taken: Callable[[], None],
    ) -> None:
        self._options, self._seal, self._look, self._on_name_taken = (
            options,
            Seal(options.key),
            look,
            on_name_taken,
        )
        self.instance = uuid.uuid4().hex
        self._client: redis.Redis = connect(options)
        self._facts = HostFacts(
            options.name, self.instance, problem=("starting", "It starts."), is_checking=True
        )
        self._stored_mark, self._stored_at = "", 0.0
        self._ended = threading.Event()
        self._is_away = False

    def take_name(self) -> None:
        """Raises HostNameTaken if another worker is there with this name, and the errors of Redis."""
        ends_at = time.monotonic() + GONE_AFTER_S + 1
        while (other := self._other()) is not None:
            if time.monotonic() > ends_at:
                raise HostNameTaken(
                    f"Another worker named {self._options.name} is running. Set cluster.name (EASEL_CLUSTER_NAME).",
                    instance=other,
                )
            time.sleep(0.5)  # of one that was killed, the heartbeat ends soon
        self._beat()

    def start(self) -> None:
        """From now on, in threads."""
        for name, run in (("heartbeat", self._beat_for_ever), ("heartbeat-look", self._look_for_ever)):
            threading.Thread(target=run, name=name, daemon=True).start()

    def leave(self) -> None:
        """No jobs from now on: it ends."""
        self._facts = replace(self._facts, problem=("server.stopping", "It is stopping."))
        self._look = lambda: self._facts
        with contextlib.suppress(EaselError):
            self._beat()

    def stop(self) -> None:
        """It has ended."""
        self._ended.set()
        with contextlib.suppress(EaselError), redis_errors():
            if self._other() is None:
                self._client.delete(names.host(self._options.name), names.host_models(self._options.name))
                self._client.srem(names.HOSTS, self._options.name)

    def _other(self) -> str | None:
        """The instance of another worker with this name; None if there is none."""
        key = names.host(self._options.name)
        with redis_errors():
            data = self._client.get(key)
        if not isinstance(data, bytes):
            return None
        try:
            instance = str(self._seal.open(key, data).get("instance"))
        except ClusterMessageInvalid:
            return None  # of another installation, or of nobody
        return instance if instance != self.instance else None

    def _beat(self) -> None:
        facts, name = self._facts, self._options.name
        mark = hashlib.sha256("\n".join(sorted(facts.models)).encode()).hexdigest()[:16]
        facts = replace(facts, models_mark=mark)
        key, models_key = names.host(name), names.host_models(name)
        with redis_errors():
            pipeline = self._client.pipeline(transaction=False)
            if mark != self._stored_mark or time.monotonic() - self._stored_at > _MODELS_KEPT_S / 3:
                models = {"mark": mark, "models": sorted(facts.models)}
                pipeline.set(models_key, self._seal.close(models_key, models), ex=_MODELS_KEPT_S)
            pipeline.set(key, self._seal.close(key, facts.as_json()), px=int(GONE_AFTER_S * 1000))
            pipeline.set(names.seen(name), "1", ex=_REMEMBERED_S)
            pipeline.sadd(names.HOSTS, name)
            pipeline.execute()
            if mark != self._stored_mark or time.monotonic() - self._stored_at > _MODELS_KEPT_S / 3:
                self._stored_mark, self._stored_at = mark, time.monotonic()

    def _beat_for_ever(self) -> None:
        next_at = time.monotonic()
        while not self._ended.wait(max(0.0, next_at - time.monotonic())):
            next_at = time.monotonic() + HEARTBEAT_S
            try:
                if self._other() is not None:
                    log.error(
                        "another worker has the name %s; this one ends. Set cluster.name", self._options.name
                    )
                    self._ended.set()
                    self._on_name_taken()
                    return
                self._beat()
                if self._is_away:
                    log.info("Redis answers again")
                self._is_away = False
            except EaselError as error:
                if not self._is_away:
                    log.error("%s The other hosts do not see this one.", error.message)
                self._is_away, self._stored_mark = True, ""
            except Exception:
                log.exception("the heartbeat failed; it goes on")

    def _look_for_ever(self) -> None:
        while not self._ended.is_set():
            try:
                found = self._look()
                if self._facts.problem[0] != "server.stopping":
                    self._facts = replace(found, name=self._options.name, instance=self.instance)
            except Exception:
                log.exception("looking at the engines failed; it goes on")
            self._ended.wait(HEARTBEAT_S)
