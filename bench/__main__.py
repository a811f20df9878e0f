"""`python -m bench`: runs the benchmark, prints a report, and with --json writes every raw number."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bench.clients import ROUTE_NAMES
from bench.compiling import measure_compile
from bench.conversation import measure_conversation
from bench.ending import clean_ending
from bench.engines import measure_engines
from bench.gpu import measure_gpu
from bench.keys import measure_keys
from bench.latency import measure_latency
from bench.machine import load_average, machine
from bench.models import measure_models
from bench.options import Options, Peer, add_engine_arguments, writable_path
from bench.report import report
from bench.starting import measure_memory, measure_start
from bench.streams import measure_streams
from bench.testbed import ALLOWED_SIZES, Testbed, open_testbed
from bench.throughput import measure_throughput

MEASUREMENTS: Mapping[str, Callable[[Testbed], Any]] = {
    "latency": measure_latency,
    "throughput": measure_throughput,
    "compile": measure_compile,
    "start": measure_start,
    "memory": measure_memory,
    "streams": measure_streams,
    "gpu": measure_gpu,
    "conversation": measure_conversation,
    "keys": measure_keys,
    "engines": measure_engines,
    "models": measure_models,
}


def main() -> None:
    arguments = argument_parser().parse_args()
    options = options_of(arguments)
    results: dict[str, Any] = {}
    with clean_ending():
        try:
            measure(options, selected_measurements(options, arguments.only), results)
        finally:  # what was measured before something failed is worth reading
            if results.keys() & MEASUREMENTS.keys():
                print(report(results))
        if arguments.json:
            arguments.json.write_text(json.dumps(results, indent=1), "utf-8")


def argument_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    add_engine_arguments(parser)
    parser.add_argument(
        "--sizes", type=_sizes, metavar="64,512,...", help="the sides of the pictures, in pixels"
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
    parser.add_argument(
        "--json", type=writable_path, metavar="PATH", help="write all raw numbers to this file"
    )
    return parser


def options_of(arguments: argparse.Namespace) -> Options:
    """Exits if names of peers are wrong."""
    models, names = dict(arguments.peer_model), [name for name, _ in arguments.peer]
    if taken := {name for name in names if name in ROUTE_NAMES or names.count(name) > 1}:
        raise SystemExit(f"--peer {', '.join(sorted(taken))}: this name is taken; choose another one.")
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


def _sizes(text: str) -> list[int]:
    sizes = _numbers(text)
    if any(size not in ALLOWED_SIZES for size in sizes):
        first, last, step = ALLOWED_SIZES[0], ALLOWED_SIZES[-1], ALLOWED_SIZES.step
        raise argparse.ArgumentTypeError(f"sizes are multiples of {step} from {first} to {last}")
    return sizes


def _numbers(text: str) -> list[int]:
    """Each once, in ascending order, so that "the smallest" is the first one."""
    if not all(part.isdecimal() and int(part) for part in text.split(",")):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of numbers from 1, such as 1,8")
    return sorted({int(part) for part in text.split(",")})


def _pair(text: str) -> tuple[str, str]:
    name, sign, value = text.partition("=")
    if not (name and sign and value):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    return name, value


def selected_measurements(options: Options, only: list[str] | None) -> list[str]:
    """All, or those named in `only`. Exits if nothing is left."""
    names = [name for name in MEASUREMENTS if not only or name in only]
    if not options.url:
        if names == ["models"]:
            raise SystemExit("--only models needs --url: the sketch engine has no weights to load.")
        names = [name for name in names if name != "models"]
    return names


def measure(options: Options, selected: Sequence[str], results: dict[str, Any]) -> None:
    """Run the measurements `selected` against one engine. Adds each result to `results` under its name, in seconds and
    10^6 bytes."""
    with open_testbed(options) as testbed:
        results["machine"] = machine(testbed)
        results["is_sketch"] = testbed.engine.is_sketch
        for name in selected:
            print(f"measuring {name}", file=sys.stderr, flush=True)
            results[name] = MEASUREMENTS[name](testbed)
    results["machine"]["load"] += f", at the end {load_average()}"


if __name__ == "__main__":
    main()
