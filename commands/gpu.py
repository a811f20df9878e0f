"""easel gpu: shows who has the GPU, and switches and pins it. Calls the running server over HTTP."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import click

from access import is_command_key
from commands.context import handle_errors, services
from errors import InvalidCancel, InvalidValue, ServerUnreachable, SwitchInProgress, error_from_code

_CALL_TIMEOUT_S = 10.0
_POLL_INTERVAL_S = 0.25
_FRESH_STATUS_TIMEOUT_S = 4.0
_SWITCH_TIMEOUT_S = 120.0

url_option = click.option("--url", help="URL of the running server; default: this installation's server.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
gpu_option = click.option(
    "--gpu", metavar="NAME", help="A GPU of the setting `engines`; default: that of the first engine."
)


class Server:
    """Client of a running Easel server."""

    def __init__(self, url: str | None) -> None:
        address, key = services().server_address()
        self.url = (url or address).rstrip("/")
        if self.url != address and is_command_key(key):
            key = None  # it is this installation's own
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}

    def call(self, method: str, path: str, body: Any = None, *, timeout_s: float = _CALL_TIMEOUT_S) -> Any:
        """The JSON of the response. Raises the error that the response contains, and ServerUnreachable."""
        # Not above: every worker imports the commands, and requests takes 3 MB.
        import requests

        from http_session import DirectSession

        try:
            with DirectSession() as session:
                response = session.request(
                    method, self.url + path, json=body, headers=self._headers, timeout=timeout_s
                )
                document = response.json()
        except (requests.RequestException, ValueError) as error:
            raise ServerUnreachable(
                f"No Easel server responds at {self.url}. Start it with `easel run`, or pass --url."
            ) from error
        if "x-request-id" not in response.headers:
            raise ServerUnreachable(f"The server at {self.url} is not Easel.")
        if response.status_code >= 400:
            code, message = document["error"]["code"], document["error"]["message"]
            raise error_from_code(code, message)
        return document

    def call_after_switchover(self, path: str, body: Any, timeout_s: float) -> Any:
        """POST, as soon as no switchover is in progress: an automatic one may be."""
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                return self.call("POST", path, body)
            except SwitchInProgress:
                if time.monotonic() > deadline:
                    raise
                time.sleep(_POLL_INTERVAL_S)

    def status(self, gpu: str | None = None) -> dict[str, Any]:
        """The response of GET /api/comfyui/status. `gpu`: the part that is about this GPU. Raises InvalidValue."""
        status: dict[str, Any] = self.call("GET", "/api/comfyui/status")
        return status if gpu is None else status_of_gpu(status, gpu)


def status_of_gpu(status: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Of the status what is about the GPU `name`: the fields of the first engine are those of its engine. Raises
    InvalidValue."""
    gpus = {gpu["name"]: gpu for gpu in status.get("gpus", ())}  # an older server has none
    if name not in gpus:
        raise unknown_gpu(name, gpus)
    gpu = gpus[name]
    engine = next((each for each in status["engines"] if each["name"] == gpu["engine"]), _REMOVED)
    seen: dict[str, Any] = {"gpu": name, "engine_name": gpu["engine"], "mode": engine["mode"]}
    if gpu["arbiter"] is not None:
        seen["mode"] = gpu["arbiter"]["mode"]
    seen |= {part: gpu[part] for part in ("switchover", "switches", "arbiter")}
    seen |= {part: engine[part] for part in _REMOVED if part != "mode"}
    is_only = len(status["engines"]) == 1  # then their entries do not name it
    for part in ("jobs", "tickets", "requests"):
        own = [each for each in status[part] if is_only or each.get("engine") == gpu["engine"]]
        seen[part] = own if gpu["engine"] is not None else []
    seen["stacks"] = [stack for stack in status["stacks"] if stack.get("gpu") == name]
    return {**seen, "probed_at": status["probed_at"]}


def unknown_gpu(name: str, known: Iterable[str]) -> InvalidValue:
    """The error for a GPU that is none of `known`."""
    names = ", ".join(known) or "none, because the setting `engines` is not used"
    return InvalidValue(f"There is no GPU {name!r}; there are: {names}.", param="gpu")


_REMOVED: Mapping[str, Any] = {
    "mode": "inference",
    "engine": "stopped",
    "reachable": False,
    "problem": None,
    "endpoint": None,
    "version": None,
    "sketch": False,
    "memory": None,
    "queue": {"running": 0, "pending": 0},
}
"""For the engine of a GPU from which it was removed"""


@click.group(short_help="Show who has the GPU; switch it, pin it, cancel requests.")
def gpu() -> None:
    """Show who has the GPU, switch or pin it, and cancel requests. Calls the running server."""


@gpu.command(short_help="Show who has the GPU, and the queue.")
@gpu_option
@url_option
@json_option
@handle_errors
def status(gpu: str | None, url: str | None, as_json: bool) -> None:
    """Show who has the GPU, the state of the engine and the LLM servers, and the waiting and running jobs.

    With several GPUs: of the first engine, who has each of the others, and the jobs of all; with --gpu only what is about
    that one.
    """
    _print(Server(url).status(gpu), as_json, _status_lines)


