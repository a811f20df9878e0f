"""What the scenes of bad input have in common: requests in the background, and lines that say what happened."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import requests

from bench.clients import session
from bench.hosts.clients import connection_reason, pixels_digest_of, status_reason
from bench.hosts.cluster import Cluster, HostOptions, is_host_ready
from bench.hosts.programs import MODELS, FrontEnd, Host, Program, wait_until

REQUEST_TIMEOUT_S = 120.0
LIMIT_S = 60.0
"""For what should take seconds"""


@dataclass(frozen=True)
class Drawn:
    """How a request ended. `outcome`: "200", a status with its code, or what happened to the connection."""

    outcome: str
    took_s: float
    document: Any = None
    message: str = ""

    @property
    def is_picture(self) -> bool:
        return self.outcome == "200"

    @property
    def digest(self) -> str:
        """Of the pixels; empty without a picture."""
        return pixels_digest_of(self.document) if self.is_picture else ""

    def __str__(self) -> str:
        redrawn = " (drawn again)" if self.is_picture and self.document["_hal0"].get("redrawn") else ""
        return f"{self.outcome} after {self.took_s:.1f} s{redrawn}" + (
            f": {self.message}" if self.message else ""
        )


def draw(front: FrontEnd, seed: int, *, model: str = MODELS[0], size: int = 256, **fields: Any) -> Drawn:
    """One request, without retries."""
    body = {
        "model": model,
        "prompt": "a lighthouse above a calm sea",
        "seed": seed,
        "size": f"{size}x{size}",
        "response_format": "b64_json",
        **fields,
    }
    began_at = time.monotonic()
    try:
        with session() as http:
            response = http.post(f"{front.url}/v1/images/generations", json=body, timeout=REQUEST_TIMEOUT_S)
    except requests.RequestException as error:
        return Drawn(connection_reason(error), time.monotonic() - began_at)
    took_s = time.monotonic() - began_at
    if response.status_code == 200:
        return Drawn("200", took_s, response.json())
    return Drawn(status_reason(response), took_s, message=_message(response))


def _message(response: requests.Response) -> str:
    try:
        return str(response.json()["error"]["message"])[:200]
    except (ValueError, LookupError, TypeError):
        return ""


class Pending:
    """A request that runs in the background: `pending = Pending(lambda: draw(front, 1))`, then `pending.result()`."""

    def __init__(self, ask: Callable[[], Drawn]) -> None:
        self._drawn: Drawn | None = None
        self._thread = threading.Thread(target=self._run, args=(ask,), daemon=True)
        self._thread.start()

    def _run(self, ask: Callable[[], Drawn]) -> None:
        self._drawn = ask()

    def is_done(self) -> bool:
        return not self._thread.is_alive()

    def result(self) -> Drawn:
        self._thread.join(REQUEST_TIMEOUT_S + 10)
        return self._drawn or Drawn("no answer", REQUEST_TIMEOUT_S + 10)


@dataclass
class Scene:
    """One case of bad input. `lines`: what happened. `faults`: what should not have happened."""

    name: str
    options: HostOptions
    libfaketime: str | None = None
    lines: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def say(self, line: str) -> None:
        self.lines.append(line)

    def check(self, promise: str, is_kept: bool, detail: object = "") -> None:
        """A line for what must hold."""
        line = f"{promise}: {'yes' if is_kept else 'NO'}" + (f" ({detail})" if str(detail) else "")
        self.lines.append(line)
        if not is_kept:
            self.faults.append(line)

    def check_drawn(self, what: str, drawn: Drawn) -> Drawn:
        """A line for a request that must be answered with a picture."""
        self.check(f"{what} gives a picture", drawn.is_picture, drawn)
        return drawn

    def wait(self, what: str, condition: Callable[[], bool], program: Program | None, limit_s: float) -> bool:
        """A line for what must become true in time."""
        try:
            took_s = wait_until(condition, what, program, limit_s)
        except RuntimeError as error:
            self.check(what, False, str(error)[:1500])
            return False
        self.check(what, True, f"after {took_s:.1f} s")
        return True

    def say_log(self, program: Program, *words: str, count: int = 3) -> None:
        """The last lines of its log that have one of these words."""
        found = [
            line for line in program.log_tail(400).splitlines() if any(word in line.lower() for word in words)
        ]
        for line in found[-count:] or ["nothing about " + ", ".join(words)]:
            self.say(f"log of {program.name}: {line.strip()[:300]}")

    def cluster(self, **arguments: Any) -> Cluster:
        """A new cluster for this scene."""
        return Cluster(self.options, name=f"bad-{self.name}", **arguments)

    def run(self, play: Callable[[Scene], None]) -> Self:
        """Play it. What fails in it is a fault."""
        try:
            play(self)
        except (RuntimeError, OSError, LookupError, ValueError) as error:
            self.check("the scene could be played to its end", False, repr(error)[:1500])
        return self


def start_and_say(scene: Scene, front: FrontEnd, host: Host, case: str) -> None:
    """For programs that cannot join: what each says."""
    front.start()
    host.start()
    time.sleep(8)
    for program in (front, host):
        state = "runs" if program.alive() else f"ended with {program.exit_code}"
        scene.say(f"{case}: {program.name} {state}")
        scene.say_log(program, "redis", "password", "auth", "certificate", "ssl", "key", "sign", count=2)
    if front.alive() and front.answers():
        scene.say(f"{case}: a request: {draw(front, 1)}")
        scene.say(f"{case}: status: {front.get('/api/comfyui/status').get('cluster')}")


def start_and_check(scene: Scene, front: FrontEnd, host: Host, seed: int) -> None:
    front.start()
    host.start()
    scene.wait("the front end serves", front.answers, front, LIMIT_S)
    scene.wait("the host is ready", lambda: is_host_ready(front, host.name), host, LIMIT_S)
    scene.check_drawn("a request", draw(front, seed))


def outcomes(results: Sequence[Drawn]) -> dict[str, int]:
    return dict(Counter(each.outcome for each in results))
