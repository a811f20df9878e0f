"""A front end and hosts in the process of a test, joined by a real Redis. What Celery carries is called in a thread."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from arbiter import Arbiter, Sender
from cluster import names
from cluster.front import Front
from cluster.host import Host, LocalRuns
from cluster.host_facts import HostFacts
from cluster.job_documents import JobDocument
from cluster.options import ClusterOptions
from cluster.remote_runs import ClusterHosts
from cluster.sealing import Seal
from compiler import Catalogue, Compiled, ImageRequest, compile_workflow
from engine import Outcome, Picture
from generation import DrawingRecord, JobCallbacks, JobResult, RequestedJobs, TimeLeft, Uploads
from observer import Observer
from tests.cluster.running_hosts import KEY, RedisServer

MODEL = "flux-schnell"
"""Its pictures are jobs of their own"""
Draw = Callable[[JobDocument, Uploads], bytes]


class PlayedSession:
    """An engine."""

    name, uses_gpu, is_sketch = "engine", False, True

    def saving_nodes(self, job: int) -> dict[str, Any]:
        return {}

    def erase_uploads(self) -> None:
        """It keeps none."""


class PlayedRuns:
    """Draws by calling `draw`, which may take as long as it likes and raise what an engine raises."""

    def __init__(self, document: JobDocument, uploads: Uploads, draw: Draw) -> None:
        self._document, self._uploads, self._draw = document, uploads, draw
        self.sessions, self.counts_waiting = (PlayedSession(),), True

    def ended(self, prompt_ids: Sequence[str]) -> None:
        """Its engine saves nothing."""

    def results(
        self, jobs: Sequence[str], callbacks: JobCallbacks, *_: Any, **__: Any
    ) -> Generator[JobResult, None, None]:
        callbacks.on_run()
        picture = Picture(self._draw(self._document, self._uploads), "9", "image/png")
        outcome = Outcome(jobs[0], (picture,), (), 0.0, 0.1, 0.0)
        yield JobResult(outcome, self.sessions[0], 0.0)


class Joined:
    """`draw`: makes the picture of a job on a host. `taken`: the jobs that hosts were given: id, attempt, host."""

    def __init__(self, server: RedisServer, catalogue: Catalogue, folder: Path) -> None:
        self.server, self.catalogue = server, catalogue
        self.options = ClusterOptions(server.url, KEY.encode(), "front")
        self.seal, self.client = Seal(self.options.key), server.client()
        self.front = Front(self.options, self._send)
        self.of_hosts = Arbiter(folder), time.monotonic
        self.hosts = ClusterHosts(self.front, *self.of_hosts)
        self.draw: Draw = lambda document, uploads: document.id.encode()
        self.taken: list[tuple[str, int, str]] = []

    def _send(self, _: str, arguments: list[Any], queue: str) -> None:
        self.take(queue.removeprefix("gpu."), *arguments)

    def take(self, host: str, id: str, attempt: int) -> None:
        """A host gets the task of a job."""
        self.taken.append((id, attempt, host))
        threading.Thread(target=self._host(host).draw, args=(id, attempt), daemon=True).start()

    def _host(self, name: str) -> Host:
        def runs(document: JobDocument, _: Catalogue, uploads: Uploads, __: TimeLeft) -> LocalRuns:
            return cast(LocalRuns, PlayedRuns(document, uploads, self.draw))

        return Host(replace(self.options, name=name), lambda: self.catalogue, runs)

    def add_host(self, name: str, **facts: Any) -> HostFacts:
        """One that stays there."""
        host = HostFacts(name, f"{name}-1", models_mark="m", slots=8, **facts)
        models = {"mark": "m", "models": [MODEL]}
        self.client.set(names.host(name), self.seal.close(names.host(name), host.as_json()))
        self.client.set(names.host_models(name), self.seal.close(names.host_models(name), models))
        self.client.set(names.seen(name), "1")
        self.client.sadd(names.HOSTS, name)
        return host

    def compiled(self, n: int) -> Compiled:
        request = ImageRequest(prompt="a cat", seed=7, id="request", model=MODEL, n=n)
        return compile_workflow(request, self.catalogue)

    def results(
        self, compiled: Compiled, uploads: Uploads, jobs: Sequence[str]
    ) -> Generator[JobResult, None, None]:
        """Those of a request, as they come."""
        time_left = TimeLeft(time.monotonic() + 60, time.monotonic)
        runs = self.hosts.runs(RequestedJobs("request", compiled, self.catalogue, uploads, time_left))
        sender = Sender()
        callbacks = JobCallbacks(*(_ignore for _ in range(4)), cancelled=lambda: False)
        record = DrawingRecord(Observer(), time.monotonic, sender, compiled.plan)
        return runs.results(jobs, callbacks, record, previews=False, sender=sender, prompt="")

    def keys(self, pattern: str) -> list[bytes]:
        return list(self.client.scan_iter(pattern, count=1000))

    def received_bytes(self) -> int:
        """By Redis, in all."""
        return int(cast(Any, self.client.info("stats"))["total_net_input_bytes"])


def _ignore(*_: Any) -> None:
    pass


@contextlib.contextmanager
def joined_in_process(catalogue: Catalogue, folder: Path) -> Iterator[Joined]:
    """Without hosts."""
    (folder / "redis").mkdir()
    server = RedisServer(folder / "redis")
    found = Joined(server, catalogue, folder / "gpu")
    try:
        yield found
    finally:
        found.front.close()
        found.client.close()
        server.kill()
