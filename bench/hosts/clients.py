"""Clients that send each request until it is answered, as a careful program does: again after a lost connection, a 5xx or
a 429, with the same seed and prompt."""

from __future__ import annotations

import base64
import hashlib
import io
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import requests
from PIL import Image

from bench.clients import session
from bench.hosts.ledger import Answer, Job, Ledger

SIZE = 256
REQUEST_TIMEOUT_S = 60.0
GIVE_UP_S = 180.0
_MAX_PAUSE_S = 1.0


@dataclass(frozen=True)
class Clients:
    """`urls`: of the front ends; a request that failed goes to the next one. `jobs` yields the jobs; `may_end` is asked
    before each one. `size`: side of the pictures, in pixels."""

    urls: Sequence[str]
    jobs: Iterator[Job]
    ledger: Ledger
    may_end: Callable[[], bool]
    size: int = SIZE

    def run(self, count: int) -> list[threading.Thread]:
        """Start so many threads and return them. Each works until `may_end`."""
        lock = threading.Lock()
        threads = [threading.Thread(target=self._work, args=(lock, index)) for index in range(count)]
        for thread in threads:
            thread.start()
        return threads

    def _work(self, lock: threading.Lock, first: int) -> None:
        with session() as http:
            while not self.may_end():
                with lock:
                    job = next(self.jobs)
                self.ledger.add_job(job)
                try:
                    self._draw(http, job, first)
                except Exception as error:  # a thread that ends in silence would hide a lost request
                    self.ledger.give_up(job, repr(error))

    def _draw(self, http: requests.Session, job: Job, first: int) -> None:
        began_at = time.monotonic()
        reason, attempt = "", 0
        while time.monotonic() - began_at < GIVE_UP_S:
            url = self.urls[(first + job.index + attempt) % len(self.urls)]
            attempt += 1
            try:
                response = self._send(http, url, job, attempt)
            except requests.RequestException as error:
                reason = connection_reason(error)
                self.ledger.add_retry(reason)
                time.sleep(0.1)
                continue
            if response.status_code == 200:
                answer = read_answer(response.json(), request_id(job, attempt), began_at, time.monotonic())
                self.ledger.add_answer(job, answer)
                return
            reason = status_reason(response)
            if not may_retry(response.status_code):
                break
            self.ledger.add_retry(reason)
            time.sleep(pause_s(response.headers.get("Retry-After")))
        self.ledger.give_up(job, f"after {attempt} attempts: {reason}")

    def _send(self, http: requests.Session, url: str, job: Job, attempt: int) -> requests.Response:
        return http.post(
            f"{url}/v1/images/generations",
            json=request_body(job, self.size),
            headers={"X-Request-ID": request_id(job, attempt)},
            timeout=REQUEST_TIMEOUT_S,
        )


def request_body(job: Job, size: int) -> dict[str, Any]:
    return {
        "model": job.model,
        "prompt": job.prompt,
        "seed": job.seed,
        "n": 1,
        "size": f"{size}x{size}",
        "response_format": "b64_json",
    }


def request_id(job: Job, attempt: int) -> str:
    """A new one for each attempt, so that a request that was answered twice is told from one that was sent twice."""
    return f"bench-{job.index}-{attempt}"


def read_answer(document: Any, name: str, began_at: float, ended_at: float) -> Answer:
    """Raises LookupError or OSError if the document has not exactly one picture."""
    about = document["_hal0"]
    redrawn = about.get("redrawn", [])
    ids = {about.get("prompt_id"), *(image.get("prompt_id") for image in about.get("images", []))}
    ids |= {entry.get("prompt_id") for entry in redrawn}
    return Answer(
        request_id=name,
        digest=pixels_digest_of(document),
        prompt_ids=frozenset(each for each in ids if each),
        is_redrawn=bool(redrawn),
        began_at=began_at,
        ended_at=ended_at,
    )


def pixels_digest_of(document: Any) -> str:
    """Of an answer's one picture."""
    (item,) = document["data"]
    return pixels_digest(base64.b64decode(item["b64_json"]))


def pixels_digest(picture: bytes) -> str:
    """Equal for equal pixels, however the file encodes them."""
    with Image.open(io.BytesIO(picture)) as opened:
        image = opened.convert("RGB")
    return hashlib.sha256(repr(image.size).encode() + image.tobytes()).hexdigest()


def may_retry(status: int) -> bool:
    return status == 429 or status >= 500


def pause_s(retry_after: str | None) -> float:
    """What the server asks for, but no longer than a second: the run is to be hard."""
    wanted = float(retry_after) if retry_after and retry_after.isdecimal() else 0.2
    return min(_MAX_PAUSE_S, max(0.1, wanted))


def status_reason(response: requests.Response) -> str:
    """Status and code."""
    try:
        code = response.json()["error"]["code"]
    except (ValueError, LookupError, TypeError):
        code = response.text[:80]
    return f"{response.status_code} {code}"


def connection_reason(error: requests.RequestException) -> str:
    if isinstance(error, requests.Timeout):
        return "timeout"
    return "connection lost" if isinstance(error, requests.ConnectionError) else type(error).__name__
