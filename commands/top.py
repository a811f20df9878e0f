"""easel top: what the server does, refreshed in the terminal."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import click

from commands.context import handle_errors
from commands.gpu import Server, json_option, url_option
from errors import EaselError, ServerUnreachable

_HOME, _END_OF_LINE, _END_OF_SCREEN = "\x1b[H", "\x1b[K", "\x1b[J"
_COLUMNS = ("", "MODEL", "AGE", "KEY", "REQUEST", "")
_MAX_CELL = 28


@click.command(short_help="Watch the engine, the GPU and the queue.")
@click.option("--once", is_flag=True, help="Print it once and exit.")
@click.option(
    "--interval",
    type=click.FloatRange(0.2, 3600),
    default=1.0,
    show_default=True,
    help="Seconds between two refreshes.",
)
@url_option
@json_option
@handle_errors
def top(once: bool, interval: float, url: str | None, as_json: bool) -> None:
    """Watch the engine, the GPU's memory and mode, the LLM servers and the queue of the running server.

    Ctrl-C ends it. This installation's server needs no key; for one at --url, EASEL_API_KEYS has one that may see the
    status. With --json each refresh is a line.
    """
    server = Server(url)
    try:
        while True:
            _show(server, once=once, as_json=as_json)
            if once:
                return
            time.sleep(interval)
    except KeyboardInterrupt:
        click.echo()


def _show(server: Server, *, once: bool, as_json: bool) -> None:
    """Raises ServerUnreachable and other errors if `once`; else they are shown, and the next refresh tries again."""
    try:
        status = server.status()
    except EaselError as error:
        # Other errors, such as a wrong key, do not go away.
        if once or not isinstance(error, ServerUnreachable):
            raise
        if as_json:
            click.echo(json.dumps({"error": {"code": error.code, "message": error.message}}))
        else:
            _draw([f"{error.code}: {error.message}"])
        return
    if as_json:
        click.echo(json.dumps(status, indent=2 if once else None, ensure_ascii=False))
        return
    now = time.strftime("%H:%M:%S")
    lines = [f"Easel at {server.url}   {now}", *view(status)]
    if once:
        click.echo("\n".join(lines))
    else:
        _draw(lines)


def _draw(lines: Sequence[str]) -> None:
    """Replace what the terminal shows; append it if the output is no terminal."""
    if not sys.stdout.isatty():
        click.echo("\n".join([*lines, ""]))
        return
    width, height = shutil.get_terminal_size()
    if len(lines) >= height:
        lines = [*lines[: height - 2], f"… and {len(lines) - height + 2} more lines"]
    shown = [line[: width - 1] + _END_OF_LINE for line in lines]
    click.echo(_HOME + "\n".join(shown) + "\n" + _END_OF_SCREEN, nl=False, color=True)


def view(status: Mapping[str, Any]) -> Iterator[str]:
    """The lines for a document of `GET /api/comfyui/status`."""
    yield f"engine    {_engine(status)}"
    if problem := status["problem"]:
        yield f"          {problem['code']}: {_plain(problem['message'])}"
    engines = status.get("engines", ())  # an older server has none
    if len(engines) > 1:
        width = max(len(_cell(engine["name"])) for engine in engines)
        for engine in engines:
            yield f"          {_cell(engine['name']).ljust(width)}  {_engine_line(engine)}"
    if memory := _memory(status["memory"]):
        yield f"memory    {memory}"
    gpus = status.get("gpus", ())
    if len(gpus) < 2:
        yield f"GPU       {_mode(status, status['mode'])}"
    for gpu in gpus if len(gpus) > 1 else ():
        yield f"GPU       {_cell(gpu['name'])}: {_mode(gpu, (gpu['arbiter'] or status)['mode'])}"
    for stack in status["stacks"]:
        held = _plain(stack["problem"]) if stack["problem"] else ", ".join(map(_plain, stack["loaded"] or ()))
        yield f"LLMs      {_plain(stack['name'])} ({stack['driver']}): {held or 'nothing loaded'}"
    ready = sum(bool(model["ready"]) for model in status["models"])
    yield f"models    {ready} of {len(status['models'])} ready"
    queue = status["queue"]
    jobs = f"{queue['running']} running and {queue['pending']} pending in ComfyUI"
    yield f"queue     {jobs}, {len(status['tickets'])} waiting"
    yield ""
    rows = [_row("draws", job, _on_engine(job, _progress(job))) for job in status["jobs"]]
    rows += [_row("waits", ticket, _on_engine(ticket, _reason(ticket))) for ticket in status["tickets"]]
    yield from _table(rows) if rows else ["nothing is drawn, and nobody waits"]


def _engine(status: Mapping[str, Any]) -> str:
    if status["sketch"]:
        return f"the sketch engine, which runs no model: {status['engine']}"
    version = (
        f"ComfyUI {_plain(status['version'])} at {_plain(status['endpoint'])}"
        if status["version"]
        else "ComfyUI"
    )
    return f"{version}: {status['engine']}"


def _engine_line(engine: Mapping[str, Any]) -> str:
    """One of several engines: its state, the model that it has loaded, its queue and its pace."""
    words = [str(engine["engine"])]
    if engine["shared"] and engine["mode"] == "inference":
        words.append("LLMs have its GPU")
    if engine["switching"]:
        words.append("its GPU is being handed over")
    if engine["drained"]:
        words.append("drained")
    if engine["loaded_models"]:
        words.append(f"{_cell(engine['loaded_models'][0])} loaded")
    words.append(f"{engine['waiting']} waiting")
    if engine["pictures_per_hour"] is not None:
        words.append(f"{engine['pictures_per_hour']} pictures per hour")
    if engine["problem"]:
        words.append(engine["problem"]["code"])
    return ", ".join(words)


def _on_engine(entry: Mapping[str, Any], what: str) -> str:
    """With several engines, which of them it is."""
    name = entry.get("engine")
    return what if not name else f"on {_cell(name)} {what}".rstrip()


def _memory(memory: Mapping[str, Any] | None) -> str:
    if memory is None:
        return ""
    return ", ".join(
        f"{name} {memory[f'{key}_used_gb']:g} of {memory[f'{key}_ceil_gb']:g} GB used"
        for name, key in (("GPU", "vram"), ("RAM", "ram"))
        if memory[f"{key}_ceil_gb"] is not None
    )


def _mode(gpu: Mapping[str, Any], mode: str) -> str:
    """`gpu`: the status, or one of its GPUs."""
    arbiter, switchover = gpu["arbiter"], gpu["switchover"]
    if arbiter is None:
        return f"not shared: no LLM server {'uses it' if 'name' in gpu else 'is configured'}"
    text = mode + (", pinned" if arbiter["pinned"] else "")
    if switchover["active"]:
        phases = switchover["phases"]
        since = f" {phases[-1]['seconds']:.1f} s" if phases and switchover["phase"] else ""
        return (
            f"{text}; handing over to {switchover['target']}: {switchover['phase'] or 'not started'}{since}"
        )
    return (
        f"{text}; the last switchover failed: {_plain(switchover['error'])}" if switchover["error"] else text
    )


def _row(state: str, entry: Mapping[str, Any], what: str) -> tuple[str, ...]:
    age = "" if entry["age_s"] is None else f"{entry['age_s']:.0f} s"
    request = entry["request_id"] or entry["id"]
    return (state, *(_cell(value) for value in (entry["model"], age, entry.get("key"), request)), what)


def _progress(job: Mapping[str, Any]) -> str:
    if job["step"] is None:
        return ""
    left = "" if job["eta_s"] is None else f", {job['eta_s']:.0f} s left"
    return f"step {job['step']} of {job['steps']}{left}"


def _reason(ticket: Mapping[str, Any]) -> str:
    left = "" if ticket["expected_s"] is None else f", about {ticket['expected_s']} s more"
    return f"for {_plain(ticket['waits_for'] or 'its turn')}{left}"


def _table(rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    """With columns as wide as they need to be."""
    table = [_COLUMNS, *rows]
    widths = [max(len(row[column]) for row in table) for column in range(len(_COLUMNS))]
    for row in table:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def _cell(value: Any) -> str:
    text = _plain(value or "-")
    return text if len(text) <= _MAX_CELL else f"{text[: _MAX_CELL - 1]}…"


def _plain(text: Any) -> str:
    """Without control characters: clients choose some of these texts, and the terminal would obey."""
    return "".join(character if character.isprintable() else "?" for character in str(text))
