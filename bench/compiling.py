"""What the compiler takes: one request, and a whole catalogue at start."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from bench.figures import spread
from bench.server import ROOT
from bench.world import World, load
from compiler import ImageRequest, compile_workflow

MODELS = 1000
TIMES, QUICK_TIMES = 500, 50
LOADS, QUICK_LOADS = 3, 1


def measure_compile(world: World) -> dict[str, Any]:
    """Every model of the project's own catalogue, and a catalogue of 1,000 models made of them."""
    own = ROOT / "catalogue.yaml"
    catalogue = load(own)
    times = QUICK_TIMES if world.options.quick else TIMES
    per_model = {}
    for model in catalogue.models:
        request = ImageRequest(prompt="a lighthouse", seed=1, id="bench", model=model)
        per_model[model] = _timed(partial(compile_workflow, request, catalogue), times)
    with TemporaryDirectory(prefix="easel-bench-catalogue-") as place:
        many = Path(place) / "catalogue.yaml"
        many.write_text(multiplied(own.read_text("utf-8"), MODELS), "utf-8")
        loads = QUICK_LOADS if world.options.quick else LOADS
        load_s = _timed(partial(load, many), loads)
    return {"per_model_s": per_model, "catalogue": {"models": MODELS, "load_s": load_s}}


def multiplied(catalogue: str, count: int) -> str:
    """A catalogue of `count` models: those of `catalogue` again and again, under other ids and without aliases."""
    document = yaml.safe_load(catalogue)
    models = itertools.islice(itertools.cycle(document["models"].values()), count)
    plain = [{key: value for key, value in model.items() if key != "aliases"} for model in models]
    document["models"] = {f"model-{index:04}": model for index, model in enumerate(plain)}
    document["default_model"] = "model-0000"
    return str(yaml.safe_dump(document, sort_keys=False))


def _timed(do: Callable[[], object], times: int) -> dict[str, Any]:
    taken = []
    for _ in range(times):
        began = time.perf_counter()
        do()
        taken.append(time.perf_counter() - began)
    return spread(taken)
