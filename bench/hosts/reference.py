"""What each job of a run must look like: drawn by an Easel without a cluster, with an engine of its own."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence

import requests

from bench.clients import session
from bench.hosts.clients import pixels_digest_of, request_body
from bench.hosts.ledger import Job
from bench.hosts.programs import Engine, copy_sources, free_port
from bench.server import Server
from scratch_folder import ScratchFolder

_THREADS = 4


def reference_digests(jobs: Sequence[Job], size: int) -> dict[int, str]:
    """The digest of the pixels by the index of the job. Raises RuntimeError if one cannot be drawn."""
    engine = Engine(0, free_port())
    engine.start()
    try:
        with ScratchFolder("easel-bench-reference-") as folder:
            sources = copy_sources(folder)
            catalogue, templates = sources.catalogue, sources.templates
            with Server(engine_url=engine.url, catalogue=catalogue, templates=templates) as server:
                return _draw_all(server.url, jobs, size)
    finally:
        engine.stop()


def _draw_all(url: str, jobs: Sequence[Job], size: int) -> dict[int, str]:
    waiting, digests, errors = deque(jobs), dict[int, str](), list[Exception]()

    def work() -> None:
        with session() as http:
            while not errors:
                try:
                    job = waiting.popleft()
                except IndexError:
                    return
                try:
                    digests[job.index] = _draw(http, url, job, size)
                except Exception as error:
                    errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(_THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise RuntimeError(f"the reference picture could not be drawn: {errors[0]!r}") from errors[0]
    return digests


def _draw(http: requests.Session, url: str, job: Job, size: int) -> str:
    response = http.post(f"{url}/v1/images/generations", json=request_body(job, size), timeout=120)
    response.raise_for_status()
    return pixels_digest_of(response.json())
