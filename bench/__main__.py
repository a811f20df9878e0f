"""`python -m bench`: measures, prints a report, and with --json writes every raw number."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bench.compiling import measure_compile
from bench.gpu import measure_gpu
from bench.latency import measure_latency
from bench.processes import cpu_model
from bench.report import report
from bench.starting import measure_memory, measure_start
from bench.streams import measure_streams
from bench.throughput import measure_throughput
from bench.weights import measure_models
from bench.world import Options, World, ask, open_world

MEASUREMENTS: Mapping[str, Callable[[World], Any]] = {
    "latency": measure_latency,
    "throughput": measure_throughput,
    "compile": measure_compile,
    "start": measure_start,
    "memory": measure_memory,
    "streams": measure_streams,
    "gpu": measure_gpu,
    "models": measure_models,
}


def main() -> None:
    asked = arguments().parse_args()
    options = Options(asked.url, asked.quick, asked.size, asked.checkpoint)
    results = measure(options, asked.only)
    if asked.json:
        asked.json.write_text(json.dumps(results, indent=1), "utf-8")
    print(report(results))


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument(
        "--url", help="a running ComfyUI, such as http://127.0.0.1:8188; else the sketch engine"
    )
    parser.add_argument(
        "--checkpoint", help="with --url: the Stable Diffusion 1.x checkpoint to measure with"
    )
    parser.add_argument("--size", help="with --url: size of each model's picture; else the model's default")
    parser.add_argument(
        "--quick", action="store_true", help="few repetitions: does it run, not how fast is it"
    )
    parser.add_argument(
        "--only", choices=MEASUREMENTS, action="append", help="just this one; may be repeated"
    )
    parser.add_argument("--json", type=Path, metavar="PATH", help="write all raw numbers there")
    return parser


def measure(options: Options, only: list[str] | None) -> dict[str, Any]:
    """Every wanted measurement against one engine; the results by their names, in seconds and 10^6 bytes."""
    wanted = [name for name in MEASUREMENTS if not only or name in only]
    if not options.url and "models" in wanted:
        wanted.remove("models")  # the sketch engine has no weights to load
    with open_world(options) as world:
        results: dict[str, Any] = {"machine": machine(world)}
        for name in wanted:
            print(f"measuring {name}", file=sys.stderr, flush=True)
            results[name] = MEASUREMENTS[name](world)
    results["machine"]["load"] += f", at the end {_load_average()}"
    return results


def machine(world: World) -> dict[str, str]:
    """What was measured on what."""
    stats = ask(f"{world.engine_url}/system_stats")
    system, devices = stats["system"], stats["devices"]
    kind = "Easel's sketch engine, as ComfyUI" if system.get("easel_sketch") else "ComfyUI"
    names = ", ".join(f"{device['name']} ({device['type']})" for device in devices)
    versions = f"Python {system['python_version'].split()[0]}, PyTorch {system['pytorch_version']}"
    return {
        "engine": f"{kind} {system['comfyui_version']}; {versions}",
        "device": names,
        "CPU": cpu_model(),
        "gateway": f"two workers, as by default; Python {platform.python_version()}, {platform.platform()}",
        "load": f"load average at the start {_load_average()}",
    }


def _load_average() -> str:
    return f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown"


if __name__ == "__main__":
    main()
