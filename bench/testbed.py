"""What the measurements use: a running engine, a gateway with the benchmark's catalogue, and the command's options."""

from __future__ import annotations

import contextlib
import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.clients import PROMPT, DirectRoute, GatewayRoute, Route, session
from bench.server import ROOT, Server
from compiler import Catalogue, ImageRequest, SourcePaths, compile_workflow, load_catalogue, read_sources
from scratch_folder import ScratchFolder
from sketch import SketchProcess

_PLACEHOLDER = "bench.safetensors"
_LIKELY_NAMES = ("sd15", "sd-1.5", "sd1.5", "v1-5")


@dataclass(frozen=True)
class Options:
    """The command line's options. `quick`: few repetitions. `size`: of the per-model pictures; None: the default."""

    url: str | None
    quick: bool
    size: str | None
    checkpoint: str | None


@dataclass(frozen=True)
class Testbed:
    """A running engine and a running gateway that uses it."""

    options: Options
    engine_url: str
    engine_pid: int | None
    """None if the benchmark did not start the engine"""
    catalogue: Path
    server: Server
    seeds: Iterator[int]

    @property
    def direct(self) -> Route:
        return DirectRoute(self.engine_url, bench_graph(self.catalogue))

    def gateway(self, *, as_url: bool = False) -> Route:
        return GatewayRoute(self.server.url, {"model": "bench"}, as_url)


@contextlib.contextmanager
def open_testbed(options: Options, *, render_ms: float = 0) -> Iterator[Testbed]:
    """Start an engine (the sketch engine, unless `options.url` names a running one) and a gateway that uses it."""
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(ScratchFolder("easel-bench-testbed-"))
        if options.url:
            url, pid = options.url.rstrip("/"), None
            checkpoint = options.checkpoint or guess_checkpoint(list_checkpoints(url))
        else:
            files = {"checkpoints": [_PLACEHOLDER]}
            sketch = SketchProcess(nodes=ROOT / "schemas/nodes.json", files=files, render_ms=render_ms)
            stack.enter_context(sketch)
            url, pid, checkpoint = sketch.url, sketch.pid, _PLACEHOLDER
        catalogue = folder / "catalogue.yaml"
        text = (ROOT / "bench/catalogue.yaml").read_text("utf-8")
        catalogue.write_text(text.replace(_PLACEHOLDER, checkpoint), "utf-8")
        server = stack.enter_context(Server(engine_url=url, catalogue=catalogue))
        seeds = itertools.count(random.randrange(2**40))
        yield Testbed(options, url, pid, catalogue, server, seeds)


def guess_checkpoint(names: list[str]) -> str:
    """The first name that looks like a Stable Diffusion 1.5 checkpoint, else the first name; --checkpoint overrides it.
    Raises SystemExit if there is no checkpoint."""
    if not names:
        raise SystemExit("The engine has no checkpoint; the benchmark needs one.")
    return next((name for name in names if any(part in name.lower() for part in _LIKELY_NAMES)), names[0])


def list_checkpoints(url: str) -> list[str]:
    """The checkpoints that the engine lists."""
    loader = get_json(f"{url}/object_info/CheckpointLoaderSimple")["CheckpointLoaderSimple"]
    choices = loader["input"]["required"]["ckpt_name"]
    names = choices[0] if isinstance(choices[0], list) else choices[1]["options"]
    return [str(name) for name in names]


def get_json(url: str) -> Any:
    """The JSON body of a GET response. Raises requests.RequestException."""
    with session() as http:
        response = http.get(url, timeout=30)
        response.raise_for_status()
        return response.json()


def read_catalogue(path: Path) -> Catalogue:
    """A catalogue file with the project's own templates and schemas; read, parsed and checked."""
    paths = SourcePaths(path, templates=ROOT / "templates_wf", schemas=ROOT / "schemas")
    return load_catalogue(read_sources(paths))


def bench_graph(catalogue: Path) -> dict[str, Any]:
    """The graph that the gateway compiles for the benchmark's request."""
    request = ImageRequest(prompt=PROMPT, seed=0, id="bench", model="bench")
    (graph,) = compile_workflow(request, read_catalogue(catalogue)).graphs
    return dict(graph.nodes)
