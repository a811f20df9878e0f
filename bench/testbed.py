"""What the measurements use: a running engine, a gateway with the benchmark's catalogue, and the command's options."""

from __future__ import annotations

import contextlib
import itertools
import random
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests

from bench.clients import (
    GATEWAY,
    GATEWAY_URL,
    PROMPT,
    REQUEST_ID,
    DirectRoute,
    GatewayRoute,
    Route,
    session,
)
from bench.options import Options
from bench.photo import photo_jpeg
from bench.processes import listening_pid
from bench.server import ROOT, Server
from compiler import (
    Catalogue,
    ImageRequest,
    Size,
    SourcePaths,
    compile_workflow,
    load_catalogue,
    read_sources,
)
from scratch_folder import ScratchFolder
from sketch import SketchProcess

SIZES, QUICK_SIZES = (64, 512, 1024, 2048), (64, 256)
"""Sides of the pictures, in pixels"""
ALLOWED_SIZES = range(64, 2048 + 1, 8)
"""Those that the models of bench/catalogue.yaml have"""
CLIENTS = (1, 8, 32)
_PLACEHOLDER = "bench.safetensors"
_LIKELY_NAMES = ("sd15", "sd-1.5", "sd1.5", "v1-5")
_PHOTO_FOLDER = "easel-bench"


@dataclass(frozen=True)
class EngineUnderTest:
    """A running engine. `pid`: None if its process is on another machine or not known. `checkpoint`: None if it has
    none."""

    url: str
    pid: int | None
    checkpoint: str | None
    is_sketch: bool
    has_socket_output: bool
    """Whether it has SaveImageWebsocket"""

    @property
    def model(self) -> str:
        """The model of the compared pictures: sketches, or parts of a photo where there is no model at all."""
        return "bench" if self.is_sketch else "photo"


@dataclass(frozen=True)
class Sources:
    """The benchmark's catalogue for one engine, and the folder with its templates."""

    catalogue: Path
    templates: Path
    own_folder: Path | None = None

    def load(self) -> Catalogue:
        """Read, parsed and checked."""
        schemas = ROOT / "schemas"
        paths = SourcePaths(self.catalogue, self.templates, schemas, own_folder=self.own_folder)
        return load_catalogue(read_sources(paths))

    def graph(self, model: str, size: int) -> dict[str, Any]:
        """The graph that the gateway compiles for the benchmark's request."""
        request = ImageRequest(prompt=PROMPT, seed=0, id=REQUEST_ID, model=model, size=Size(size, size))
        (graph,) = compile_workflow(request, self.load()).graphs
        return dict(graph.nodes)


@dataclass(frozen=True)
class Testbed:
    """A running engine and a running gateway that uses it."""

    options: Options
    engine: EngineUnderTest
    sources: Sources
    server: Server
    seeds: Iterator[int]
    graphs: Mapping[int, Mapping[str, Any]]
    """The compared pictures' graphs, by size"""

    @property
    def sizes(self) -> Sequence[int]:
        return tuple(self.graphs)

    def another_server(self, root: Path = ROOT, settings: Mapping[str, str] | None = None) -> Server:
        """A gateway of the checkout `root` that is not started yet and uses the same engine and catalogue. `settings`: more
        variables of its environment."""
        return new_server(self.engine, self.sources, root, settings)

    def direct(self, size: int, *, over_socket: bool = False) -> Route:
        return DirectRoute(self.engine.url, self.graphs[size], size, over_socket)

    def gateway(self, size: int, *, as_url: bool = False) -> Route:
        return gateway_route(self.server.url, self.engine, size, as_url=as_url)

    def routes(self, size: int) -> list[Route]:
        """The compared routes; the first is the direct client with SaveImage, with which all others are compared."""
        over_socket = [self.direct(size, over_socket=True)] if self.engine.has_socket_output else []
        return [self.direct(size), *over_socket, self.gateway(size), *self._peers(size)]

    def _peers(self, size: int) -> list[Route]:
        return [
            GatewayRoute(peer.url, {"model": peer.model} if peer.model else {}, size, name=peer.name)
            for peer in self.options.peers
        ]


def gateway_route(url: str, engine: EngineUnderTest, size: int, *, as_url: bool = False) -> GatewayRoute:
    """To an Easel at `url` that has the benchmark's catalogue and uses this engine."""
    name = GATEWAY_URL if as_url else GATEWAY
    return GatewayRoute(url, {"model": engine.model}, size, as_url, engine.model == "photo", name)


def new_server(
    engine: EngineUnderTest, sources: Sources, root: Path = ROOT, settings: Mapping[str, str] | None = None
) -> Server:
    """A gateway of the checkout `root` that is not started yet."""
    return Server(
        engine_url=engine.url,
        catalogue=sources.catalogue,
        templates=sources.templates,
        root=root,
        settings=settings,
    )


