"""easel gpu replay: plays the log of the decisions about the GPU against another policy."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from arbiter import Arbiter, Policy
from arbiter.event_log import line_name, read_lines
from arbiter.replay import Recording, Waits, read_recording, recorded_waits, simulate
from commands.context import handle_errors, services
from commands.gpu import gpu, gpu_option, json_option, unknown_gpu

_COEXIST = (
    "gpu.sharing was coexist, but the simulation switches for each picture: the log does not say what fitted"
)


@gpu.command(short_help="Play a log of the GPU against another policy.")
@click.argument("file", required=False, type=click.Path(path_type=Path, dir_okay=False))
@click.option("--min-stay-s", type=click.FloatRange(0), help="As the setting gpu.min_stay_s.")
@click.option("--restore", type=click.Choice(["linger", "idle", "never"]), help="As the setting gpu.restore.")
@click.option("--linger-s", type=click.FloatRange(0), help="As the setting gpu.linger_s.")
@click.option(
    "--idle-restore-minutes", type=click.FloatRange(0), help="As the setting gpu.idle_restore_minutes."
)
@click.option(
    "--llm-during-generation",
    type=click.Choice(["switch", "wait", "refuse"]),
    help="As the setting gpu.llm_during_generation.",
)
@click.option("--depth", type=click.IntRange(1, 100), help="As the setting engine.depth.")
@gpu_option
@json_option
@handle_errors
def replay(
    file: Path | None,
    min_stay_s: float | None,
    restore: Any,
    linger_s: float | None,
    idle_restore_minutes: float | None,
    llm_during_generation: Any,
    depth: int | None,
    gpu: str | None,
    as_json: bool,
) -> None:
    """Play the log FILE (default: this installation's, of the first engine's GPU or of --gpu) in simulated time, with the
    policy of that time and with another one, and print how long the requests waited.

    The options say what differs; what they do not say is as it was in the log. The requests are those that went through
    Easel and needed the GPU.
    """
    own = _arbiter(gpu)
    path = file or own.events.path
    try:
        recording = read_recording(read_lines(path))
    except OSError as error:
        hint = "" if file else "; the server writes it unless gpu.event_log_mb is 0"
        raise click.ClickException(f"cannot read {path}: {error.strerror}{hint}") from error
    if not recording.requests:
        raise click.ClickException(
            f"{path} has no request that needed the GPU ({recording.skipped_lines} lines are damaged)"
        )
    changes = {
        "min_stay_s": min_stay_s,
        "restore": restore,
        "linger_s": linger_s,
        "idle_restore_s": None if idle_restore_minutes is None else idle_restore_minutes * 60,
        "llm_during_generation": llm_during_generation,
        "depth": depth,
    }
    logged = recording.policy or own.policy
    other = replace(logged, **{name: value for name, value in changes.items() if value is not None})
    document: dict[str, Any] = {
        "file": str(path),
        "skipped_lines": recording.skipped_lines,
        "damaged_lines": [line_name(path, number) for number in recording.damaged_lines],
        "switch_s": recording.switch_s,
        "recorded": recorded_waits(recording).summary(),
        "simulated": _simulate(recording, logged, "the same policy").summary(),
        "notes": [_COEXIST] if logged.sharing == "coexist" else [],
    }
    if other != logged:
        document["other_policy"] = {name: value for name, value in changes.items() if value is not None}
        document["other"] = _simulate(recording, other, "the other policy").summary()
    click.echo(json.dumps(document, indent=2) if as_json else "\n".join(_lines(document)))


def _arbiter(gpu: str | None) -> Arbiter:
    """That of a GPU; None: of the first engine's. Raises InvalidValue."""
    known = services().fleet.gpus
    if gpu is None:
        return services().arbiter
    if gpu not in known:
        raise unknown_gpu(gpu, known)
    return known[gpu].arbiter


def _simulate(recording: Recording, policy: Policy, what: str) -> Waits:
    """With a progress bar, if stderr is a terminal."""
    length, is_hidden = len(recording.requests), not sys.stderr.isatty()
    with click.progressbar(length=length, label=what, file=sys.stderr, hidden=is_hidden) as bar:
        return simulate(recording, policy, bar.update)


def _lines(document: dict[str, Any]) -> Iterator[str]:
    if document["skipped_lines"]:
        more = ", …" if document["skipped_lines"] > len(document["damaged_lines"]) else ""
        yield f"{document['skipped_lines']} damaged lines were skipped: {', '.join(document['damaged_lines'])}{more}"
    yield from document["notes"]
    cost = ", ".join(f"to {mode} {seconds:.1f} s" for mode, seconds in document["switch_s"].items())
    yield f"a switch {cost}, and the wait for running requests"
    yield f"{'waits in seconds':32} {'requests':>8} {'median':>9} {'95 %':>9} {'longest':>9}"
    yield from _waits("as it was", document["recorded"])
    yield from _waits("simulated, the same policy", document["simulated"])
    if "other" in document:
        names = ", ".join(f"{name}={value}" for name, value in document["other_policy"].items())
        yield from _waits(f"simulated, {names}", document["other"])
    else:
        yield "no other policy given: see --help for what can be changed"


def _waits(title: str, summary: dict[str, Any]) -> Iterator[str]:
    switching = f", {summary['switching_s']:.1f} s" if summary["switching_s"] else ""
    yield f"{title} ({summary['switches']} switches{switching})"
    for mode, name in (("generation", "pictures"), ("inference", "LLM requests")):
        figures = summary[mode]
        if not figures["requests"]:
            yield f"  {name:30} {0:8}"
            continue
        waits = " ".join(f"{figures[each]:9.2f}" for each in ("median_s", "p95_s", "longest_s"))
        yield f"  {name:30} {figures['requests']:8} {waits}"
    for count, text in ((summary["refused"], "were refused"), (summary["never_ran"], "never ran")):
        if count:
            yield f"  {count} {text}"
