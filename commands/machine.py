"""Looks at this machine, for `easel setup` and `easel doctor`: where to ask, and what was found."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from detection import (
    Gpu,
    Process,
    Service,
    find_services,
    gpus,
    listening_processes,
    memory_bytes,
    ollama_url,
    usual_urls,
)
from loopback import is_loopback
from settings import Settings

_PROGRAMS = (
    "main.py",
    "comfy",
    "llama-server",
    "llama-swap",
    "ollama",
    "vllm",
    "lms",
    "lm-studio",
    "LM Studio",
    "LM-Studio",
)
"""Beginnings of the names of programs that are asked, wherever they listen"""


@dataclass(frozen=True)
class Machine:
    """What was found. `services`: in the order in which they were asked; `memory`: bytes, None if it is not known."""

    services: tuple[Service, ...]
    processes: tuple[Process, ...]
    gpus: tuple[Gpu, ...]
    memory: int | None

    def at(self, url: str) -> Service | None:
        """What answers at `url`, None if nothing does."""
        return next((service for service in self.services if same_place(service.url, url)), None)

    def process_on(self, port: int) -> Process | None:
        """The program that listens on a port, if this user may see it."""
        return next((process for process in self.processes if port in process.ports), None)

    def process_of(self, service: Service) -> Process | None:
        """The program that answers at a URL of this machine."""
        parts = urlsplit(service.url)
        return self.process_on(parts.port or 80) if is_loopback(parts.hostname) else None


def look_around(settings: Settings | None, environment: Mapping[str, str]) -> Machine:
    """Ask everything that could be there at the same time, for a few seconds at most. `settings`: their addresses are asked,
    too."""
    processes = listening_processes()
    expected = [*_configured(settings), *usual_urls()]
    if from_variable := ollama_url(environment):
        expected.append(from_variable)
    urls = list(expected)
    for process in processes:
        if process.program.startswith(_PROGRAMS):
            urls += [f"http://127.0.0.1:{port}" for port in sorted(process.ports)]
    answers = find_services(_different(urls))
    # What has such a name, listens elsewhere and is not recognized is some other program.
    services = (
        service
        for url, service in answers.items()
        if service is not None and (service.kind != "unknown" or url in expected)
    )
    return Machine(tuple(services), processes, gpus(), memory_bytes())


def _configured(settings: Settings | None) -> Iterable[str]:
    if settings is None:
        return
    if settings["engine.url"]:
        yield settings["engine.url"].rstrip("/")
    if settings["port"]:
        yield f"http://127.0.0.1:{settings['port']}"
    entries = (*settings["engines"], *settings["llm.stacks"])
    yield from (url for entry in entries if (url := _url(entry)))


def _url(entry: Mapping[str, Any]) -> str | None:
    url = entry.get("url")
    return url.rstrip("/") if isinstance(url, str) and urlsplit(url).scheme in ("http", "https") else None


def _different(urls: Iterable[str]) -> list[str]:
    """Each place once: `localhost` is 127.0.0.1."""
    different: list[str] = []
    for url in urls:
        if not any(same_place(url, other) for other in different):
            different.append(url)
    return different


def same_place(url: str, other: str) -> bool:
    """Whether two URLs are those of one server, such as http://localhost:11434 and http://127.0.0.1:11434/."""
    return _place(url) == _place(other)


def _place(url: str) -> tuple[str, str, int, str]:
    try:
        parts = urlsplit(url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError:
        return "", url, 0, ""
    host = (parts.hostname or "").lower()
    return parts.scheme, "127.0.0.1" if is_loopback(host) else host, port, parts.path.rstrip("/")
