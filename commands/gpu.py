"""flask gpu: who has the GPU, and passing it on; speaks to the running server over HTTP."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import click
import requests

from commands.context import handle_errors, services
from errors import ServerUnreachable, error_of
from http_session import DirectSession

_CALL_S = 10.0
_LOOK_S = 0.25
_PROBES_S = 4.0

url_option = click.option("--url", help="Address of the running server; this installation's own if left out.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print the answer as JSON.")


class Server:
    """The running Easel, over HTTP."""

    def __init__(self, url: str | None) -> None:
        address, key = services().server_address()
        self.url = (url or address).rstrip("/")
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}

    def call(self, method: str, path: str, body: Any = None, *, timeout_s: float = _CALL_S) -> Any:
        """The JSON of the answer. Raises the error that it names, and ServerAway."""
        try:
            with DirectSession() as session:
                answer = session.request(
                    method, self.url + path, json=body, headers=self._headers, timeout=timeout_s
                )
                document = answer.json()
        except (requests.RequestException, ValueError) as error:
            raise ServerUnreachable(
                f"No Easel answers at {self.url}; start it with `make run`, or say --url."
            ) from error
        if "x-request-id" not in answer.headers:
            raise ServerUnreachable(f"What answers at {self.url} is not an Easel.")
        if answer.status_code >= 400:
            told = document["error"]
            raise error_of(told["code"], told["message"])
        return document

    def status(self) -> dict[str, Any]:
        status: dict[str, Any] = self.call("GET", "/api/comfyui/status")
        return status


@click.group(short_help="Who has the GPU; pass it on, pin it.")
def gpu() -> None:
    """Who has the GPU, and passing it on. Speaks to the running server."""


@gpu.command(short_help="Show who has the GPU, and what waits and runs.")
@url_option
@json_option
@handle_errors
def status(url: str | None, as_json: bool) -> None:
    """Show who has the GPU, how the engine and the LLM servers are, and what waits and runs."""
    found = Server(url).status()
    _print(found, as_json, _status_lines)


@gpu.command(short_help="Pass the GPU on and wait until that is done.")
@click.argument("mode", type=click.Choice(["generation", "inference"]))
@click.option("--force", is_flag=True, help="Drop what runs and waits, and pass over a pin.")
@click.option("--pin", is_flag=True, help="Hold image mode afterwards; for generation only.")
@click.option("-m", "--model", help="Also warm this model; for generation only.")
@click.option("--timeout", type=click.IntRange(1), default=600, show_default=True, help="Seconds to wait.")
@url_option
@json_option
@handle_errors
def switch(
    mode: str, force: bool, pin: bool, model: str | None, timeout: int, url: str | None, as_json: bool
) -> None:
    """Pass the GPU to MODE and wait until that is done."""
    if model and mode != "generation":
        raise click.UsageError("--model is for generation")
    server = Server(url)
    if model:
        server.call("GET", f"/v1/models/{model}")  # an unknown one is no reason to unload an LLM
    body = {"mode": mode, "force": force} | ({"pin": True} if pin else {})
    asked = server.call("POST", "/api/comfyui/switchover", body)
    if asked["status"] == "switching":
        _follow(server, mode, timeout, quiet=as_json)
    if model:
        _warm(server, model, timeout)
    _print(_fresh_status(server), as_json, _status_lines)


@gpu.command(short_help="Hold image mode.")
@url_option
@json_option
@handle_errors
def pin(url: str | None, as_json: bool) -> None:
    """Hold image mode against idle restore and LLM requests."""
    _print(Server(url).call("POST", "/api/comfyui/pin", {"pinned": True}), as_json, lambda _: ["pinned"])


@gpu.command(short_help="Let image mode go.")
@url_option
@json_option
@handle_errors
def unpin(url: str | None, as_json: bool) -> None:
    """Let image mode go again."""
    _print(Server(url).call("POST", "/api/comfyui/pin", {"pinned": False}), as_json, lambda _: ["not pinned"])


def _print(found: Any, as_json: bool, lines: Callable[[Any], Any]) -> None:
    click.echo(json.dumps(found, indent=2, ensure_ascii=False) if as_json else "\n".join(lines(found)))


def _follow(server: Server, mode: str, timeout: int, *, quiet: bool) -> None:
    """Say each phase as it comes. Raises the error that the switch ended with."""
    give_up, said = time.monotonic() + timeout, ""
    while True:
        switchover = server.status()["switchover"]
        if not switchover["active"]:
            break
        if switchover["phase"] and switchover["phase"] != said and not quiet:
            said = switchover["phase"]
            click.echo(f"{said} …", err=True)
        if time.monotonic() > give_up:
            raise ServerUnreachable(f"The switch to {mode} was not done within {timeout} s; it goes on.")
        time.sleep(_LOOK_S)
    if switchover["error"]:
        raise error_of(switchover["error_code"], switchover["error"])


def _fresh_status(server: Server) -> dict[str, Any]:
    """The status with a round of probes that was made from now on; there is one a second."""
    before, give_up = server.status()["probed_at"], time.monotonic() + _PROBES_S
    while (found := server.status())["probed_at"] == before and time.monotonic() < give_up:
        time.sleep(_LOOK_S)
    return found


def _warm(server: Server, model: str, timeout: int) -> None:
    """Draw a picture that nobody keeps, as small as the model takes them: its weights are then in memory."""
    smallest = server.call("GET", f"/v1/models/{model}")["size"]["min"]
    body = {"model": model, "prompt": "warm up", "size": smallest, "steps": 1, "response_format": "b64_json"}
    server.call("POST", "/v1/images/generations", body, timeout_s=timeout)
    click.echo(f"{model} is warm", err=True)


# --- for people ------------------------------------------------------------------------------------


def _status_lines(found: dict[str, Any]) -> Iterator[str]:
    arbiter, switchover = found["arbiter"], found["switchover"]
    pinned = ", pinned" if arbiter and arbiter["pinned"] else ""
    shared = "" if arbiter else " (no LLM stack is configured)"
    yield f"GPU        {found['mode']}{pinned}{shared}"
    yield f"engine     {found['engine']}{_version(found)}"
    yield from _memory_lines(found["memory"])
    queue, waiting = found["queue"], len(found["tickets"])
    yield f"queue      {queue['running']} running, {queue['pending']} pending, {waiting} waiting"
    for job in found["jobs"]:
        yield f"  {job['id']}  {_progress(job)}"
    if switchover["number"] is not None or switchover["active"]:
        yield f"switch     {_switch_words(switchover)}"
        yield from (f"  {phase['name']:<10} {phase['seconds']:8.3f} s" for phase in switchover["phases"])
        yield from (
            f"  not loaded again: {item['owner']}/{item['id']}: {item['message']}"
            for item in switchover["failed"]
        )
    for stack in found["stacks"]:
        loaded = stack["problem"] or (
            "holds " + ", ".join(stack["loaded"]) if stack["loaded"] else "holds nothing"
        )
        yield f"stack      {stack['name']} ({stack['driver']}): {loaded}"
    for model in found["models"]:
        missing = f"{model['code']} {', '.join(model['missing'])}".strip()
        yield f"model      {model['id']}: {'ready' if model['ready'] else missing}"


def _version(found: dict[str, Any]) -> str:
    if found["sketch"]:
        return ", the built-in sketch engine"
    return f", ComfyUI {found['version']} at {found['endpoint']}" if found["version"] else ""


def _memory_lines(memory: dict[str, Any] | None) -> Iterator[str]:
    if memory and memory["vram_ceil_gb"] is not None:
        yield f"VRAM       {memory['vram_used_gb']} of {memory['vram_ceil_gb']} GB"
    if memory and memory["ram_ceil_gb"] is not None:
        yield f"RAM        {memory['ram_used_gb']} of {memory['ram_ceil_gb']} GB"


def _progress(job: dict[str, Any]) -> str:
    if job["step"] is None:
        return "not begun"
    eta = "" if job["eta_s"] is None else f", {job['eta_s']:.0f} s to go"
    return f"step {job['step']} of {job['steps']}{eta}"


def _switch_words(switchover: dict[str, Any]) -> str:
    if switchover["active"]:
        return f"to {switchover['target']}, {switchover['phase'] or 'about to begin'}"
    if switchover["error"]:
        return f"failed: {switchover['error']}"
    return f"the last took {switchover['elapsed_s']:.2f} s ({switchover['reason']})"
