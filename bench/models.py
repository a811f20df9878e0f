"""The catalogue's models on a real engine: how long a picture takes with the weights loaded, and with a cold start."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import requests

from bench.clients import PROMPT, TIMEOUT_S, session
from bench.server import ROOT, Server
from bench.summary import repeat, summarize
from bench.testbed import Testbed, get_json, read_catalogue
from compiler import Model
from engine import Engine

TIMES, QUICK_TIMES, BUDGET_S = 3, 1, 15.0


def measure_models(testbed: Testbed) -> dict[str, Any]:
    """Every model of catalogue.yaml whose files the engine has. Cold: after POST /free. Warm: only the seed is new."""
    path = ROOT / "catalogue.yaml"
    engine = Engine(testbed.engine.url)
    with contextlib.closing(engine), Server(engine_url=testbed.engine.url, catalogue=path) as server:
        models = list(_available(testbed.engine.url, list(read_catalogue(path).models.values())))
        return {model.id: _measure(testbed, engine, server, model) for model in models}


def _measure(testbed: Testbed, engine: Engine, server: Server, model: Model) -> dict[str, Any]:
    """If the model cannot be drawn (out of memory, a size it refuses), the result has the error; the run continues."""
    size = testbed.options.model_size or str(model.size.default)
    try:
        with session() as http:
            draw = partial(_draw, http, server.url, {"model": model.id, "size": size}, testbed.seeds)
            return {"size": size, **_cold_and_warm(testbed, engine, draw)}
    except RuntimeError as error:
        return {"size": size, "error": str(error)}


def _cold_and_warm(testbed: Testbed, engine: Engine, draw: Callable[[], float]) -> dict[str, Any]:
    times = QUICK_TIMES if testbed.options.quick else TIMES
    cold = summarize(repeat(lambda: _draw_cold(engine, draw), times, BUDGET_S))
    warm = summarize(repeat(draw, times, BUDGET_S))
    return {"cold_s": cold, "warm_s": warm, "load_s": cold["median"] - warm["median"]}


def _draw_cold(engine: Engine, draw: Callable[[], float]) -> float:
    engine.free()
    return draw()


def _draw(http: requests.Session, url: str, fields: Mapping[str, Any], seeds: Iterator[int]) -> float:
    """Seconds for one picture. Raises RuntimeError with the gateway's error."""
    started_at = time.perf_counter()
    body = {**fields, "prompt": PROMPT, "seed": next(seeds), "response_format": "b64_json"}
    response = http.post(f"{url}/v1/images/generations", json=body, timeout=TIMEOUT_S)
    if response.status_code != 200:
        raise RuntimeError(f"the gateway responded {response.status_code}: {response.text[:500]}")
    return time.perf_counter() - started_at


def _available(url: str, models: list[Model]) -> Iterator[Model]:
    """The models whose files the engine at `url` has."""
    folders = {file.folder for model in models for file in model.files.values()}
    known = set(get_json(f"{url}/models"))
    files = {folder: get_json(f"{url}/models/{folder}") if folder in known else [] for folder in folders}
    for model in models:
        if all(file.name in files[file.folder] for file in model.files.values()):
            yield model
