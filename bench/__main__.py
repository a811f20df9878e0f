"""`python -m bench`: runs the benchmark, prints a report, and with --json writes every raw number."""

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
from bench.models import measure_models
from bench.processes import cpu_model
from bench.report import report
from bench.starting import measure_memory, measure_start
from bench.streams import measure_streams
from bench.testbed import Options, Testbed, get_json, open_testbed
from bench.throughput import measure_throughput

MEASUREMENTS: Mapping[str, Callable[[Testbed], Any]] = {
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
    arguments = argument_parser().parse_args()
    options = Options(arguments.url, arguments.quick, arguments.size, arguments.checkpoint)
    results = measure(options, arguments.only)
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1), "utf-8")
    print(report(results))


def argument_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument(
        "--url", help="a running ComfyUI, such as http://127.0.0.1:8188; default: the sketch engine"
    )
    parser.add_argument(
        "--checkpoint", help="with --url: the Stable Diffusion 1.x checkpoint to measure with"
    )
    parser.add_argument(
        "--size", help="with --url: the size of each model's picture; default: the model's default size"
    )
    parser.add_argument(
        "--quick", action="store_true", help="few repetitions, to check that the benchmark itself works"
    )
    parser.add_argument(
        "--only", choices=MEASUREMENTS, action="append", help="run only this measurement; may be repeated"
    )
    parser.add_argument("--json", type=Path, metavar="PATH", help="write all raw numbers to this file")
    return parser


def measure(options: Options, only: list[str] | None) -> dict[str, Any]:
    """Run all measurements, or those named in `only`, against one engine. Returns the results by measurement name, in
    seconds and 10^6 bytes."""
    selected = [name for name in MEASUREMENTS if not only or name in only]
    if not options.url and "models" in selected:
        selected.remove("models")  # the sketch engine has no weights to load
    with open_testbed(options) as testbed:
        results: dict[str, Any] = {"machine": machine(testbed)}
        for name in selected:
            print(f"measuring {name}", file=sys.stderr, flush=True)
            results[name] = MEASUREMENTS[name](testbed)
    results["machine"]["load"] += f", at the end {_load_average()}"
    return results


def machine(testbed: Testbed) -> dict[str, str]:
    """The engine, device, CPU and gateway that the run measures."""
    stats = get_json(f"{testbed.engine_url}/system_stats")
    system, devices = stats["system"], stats["devices"]
    kind = "Easel's sketch engine, as ComfyUI" if system.get("easel_sketch") else "ComfyUI"
    names = ", ".join(f"{device['name']} ({device['type']})" for device in devices)
    versions = f"Python {system['python_version'].split()[0]}, PyTorch {system['pytorch_version']}"
    return {
        "engine": f"{kind} {system['comfyui_version']}; {versions}",
        "device": names,
        "CPU": cpu_model(),
        "gateway": f"two workers (the default); Python {platform.python_version()}, {platform.platform()}",
        "load": f"load average at the start {_load_average()}",
    }


def _load_average() -> str:
    return f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown"


if __name__ == "__main__":
    main()
