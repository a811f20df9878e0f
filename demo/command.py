"""easel demo: plays a busy hour in a minute."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import click
import requests

from commands.context import handle_errors
from demo.narrator import Narrator
from demo.people import People
from demo.script import DEFAULT_SEED, PEOPLE, Act, busy_hour
from demo.stage import WATCHER, Stage, open_stage
from demo.summary import Summary, lines_of, summarize
from http_session import DirectSession

_LOOK_INTERVAL_S, _READ_INTERVAL_S = 0.2, 0.05
_CALL_TIMEOUT_S = 5.0
_LAST_SWITCH_TIMEOUT_S = 15.0

Say = Callable[[str], None]


@click.command(short_help="Play a busy hour in a minute, with sketches and a simulated LLM and GPU.")
@click.option(
    "--seconds",
    type=click.FloatRange(5, 3600),
    default=60.0,
    show_default=True,
    help="How long the hour lasts; everything in it is shortened alike.",
)
@click.option(
    "--seed", type=click.IntRange(0), default=DEFAULT_SEED, show_default=True, help="Which hour it is."
)
@click.option(
    "--port", type=click.IntRange(0, 65535), default=0, help="Where its page is; default: a free port."
)
@click.option("--keep", is_flag=True, help="Keep the server until Ctrl-C, to look at the page.")
@click.option(
    "--json", "as_json", is_flag=True, help="Print the table as JSON to stdout, and the rest to stderr."
)
@handle_errors
def demo(seconds: float, seed: int, port: int, keep: bool, as_json: bool) -> None:
    """Play a busy hour in a minute and say what the arbiter decides and why.

    A real Easel is started on 127.0.0.1 with a data folder of its own, which is removed at the end; the settings and data
    of this installation are not used. Pictures are sketches, the LLM and the GPU's memory are simulated. All times are
    measured. Exit code: 0 if every request was answered or Ctrl-C ended it, 1 if one failed.
    """
    _require_free(port)
    say: Say = partial(click.echo, err=as_json)
    with contextlib.suppress(KeyboardInterrupt), _sigterm_as_ctrl_c():
        say("Starting Easel, its sketch engine and a simulated LLM server …")
        with open_stage(seconds, port) as stage:
            _introduce(stage, seconds, say)
            summary = _play(stage, busy_hour(seed), seconds, say)
            if as_json:
                click.echo(json.dumps(summary.document(), indent=2))
            else:
                click.echo("\n" + "\n".join(lines_of(summary)))
            if keep:
                say("\nThe server stays until Ctrl-C.")
                signal.pause()
        if summary.failed:
            raise click.exceptions.Exit(1)
        return
    say("\nStopped.")


def _require_free(port: int) -> None:
    """Before anything is started."""
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError as error:
        raise click.UsageError(
            f"Port {port} cannot be used ({error.strerror}): choose another --port."
        ) from error


@contextlib.contextmanager
def _sigterm_as_ctrl_c() -> Iterator[None]:
    """So that SIGTERM leaves nothing behind either."""

    def stop(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _introduce(stage: Stage, seconds: float, say: Say) -> None:
    memory = stage.memory
    say(f"\nWatch it:  {stage.url}/#machine")
    say(f"Key:       {stage.keys[WATCHER]}")
    say(
        f"\nAn hour passes in {seconds:g} s. Simulated: a GPU of {memory.total / 1e9:g} GB, an LLM that takes "
        f"{memory.llm / 1e9:g} GB of it and an\nimage model that takes {memory.image_model / 1e9:g} GB, so that only one of "
        f"them fits. Real: Easel, the requests of {', '.join(PEOPLE)},\nand every number below, in seconds as they were "
        "measured.\n"
    )


def _play(stage: Stage, acts: tuple[Act, ...], seconds: float, say: Say) -> Summary:
    people = People(stage.url, stage.keys, seconds)
    [chats_of] = {act.who for act in acts if act.kind == "chat"}
    narrator = Narrator(
        stage.events, say, people.asks, chats_of=chats_of, started_at=time.time(), seconds=seconds
    )
    people.start(acts)
    looked_at = 0.0
    try:
        with DirectSession() as session:
            session.headers["Authorization"] = f"Bearer {stage.keys[WATCHER]}"
            ends_at = time.monotonic() + seconds
            while not people.are_done() or time.monotonic() < ends_at:
                narrator.read()
                if time.monotonic() - looked_at > _LOOK_INTERVAL_S:
                    looked_at = time.monotonic()
                    _look(session, stage, narrator)
                time.sleep(_READ_INTERVAL_S)
            _wait_for_the_last_switch(session, stage)
        narrator.read()
    finally:
        people.stop()
    return summarize(people.results, narrator.lines, stage.llm.failed_loads)


def _look(session: DirectSession, stage: Stage, narrator: Narrator) -> None:
    with contextlib.suppress(requests.RequestException, ValueError):
        narrator.look(_status(session, stage), time.time())


def _status(session: DirectSession, stage: Stage) -> Any:
    response = session.get(f"{stage.url}/api/comfyui/status", timeout=_CALL_TIMEOUT_S)
    response.raise_for_status()
    return response.json()


def _wait_for_the_last_switch(session: DirectSession, stage: Stage) -> None:
    """Its end belongs to the table."""
    deadline = time.monotonic() + _LAST_SWITCH_TIMEOUT_S
    with contextlib.suppress(requests.RequestException, ValueError):
        while _status(session, stage)["switchover"]["active"] and time.monotonic() < deadline:
            time.sleep(_READ_INTERVAL_S)