@gpu.command(short_help="Switch the GPU to a mode and wait until it is done.")
@click.argument("mode", type=click.Choice(["generation", "inference"]))
@click.option("--force", is_flag=True, help="Drop running and waiting jobs, and ignore a pin.")
@click.option("--pin", is_flag=True, help="Pin generation mode afterwards; for generation only.")
@click.option("-m", "--model", help="Also load this model; for generation only.")
@click.option(
    "--timeout",
    type=click.IntRange(1),
    default=600,
    show_default=True,
    help="Maximum time to wait, in seconds.",
)
@gpu_option
@url_option
@json_option
@handle_errors
def switch(
    mode: str,
    force: bool,
    pin: bool,
    model: str | None,
    timeout: int,
    gpu: str | None,
    url: str | None,
    as_json: bool,
) -> None:
    """Switch the GPU to MODE and wait until the switchover is done."""
    if model and mode != "generation":
        raise click.UsageError("--model can only be used with generation")
    if model and gpu:
        raise click.UsageError(
            "--model cannot be used with --gpu: Easel chooses the engine that draws a model"
        )
    server = Server(url)
    if model:
        server.call("GET", f"/v1/models/{model}")  # fails before any LLM is unloaded if the model is unknown
    body = {"mode": mode, "force": force} | ({"pin": True} if pin else {}) | _field(gpu)
    response = server.call_after_switchover("/api/comfyui/switchover", body, timeout)
    if response["status"] == "switching":
        _wait_for_switchover(server, mode, timeout, gpu, quiet=as_json)
    if model:
        _load_model(server, model, timeout)
    _print(_fresh_status(server, gpu), as_json, _status_lines)


@gpu.command(short_help="Pin generation mode.")
@gpu_option
@url_option
@json_option
@handle_errors
def pin(gpu: str | None, url: str | None, as_json: bool) -> None:
    """Pin generation mode: neither LLM requests nor the end of the pictures end it."""
    _print(_set_pin(url, gpu, is_pinned=True), as_json, lambda _: ["pinned"])


@gpu.command(short_help="Unpin generation mode.")
@gpu_option
@url_option
@json_option
@handle_errors
def unpin(gpu: str | None, url: str | None, as_json: bool) -> None:
    """Unpin generation mode."""
    _print(_set_pin(url, gpu, is_pinned=False), as_json, lambda _: ["not pinned"])


@gpu.command(short_help="Cancel a request, or all.")
@click.argument("name", metavar="[ID]", required=False)
@click.option("--all", "cancel_all", is_flag=True, help="Cancel all requests and all jobs in ComfyUI.")
@url_option
@json_option
@handle_errors
def cancel(name: str | None, cancel_all: bool, url: str | None, as_json: bool) -> None:
    """Cancel the request with this ID: its x-request-id or the id of one of its jobs, as `easel gpu status` shows them.

    All of its pictures that are not finished are cancelled.
    """
    if (name is None) != cancel_all:
        raise InvalidCancel("Give either the id of a request or --all.")
    body = {"all": True} if cancel_all else {"id": name}
    answer = Server(url).call("POST", "/api/comfyui/render/cancel", body)
    _print(
        answer, as_json, lambda answer: [f"cancelling {job}" for job in answer["jobs"]] or ["nothing runs"]
    )


def _field(gpu: str | None) -> dict[str, str]:
    """The field of a request that names the GPU, if one was named."""
    return {} if gpu is None else {"gpu": gpu}


def _set_pin(url: str | None, gpu: str | None, *, is_pinned: bool) -> Any:
    body = {"pinned": is_pinned, **_field(gpu)}
    return Server(url).call_after_switchover("/api/comfyui/pin", body, _SWITCH_TIMEOUT_S)


def _print(document: Any, as_json: bool, lines: Callable[[Any], Any]) -> None:
    click.echo(json.dumps(document, indent=2, ensure_ascii=False) if as_json else "\n".join(lines(document)))


def _wait_for_switchover(server: Server, mode: str, timeout: int, gpu: str | None, *, quiet: bool) -> None:
    """Print each phase as it starts. Raises the error of the switchover, and ServerUnreachable after `timeout`."""
    deadline, last_phase = time.monotonic() + timeout, ""
    while True:
        switchover = server.status(gpu)["switchover"]
        if not switchover["active"]:
            break
        if switchover["phase"] and switchover["phase"] != last_phase and not quiet:
            last_phase = switchover["phase"]
            click.echo(f"{last_phase} …", err=True)
        if time.monotonic() > deadline:
            raise ServerUnreachable(
                f"The switchover to {mode} was not done within {timeout} s; it continues on the server."
            )
        time.sleep(_POLL_INTERVAL_S)
    if switchover["error"]:
        raise error_from_code(switchover["error_code"], switchover["error"])


