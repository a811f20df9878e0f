"""`python -m bench`: runs the benchmark, prints a report, and with --json writes every raw number."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bench.compiling import measure_compile
from bench.gpu import measure_gpu
from bench.latency import measure_latency
from bench.machine import load_average, machine
from bench.models import measure_models
from bench.options import Options, Peer, add_engine_arguments
from bench.report import report
from bench.starting import measure_memory, measure_start
from bench.streams import measure_streams
from bench.testbed import Testbed, open_testbed
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
    results = measure(options_of(arguments), arguments.only)
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1), "utf-8")
    print(report(results))


def argument_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    add_engine_arguments(parser)
    parser.add_argument(
        "--sizes", type=_numbers, metavar="64,512,...", help="the sides of the pictures, in pixels"
    )
    parser.add_argument("--clients", type=_numbers, metavar="1,8,...", help="how many clients draw at once")
    parser.add_argument(
        "--model-size",
        metavar="WxH",
        help="with --url: the size of each model's picture; default: the model's",
    )
    parser.add_argument(
        "--peer", action="append", default=[], type=_pair, metavar="NAME=URL",
        help="measure this server with OpenAI's images API too; it must draw 64x64 and the other sizes; may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--peer-model", action="append", default=[], type=_pair, metavar="NAME=MODEL",
        help="the `model` in the requests to the peer NAME; default: no model",
    )  # fmt: skip
    parser.add_argument(
        "--only", choices=MEASUREMENTS, action="append", help="run only this measurement; may be repeated"
    )
    parser.add_argument("--json", type=Path, metavar="PATH", help="write all raw numbers to this file")
    return parser


def options_of(arguments: argparse.Namespace) -> Options:
    """Exits if a --peer-model has no --peer."""
    models = dict(arguments.peer_model)
    if unknown := models.keys() - dict(arguments.peer).keys():
        raise SystemExit(f"--peer-model {', '.join(sorted(unknown))}: there is no --peer of this name.")
    return Options(
        url=arguments.url,
        quick=arguments.quick,
        model_size=arguments.model_size,
        checkpoint=arguments.checkpoint,
        engine_pid=arguments.engine_pid,
        sizes=arguments.sizes or (),
        clients=arguments.clients or (),
        peers=[Peer(name, url.rstrip("/"), models.get(name)) for name, url in arguments.peer],
    )


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def _pair(text: str) -> tuple[str, str]:
    name, sign, value = text.partition("=")
    if not (name and sign and value):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    return name, value


def measure(options: Options, only: list[str] | None) -> dict[str, Any]:
    """Run all measurements, or those named in `only`, against one engine. Returns the results by measurement name, in
    seconds and 10^6 bytes."""
    selected = [name for name in MEASUREMENTS if not only or name in only]
    if not options.url and "models" in selected:
        selected.remove("models")  # the sketch engine has no weights to load
    with open_testbed(options) as testbed:
        results: dict[str, Any] = {"machine": machine(testbed)}
        results["is_sketch"] = testbed.engine.is_sketch
        for name in selected:
            print(f"measuring {name}", file=sys.stderr, flush=True)
            results[name] = MEASUREMENTS[name](testbed)
    results["machine"]["load"] += f", at the end {load_average()}"
    return results


if __name__ == "__main__":
    main()
