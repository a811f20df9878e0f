"""`python -m bench.comparison`: install, measure, write docs/comparison.json and docs/comparison.md."""

from __future__ import annotations

import argparse
import contextlib
import datetime
import itertools
import json
import os
import platform
import random
import statistics
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.clients import DirectRoute, GatewayRoute
from bench.comparison import of_broker, of_easel, of_proxy
from bench.comparison.cells import Cell, measured, not_measured
from bench.comparison.engine import Engine
from bench.comparison.page import DATA, PAGE, render
from bench.comparison.programs import (
    BROKER,
    EASEL_SOURCE,
    PROXY,
    THIS_PYTHON,
    Environment,
    broker_python,
    easel,
    install,
    proxy,
)
from bench.options import Options
from bench.processes import cpu_model
from bench.testbed import EngineUnderTest, Sources, open_engine, open_sources
from installation import VERSION
from scratch_folder import ScratchFolder

SIZES = (64, 512)
PICTURES = 30
SLOW_MS = 3000
"""How long a picture of the slow engine takes, so that a job can be disturbed"""


@dataclass(frozen=True)
class Engines:
    """`fast`: for times; `slow`: for what happens during a job."""

    fast: EngineUnderTest
    slow: EngineUnderTest
    sources: Sources

    def settings(self, engine: EngineUnderTest) -> dict[str, str]:
        return {
            "EASEL_ENGINE_URL": engine.url,
            "EASEL_CATALOGUE": str(self.sources.catalogue),
            "EASEL_TEMPLATES": str(self.sources.templates),
        }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.comparison", description=__doc__)
    parser.add_argument("--json", type=Path, default=DATA, help="where the numbers are written")
    parser.add_argument("--page", type=Path, default=PAGE, help="where the page is written")
    parser.add_argument("--render", action="store_true", help="only write the page from the numbers")
    options = parser.parse_args()
    if not options.render:
        options.json.write_text(json.dumps(_measure(), indent=1) + "\n", "utf-8")
    options.page.write_text(render(json.loads(options.json.read_text("utf-8"))), "utf-8")


def _measure() -> dict[str, Any]:
    with ScratchFolder("easel-comparison-") as folder, _engines() as engines:
        environments = _install_all(folder)
        cells: dict[str, dict[str, Cell]] = {}
        rows = (
            ("easel", lambda env: _easel(env, folder, engines)),
            ("comfy-api-proxy", lambda env: _proxy(env, folder, engines)),
            ("gpu-broker", lambda env: of_broker.measure(env, folder / "broker")),
        )
        for name, measure in rows:
            print(f"measuring {name} …", file=sys.stderr, flush=True)
            env = environments[name]
            cells[name] = (
                {"install": _installed(env), **measure(env)} if isinstance(env, Environment) else env
            )
        _add_overhead(cells, environments, folder, engines)
        return {
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "machine": f"{os.cpu_count()} cores ({cpu_model().partition(' x ')[2]})",
            "system": platform.system(),
            "load": round(os.getloadavg()[0], 1),
            "pictures": PICTURES,
            "versions": {
                "easel": VERSION,
                "comfy-api-proxy": PROXY.split("==")[1],
                "gpu-broker": BROKER.split("==")[1],
            },
            "pythons": {
                name: env.python for name, env in environments.items() if isinstance(env, Environment)
            },
            "cells": cells,
        }


@contextlib.contextmanager
def _engines() -> Iterator[Engines]:
    with (
        open_engine(Options()) as fast,
        open_engine(Options(), render_ms=SLOW_MS) as slow,
        open_sources(fast) as sources,
    ):
        yield Engines(fast, slow, sources)


def _install_all(folder: Path) -> dict[str, Environment | dict[str, Cell]]:
    """Each program's environment; or the cells that say why there is none."""
    wanted = {"easel": (THIS_PYTHON, EASEL_SOURCE), "comfy-api-proxy": (THIS_PYTHON, PROXY)}
    result: dict[str, Environment | dict[str, Cell]] = {}
    for name, python, requirement in (
        *((name, *values) for name, values in wanted.items()),
        ("gpu-broker", broker_python(), BROKER),
    ):
        print(f"installing {requirement} …", file=sys.stderr, flush=True)
        why = "this machine has no Python 3.12 or newer"
        if python is not None:
            try:
                result[name] = install(folder / f"venv-{name}", python, requirement)
                continue
            except Exception as error:
                why = f"it could not be installed: {error}"[:200]
        rows = ("install", "start", "overhead", "kill", "term", "idempotency", "cancel", "unknown", "chat")
        result[name] = {row: not_measured(why) for row in rows}
    return result


def _installed(env: Environment) -> Cell:
    return measured(lambda: {"install_s": env.install_s, "mb": env.mb})


def _easel(env: Environment, folder: Path, engines: Engines) -> dict[str, Cell]:
    fast, slow = engines.settings(engines.fast), engines.settings(engines.slow)
    return of_easel.measure(env, folder / "easel", fast, slow, Engine(engines.slow.url))


def _proxy(env: Environment, folder: Path, engines: Engines) -> dict[str, Cell]:
    fast, slow = Engine(engines.fast.url), Engine(engines.slow.url)
    return of_proxy.measure(env, folder / "proxy", fast, slow, engines.sources.graph("bench", 64))


def _add_overhead(
    cells: dict[str, dict[str, Cell]],
    environments: dict[str, Environment | dict[str, Cell]],
    folder: Path,
    engines: Engines,
) -> None:
    """The same pictures directly, through Easel and through comfy-api-proxy, in turns."""
    with_easel, with_proxy = environments["easel"], environments["comfy-api-proxy"]
    if not isinstance(with_easel, Environment) or not isinstance(with_proxy, Environment):
        return
    times = measured(lambda: _times(with_easel, with_proxy, folder, engines))
    for name in ("easel", "comfy-api-proxy"):
        cells[name]["overhead"] = times
        if times["status"] == "measured":
            taken = times["values"]
            values = {
                f"{kind}_{size}_s": taken[str(size)][kind] for size in SIZES for kind in ("direct", "socket")
            }
            values |= {f"through_{size}_s": taken[str(size)][name] for size in SIZES}
            cells[name]["overhead"] = {"status": "measured", "values": values}


def _times(
    with_easel: Environment, with_proxy: Environment, folder: Path, engines: Engines
) -> dict[str, Any]:
    seeds = itertools.count(random.randrange(2**30))
    result: dict[str, Any] = {}
    gateway = easel(with_easel, folder / "overhead", engines.settings(engines.fast))
    other = proxy(with_proxy, folder / "overhead-proxy", engines.fast.url)
    with gateway, other:
        for size in SIZES:
            graph = engines.sources.graph("bench", size)
            clients = {
                "direct": DirectRoute(engines.fast.url, graph, size).open(),
                "socket": DirectRoute(engines.fast.url, graph, size, over_socket=True).open(),
                "easel": GatewayRoute(gateway.url, {"model": "bench"}, size).open(),
                "comfy-api-proxy": of_proxy.Client(other.url, graph, size),
            }
            taken: dict[str, list[float]] = {name: [] for name in clients}
            for number in range(PICTURES + 2):
                for name, client in clients.items():
                    total_s = client.draw(next(seeds)).total_s
                    if number >= 2:
                        taken[name].append(total_s)
            for client in clients.values():
                client.close()
            result[str(size)] = {name: round(statistics.median(values), 5) for name, values in taken.items()}
    return result


if __name__ == "__main__":
    main()
