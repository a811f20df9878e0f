"""Prepares a process for its first request, and loads models before the first request for them."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable

from compiler import ImageRequest, compile_workflow, sample_requests
from deadline import time_limit
from errors import EngineUnreachable
from generation.generator import Generator
from generation.values import OutputOptions

log = logging.getLogger("easel.generation")

WARM_UP_TIMEOUT_S = 10.0
PRELOAD_INTERVAL_S = 5.0
"""Between attempts while the engine does not answer: a ComfyUI takes 10 to 20 s to start"""


def warm_up(generator: Generator) -> None:
    """Connect to the engine, and fit a graph of the default model to it, as the first request would do. Never raises: if
    the engine does not answer yet, the first request does it."""
    try:
        with time_limit(WARM_UP_TIMEOUT_S):
            catalogue, engine = generator.catalogue(), generator.engine()
            engine.connect()
            for request in sample_requests(catalogue.find(None), catalogue):
                generator.fitted_graphs(compile_workflow(request, catalogue), catalogue, engine)
    except Exception as error:
        log.debug("could not prepare for the first request: %s", error)


def preload(
    generator: Generator,
    models: tuple[str, ...],
    *,
    timeout_s: float,
    sleep: Callable[[float], object] = time.sleep,
) -> None:
    """Draw one small picture with each of `models`, so that its weights are in ComfyUI's memory. Never raises.

    Waits up to `timeout_s` for an engine that does not answer yet.
    """
    deadline = time.monotonic() + timeout_s
    for name in models:
        while not _try_preload(generator, name, timeout_s) and time.monotonic() < deadline:
            sleep(PRELOAD_INTERVAL_S)


def _try_preload(generator: Generator, name: str, timeout_s: float) -> bool:
    """False if the engine cannot be reached, so that the caller tries again; True after success and any other error."""
    try:
        catalogue = generator.catalogue()
        model = catalogue.find(name)
        if "generate" not in model.workflows:
            log.info("%s is not preloaded: it only redraws images", name)
            return True
        size = model.size.min
        inputs = {"steps": 1}
        request = ImageRequest(
            prompt="warm up", seed=0, id=str(uuid.uuid4()), model=name, size=size, inputs=inputs
        )
        result = generator.generate(request, OutputOptions(keep=False), timeout_s=timeout_s)
    except EngineUnreachable:
        return False
    except Exception as error:
        log.warning("could not preload %s: %s", name, error)
        return True
    log.info("preloaded %s in %.1f s", name, result.timings.total_s)
    return True