def _fresh_status(server: Server, gpu: str | None) -> dict[str, Any]:
    """The status after the next round of probes, which runs once per second."""
    probed_at, deadline = server.status()["probed_at"], time.monotonic() + _FRESH_STATUS_TIMEOUT_S
    while (status := server.status(gpu))["probed_at"] == probed_at and time.monotonic() < deadline:
        time.sleep(_POLL_INTERVAL_S)
    return status


def _load_model(server: Server, model: str, timeout: int) -> None:
    """Load the weights into memory, by drawing a picture of the model's minimum size that is not stored."""
    min_size = server.call("GET", f"/v1/models/{model}")["size"]["min"]
    body = {"model": model, "prompt": "warm up", "size": min_size, "steps": 1, "response_format": "b64_json"}
    server.call("POST", "/v1/images/generations", body, timeout_s=timeout)
    click.echo(f"{model} is loaded", err=True)


# --- text output -----------------------------------------------------------------------------------


def _status_lines(status: dict[str, Any]) -> Iterator[str]:
    switchover, gpus = status["switchover"], status.get("gpus", ())
    name = gpus[0]["name"] if len(gpus) > 1 else status.get("gpu")
    yield _gpu_line(name, status["mode"], status["arbiter"])
    # The lines about one GPU are about the first one.
    yield from (
        _gpu_line(gpu["name"], gpu["arbiter"]["mode"], gpu["arbiter"]) for gpu in gpus[1:] if gpu["arbiter"]
    )
    name = f"{status['engine_name']}, " if status.get("engine_name") else ""
    yield f"engine     {name}{status['engine']}{_version(status)}"
    if status["problem"]:
        yield f"  {status['problem']['code']}: {status['problem']['message']}"
    if status.get("picture_delivery") == "file":
        yield "pictures   stay in ComfyUI's output folder: it has no node SaveImageWebsocket"
    yield from _memory_lines(status["memory"])
    queue, waiting = status["queue"], len(status["tickets"])
    yield f"queue      {queue['running']} running, {queue['pending']} pending, {waiting} waiting"
    for job in status["jobs"]:
        yield f"  {_who(job)}: {_progress(job)}"
    for ticket in status["tickets"]:
        yield f"  {_who(ticket)}: waits for {ticket['waits_for'] or 'its turn'}{_expected(ticket)}"
    if switchover["number"] is not None or switchover["active"]:
        yield f"switchover {_switchover_text(switchover)}"
        yield from (f"  {phase['name']:<10} {phase['seconds']:8.3f} s" for phase in switchover["phases"])
        yield from (
            f"  not loaded again: {item['owner']}/{item['id']}: {item['message']}"
            for item in switchover["failed"]
        )
    for stack in status["stacks"]:
        loaded = stack["problem"] or f"loaded: {', '.join(stack['loaded'] or []) or 'none'}"
        yield f"stack      {stack['name']} ({stack['driver']}): {loaded}"
    for model in status.get("models", ()):
        missing = f"{model['code']} {', '.join(model['missing'])}".strip()
        yield f"model      {model['id']}: {'ready' if model['ready'] else missing}"


def _gpu_line(name: str | None, mode: str, arbiter: Mapping[str, Any] | None) -> str:
    title = "GPU" if name is None else f"GPU {name}"
    pinned = ", pinned" if arbiter and arbiter["pinned"] else ""
    shared = (
        "" if arbiter else " (no LLM stack is configured)" if name is None else " (no LLM stack shares it)"
    )
    return f"{title:<10} {mode}{pinned}{shared}"


def _version(status: dict[str, Any]) -> str:
    if status["sketch"]:
        return ", the built-in sketch engine"
    return f", ComfyUI {status['version']} at {status['endpoint']}" if status["version"] else ""


def _memory_lines(memory: dict[str, Any] | None) -> Iterator[str]:
    if memory and memory["vram_ceil_gb"] is not None:
        yield f"VRAM       {memory['vram_used_gb']} of {memory['vram_ceil_gb']} GB"
    if memory and memory["ram_ceil_gb"] is not None:
        yield f"RAM        {memory['ram_used_gb']} of {memory['ram_ceil_gb']} GB"


def _who(job: dict[str, Any]) -> str:
    """The request of a job or ticket: id, model, client and age."""
    parts = [job["request_id"] or job["id"], job["model"], job["client"]]
    if job["age_s"] is not None:
        parts.append(f"{job['age_s']:.0f} s ago")
    return "  ".join(part for part in parts if part)


def _expected(ticket: dict[str, Any]) -> str:
    return "" if ticket["expected_s"] is None else f", about {ticket['expected_s']} s more"


def _progress(job: dict[str, Any]) -> str:
    if job["step"] is None:
        return "not started"
    eta = "" if job["eta_s"] is None else f", {job['eta_s']:.0f} s left"
    return f"step {job['step']} of {job['steps']}{eta}"


def _switchover_text(switchover: dict[str, Any]) -> str:
    if switchover["active"]:
        return f"to {switchover['target']}, {switchover['phase'] or 'not started'}"
    if switchover["error"]:
        return f"failed: {switchover['error']}"
    return f"last took {switchover['elapsed_s']:.2f} s ({switchover['reason']})"
