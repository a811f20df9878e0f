"""The catalogue's models on a real engine: how long a picture takes with the weights loaded, and with a cold start."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from bench.clients import Client, GatewayRoute
from bench.server import ROOT, Server
from bench.summary import repeat, summarize
from bench.testbed import Testbed, get_json, read_catalogue
from compiler import Model
from engine import Engine

TIMES, QUICK_TIMES, BUDGET_S = 3, 1, 15.0


def measure_models(testbed: Testbed) -> dict[str, Any]:
    """Every model of catalogue.yaml whose files the engine has. Cold: after POST /free. Warm: only the seed is new."""
    path = ROOT / "catalogue.yaml"
    engine = Engine(testbed.engine_url)
    with contextlib.closing(engine), Server(engine_url=testbed.engine_url, catalogue=path) as server:
        models = list(_available(testbed.engine_url, list(read_catalogue(path).models.values())))
        return {model.id: _measure(testbed, engine, server, model) for model in models}


def _measure(testbed: Testbed, engine: Engine, server: Server, model: Model) -> dict[str, Any]:
    """If the model cannot be drawn (out of memory, a size it refuses), the result has the error; the run continues."""
    size = testbed.options.size or str(model.size.default)
    route = GatewayRoute(server.url, {"model": model.id, "size": size})
    try:
        with contextlib.closing(route.open()) as client:
            return {"size": size, **_cold_and_warm(testbed, engine, client)}
    except RuntimeError as error:
        return {"size": size, "error": str(error)}


def _cold_and_warm(testbed: Testbed, engine: Engine, client: Client) -> dict[str, Any]:
    times = QUICK_TIMES if testbed.options.quick else TIMES
    cold = summarize(repeat(lambda: _draw_cold(testbed, engine, client), times, BUDGET_S))
    warm = summarize(repeat(lambda: client.draw(next(testbed.seeds)).total_s, times, BUDGET_S))
    return {"cold_s": cold, "warm_s": warm, "load_s": cold["median"] - warm["median"]}


def _draw_cold(testbed: Testbed, engine: Engine, client: Client) -> float:
    engine.free()
    return client.draw(next(testbed.seeds)).total_s


def _available(url: str, models: list[Model]) -> Iterator[Model]:
    """The models whose files the engine at `url` has."""
    folders = {file.folder for model in models for file in model.files.values()}
    known = set(get_json(f"{url}/models"))
    files = {folder: get_json(f"{url}/models/{folder}") if folder in known else [] for folder in folders}
    for model in models:
        if all(file.name in files[file.folder] for file in model.files.values()):
            yield model
