"""Real models on a real engine: how long a picture takes with their weights loaded, and how long from cold."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from bench.clients import Client, Gateway
from bench.figures import repeated, spread
from bench.server import ROOT, Server
from bench.world import World, ask, load
from compiler import Model
from engine import Engine

TIMES, QUICK_TIMES, BUDGET_S = 3, 1, 15.0


def measure_models(world: World) -> dict[str, Any]:
    """Every model of catalogue.yaml whose files the engine has. Cold: after POST /free. Warm: a new seed."""
    own = ROOT / "catalogue.yaml"
    engine = Engine(world.engine_url)
    with contextlib.closing(engine), Server(engine_url=world.engine_url, catalogue=own) as server:
        present = list(_present(world.engine_url, list(load(own).models.values())))
        return {model.id: _measured(world, engine, server, model) for model in present}


def _measured(world: World, engine: Engine, server: Server, model: Model) -> dict[str, Any]:
    """A model that cannot be drawn (out of memory, a size it refuses) is told as such; the others go on."""
    size = world.options.size or str(model.size.default)
    way = Gateway(server.url, {"model": model.id, "size": size})
    try:
        with contextlib.closing(way.open()) as client:
            return {"size": size, **_cold_and_warm(world, engine, client)}
    except RuntimeError as error:
        return {"size": size, "fault": str(error)}


def _cold_and_warm(world: World, engine: Engine, client: Client) -> dict[str, Any]:
    times = QUICK_TIMES if world.options.quick else TIMES
    cold = spread(repeated(lambda: _cold(world, engine, client), times, BUDGET_S))
    warm = spread(repeated(lambda: client.picture(next(world.seeds)).total_s, times, BUDGET_S))
    return {"cold_s": cold, "warm_s": warm, "load_s": cold["median"] - warm["median"]}


def _cold(world: World, engine: Engine, client: Client) -> float:
    engine.free()
    return client.picture(next(world.seeds)).total_s


def _present(url: str, models: list[Model]) -> Iterator[Model]:
    folders = {file.folder for model in models for file in model.files.values()}
    there = set(ask(f"{url}/models"))
    listed = {folder: ask(f"{url}/models/{folder}") if folder in there else [] for folder in folders}
    for model in models:
        if all(file.name in listed[file.folder] for file in model.files.values()):
            yield model
