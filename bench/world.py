"""What every measurement runs in: an engine, the benchmark's model on it, and the options of the run."""

from __future__ import annotations

import contextlib
import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from bench.clients import PROMPT, Direct, Gateway, Way, session
from bench.server import ROOT, Server
from compiler import Catalogue, ImageRequest, SourcePaths, compile_workflow, load_catalogue, read_sources
from sketch import SketchProcess

_PLACEHOLDER = "bench.safetensors"
_LIKELY = ("sd15", "sd-1.5", "sd1.5", "v1-5")


@dataclass(frozen=True)
class Options:
    """What the command line asked for. `quick`: few repetitions. `size`: of the per-model pictures, None: default."""

    url: str | None
    quick: bool
    size: str | None
    checkpoint: str | None


@dataclass(frozen=True)
class World:
    """An engine and the gateway before it, both running."""

    options: Options
    engine_url: str
    engine_pid: int | None
    """None for an engine that somebody else started"""
    catalogue: Path
    server: Server
    seeds: Iterator[int]

    @property
    def direct(self) -> Way:
        return Direct(self.engine_url, bench_graph(self.catalogue))

    def gateway(self, *, as_url: bool = False) -> Way:
        return Gateway(self.server.url, {"model": "bench"}, as_url)


@contextlib.contextmanager
def open_world(options: Options, *, render_ms: float = 0) -> Iterator[World]:
    """An engine (the sketch engine unless `options.url` names one) and a gateway before it."""
    with contextlib.ExitStack() as stack:
        place = Path(stack.enter_context(TemporaryDirectory(prefix="easel-bench-world-")))
        if options.url:
            url, pid = options.url.rstrip("/"), None
            checkpoint = options.checkpoint or likely_checkpoint(checkpoints_of(url))
        else:
            files = {"checkpoints": [_PLACEHOLDER]}
            sketch = SketchProcess(nodes=ROOT / "schemas/nodes.json", files=files, render_ms=render_ms)
            stack.enter_context(sketch)
            url, pid, checkpoint = sketch.url, sketch.pid, _PLACEHOLDER
        catalogue = place / "catalogue.yaml"
        text = (ROOT / "bench/catalogue.yaml").read_text("utf-8")
        catalogue.write_text(text.replace(_PLACEHOLDER, checkpoint), "utf-8")
        server = stack.enter_context(Server(engine_url=url, catalogue=catalogue))
        seeds = itertools.count(random.randrange(2**40))
        yield World(options, url, pid, catalogue, server, seeds)


def likely_checkpoint(names: list[str]) -> str:
    """The name that looks most like a checkpoint for the benchmark's workflow; --checkpoint overrules it."""
    if not names:
        raise SystemExit("The engine has no checkpoint, so there is nothing to measure it with.")
    return next((name for name in names if any(part in name.lower() for part in _LIKELY)), names[0])


def checkpoints_of(url: str) -> list[str]:
    """The checkpoints that the engine lists."""
    loader = ask(f"{url}/object_info/CheckpointLoaderSimple")["CheckpointLoaderSimple"]
    choices = loader["input"]["required"]["ckpt_name"]
    listed = choices[0] if isinstance(choices[0], list) else choices[1]["options"]
    return [str(name) for name in listed]


def ask(url: str) -> Any:
    """The JSON that a GET answers with. Raises requests.RequestException."""
    with session() as asking:
        answer = asking.get(url, timeout=30)
        answer.raise_for_status()
        return answer.json()


def load(catalogue: Path) -> Catalogue:
    """A catalogue file with the project's own templates and schemas; read, parsed and proved."""
    paths = SourcePaths(catalogue, templates=ROOT / "templates_wf", schemas=ROOT / "schemas")
    return load_catalogue(read_sources(paths))


def bench_graph(catalogue: Path) -> dict[str, Any]:
    """The graph that the gateway compiles for the benchmark's request."""
    request = ImageRequest(prompt=PROMPT, seed=0, id="bench", model="bench")
    (graph,) = compile_workflow(request, load(catalogue)).graphs
    return dict(graph.nodes)