@contextlib.contextmanager
def open_testbed(options: Options, *, render_ms: float = 0) -> Iterator[Testbed]:
    """An engine (the sketch engine, unless `options.url` names a running one) and a gateway that uses it."""
    sizes = options.sizes or (QUICK_SIZES if options.quick else SIZES)
    with (
        open_engine(options, render_ms=render_ms) as engine,
        open_sources(engine) as sources,
        photos(engine, sizes),
        new_server(engine, sources) as server,
    ):
        graphs = {size: sources.graph(engine.model, size) for size in sizes}
        yield Testbed(options, engine, sources, server, new_seeds(), graphs)


def new_seeds() -> Iterator[int]:
    """Seeds that earlier runs very probably have not used."""
    return itertools.count(random.randrange(2**40))


@contextlib.contextmanager
def open_engine(options: Options, *, render_ms: float = 0) -> Iterator[EngineUnderTest]:
    """The running engine at `options.url`, or a new sketch engine."""
    if options.url:
        yield _running_engine(options, options.url.rstrip("/"))
        return
    files = {"checkpoints": [_PLACEHOLDER]}
    with SketchProcess(nodes=ROOT / "schemas/nodes.json", files=files, render_ms=render_ms) as sketch:
        has_socket_output = _has_node(sketch.url, "SaveImageWebsocket")
        yield EngineUnderTest(sketch.url, sketch.pid, _PLACEHOLDER, True, has_socket_output)


def _running_engine(options: Options, url: str) -> EngineUnderTest:
    system = get_json(f"{url}/system_stats")["system"]
    return EngineUnderTest(
        url,
        _engine_pid(options, url),
        options.checkpoint or guess_checkpoint(list_checkpoints(url)),
        system.get("easel_sketch") is True,
        _has_node(url, "SaveImageWebsocket"),
    )


def _has_node(url: str, class_type: str) -> bool:
    return class_type in get_json(f"{url}/object_info/{class_type}")


def _engine_pid(options: Options, url: str) -> int | None:
    if options.engine_pid and not Path(f"/proc/{options.engine_pid}/stat").exists():
        raise RuntimeError(f"--engine-pid {options.engine_pid}: there is no such process on this machine")
    return options.engine_pid or _local_pid(url)


def _local_pid(url: str) -> int | None:
    parts = urlsplit(url)
    is_local = parts.hostname in ("127.0.0.1", "localhost", "::1")
    return listening_pid(parts.port or 80) if is_local else None


@contextlib.contextmanager
def open_sources(engine: EngineUnderTest) -> Iterator[Sources]:
    """The benchmark's catalogue with a checkpoint that the engine has, and its templates in one folder."""
    with ScratchFolder("easel-bench-testbed-") as folder:
        sources = Sources(folder / "catalogue.yaml", folder / "templates")
        text = (ROOT / "bench/catalogue.yaml").read_text("utf-8")
        sources.catalogue.write_text(text.replace(_PLACEHOLDER, engine.checkpoint or _PLACEHOLDER), "utf-8")
        sources.templates.mkdir()
        for path in [*ROOT.glob("templates_wf/*.j2"), *ROOT.glob("bench/templates/*.j2")]:
            shutil.copy(path, sources.templates)
        yield sources


@contextlib.contextmanager
def photos(engine: EngineUnderTest, sizes: Sequence[int]) -> Iterator[None]:
    """The photos that the pictures of a real engine are cut from, in its folder for temporary files. They are overwritten
    by the smallest one at the end, because ComfyUI deletes nothing before it starts again."""
    if engine.model != "photo":
        yield
        return
    names = {f"photo-{size}.jpg": size for size in sizes}
    try:
        for name, size in names.items():
            _upload(engine.url, name, photo_jpeg(size))
        yield
    finally:
        with contextlib.suppress(requests.RequestException):  # the engine may have ended
            for name in names:
                _upload(engine.url, name, photo_jpeg(1))


def _upload(url: str, name: str, data: bytes) -> None:
    fields = {"subfolder": _PHOTO_FOLDER, "type": "temp", "overwrite": "true"}
    with session() as http:
        http.post(
            f"{url}/upload/image", files={"image": (name, data)}, data=fields, timeout=60
        ).raise_for_status()


def guess_checkpoint(names: list[str]) -> str | None:
    """The first name that looks like a Stable Diffusion 1.5 checkpoint, else the first name; --checkpoint overrides it.
    None if there is no checkpoint."""
    likely = (name for name in names if any(part in name.lower() for part in _LIKELY_NAMES))
    return next(likely, names[0] if names else None)


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


def read_catalogue(path: Path, own_folder: Path | None = None) -> Catalogue:
    """A catalogue file with the project's own templates, and an owner's folder; read, parsed and checked."""
    return Sources(path, ROOT / "templates_wf", own_folder).load()
