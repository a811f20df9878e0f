"""The checks of `easel doctor`. Each looks at one thing and yields what it finds; `CHECKS` run with the services of the
application, in this order."""

from __future__ import annotations

import os
import resource
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import installation
from commands.context import CommandServices, HostsOfCommand, services
from commands.engines import refused_edit
from commands.finding import Finding, Severity
from commands.first_models import first_models, pull_line
from commands.machine import Machine, same_place
from commands.model_checks import CheckedModel, checked_model
from compiler import Catalogue
from detection import check_address, comfyui_place, free_port
from engine import Engine, EngineStats
from engines import EngineUnit, Fleet
from errors import (
    CatalogueInvalid,
    ClusterMessageInvalid,
    EaselError,
    EngineUnreachable,
    ModelsFolderMissing,
    SettingsInvalid,
    TemplateInvalid,
)
from loopback import is_loopback
from model_files import plan_pull
from state_format import refuse_newer

_MIN_PYTHON = (3, 11)
_FULL_BYTES, _LOW_BYTES = 100_000_000, 1_000_000_000
"""With less free space pictures may not be stored; with less than the second that is near"""
_CLOCK_SLACK_S = 86_400.0
_FILES_FOR_SERVER = 1024
_MAX_NAMES = 4
_COMPLETION = "_EASEL_COMPLETE"
_SHELL_FILES = (".bashrc", ".bash_profile", ".zshrc", ".profile", ".config/fish/config.fish")

# --- without the application ------------------------------------------------------------------------------


def check_python(version: tuple[int, ...] = sys.version_info[:3]) -> Iterator[Finding]:
    """Whether this Python is new enough."""
    shown = ".".join(map(str, version))
    if version[:2] >= _MIN_PYTHON:
        yield Finding("python.ok", "ok", f"Python {shown}")
    else:
        yield Finding(
            "python.too_old",
            "error",
            f"Easel needs Python 3.11 or newer; this is {shown}.",
            "pipx install --python python3.12 .",
        )


def check_clock(now: float | None = None, marks: Sequence[Path] | None = None) -> Iterator[Finding]:
    """Whether the clock is before files that were certainly written in the past. `marks`: such files."""
    now = time.time() if now is None else now
    marks = [installation.PROJECT / "catalogue.yaml"] if marks is None else marks
    times = [path.stat().st_mtime for path in marks if path.exists()]
    if any(moment > now + _CLOCK_SLACK_S for moment in times):
        shown = time.strftime("%Y-%m-%d", time.gmtime(now))
        yield Finding(
            "clock.behind",
            "warning",
            f"The clock says {shown}, which is before Easel's own files: keys expire at wrong times, and certificates may "
            "be refused.",
            "sudo timedatectl set-ntp true",
        )
    else:
        yield Finding("clock.ok", "ok", "The clock is plausible.")


def check_completion(program: str, home: Path | None = None) -> Iterator[Finding]:
    """Whether a shell of this user completes the command."""
    if program != "easel":
        return
    try:
        home = home or Path.home()
    except RuntimeError:
        return  # this user has no home, and so no shell to complete in
    for name in _SHELL_FILES:
        try:
            if _COMPLETION in (home / name).read_text("utf-8", "replace"):
                yield Finding("completion.ok", "ok", f"Shell completion is set up in {name}.")
                return
        except OSError:
            continue
    shell = Path(os.environ.get("SHELL", "bash")).name
    line = f'eval "$({_COMPLETION}={shell}_source easel)"'
    if shell == "fish":
        line = f"{_COMPLETION}=fish_source easel | source"
    target = {"zsh": "~/.zshrc", "fish": "~/.config/fish/config.fish"}.get(shell, "~/.bashrc")
    if shell in ("bash", "zsh", "fish"):
        fix = f"echo {shlex.quote(line)} >> {target}"
        yield Finding("completion.missing", "hint", "The shell does not complete easel's commands.", fix)


def settings_findings(loaded: CommandServices | EaselError) -> Iterator[Finding]:
    """What is wrong with the settings, one finding for each error. `loaded`: the services, or why there are none."""
    named = os.environ.get("EASEL_CONFIG")
    path = Path(named) if named else installation.config_folder() / "easel.yaml"
    if isinstance(loaded, EaselError):
        is_missing = named is not None and not path.exists()
        correct = f"Correct it in {path}. A server that runs keeps what it has until then."
        fix = f"easel --config {shlex.quote(str(path))} setup" if is_missing else correct
        for line in loaded.details.get("errors") or [loaded.message]:
            is_variable = line.startswith("EASEL_")
            yield Finding(
                loaded.code, "error", line, f"unset {line.partition(':')[0]}" if is_variable else fix
            )
    elif loaded.settings.file_name:
        yield Finding("settings.ok", "ok", f"Settings: {path}")
    else:
        yield Finding(
            "settings.no_file",
            "hint",
            f"There is no {path}: all settings have their defaults.",
            "easel setup",
        )


# --- with the application ---------------------------------------------------------------------------------


def check_data_folder(machine: Machine) -> Iterator[Finding]:
    """Whether the state directory can be written, has a form that this version knows, and has space."""
    folder = services().state_dir
    existing = next((each for each in (folder, *folder.parents) if each.exists()), Path("/"))
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        yield Finding(
            "data.unwritable",
            "error",
            f"Data cannot be written to {folder}: {existing} is "
            f"{'read-only or belongs to another user' if existing.is_dir() else 'no folder'}.",
            "easel --state-dir FOLDER run",
        )
        return
    try:
        refuse_newer(folder)
    except SettingsInvalid as error:
        yield Finding("data.too_new", "error", error.message, "easel --state-dir FOLDER run")
        return
    except OSError as error:
        yield Finding(
            "data.unwritable",
            "error",
            f"Data in {folder} cannot be read: {error}",
            "easel --state-dir FOLDER run",
        )
        return
    free = shutil.disk_usage(existing).free
    if free < _LOW_BYTES:
        is_full = free < _FULL_BYTES
        yield Finding(
            "data.disk_full",
            "error" if is_full else "warning",
            f"The disk of {folder} has {free / 1e9:.2f} GB free; pictures need some.",
            f"df -h {shlex.quote(str(existing))}   # then make room, or use --state-dir",
        )
    else:
        yield Finding("data.ok", "ok", f"Data: {folder}, {free / 1e9:.0f} GB free")


def check_server(machine: Machine) -> Iterator[Finding]:
    """Whether this installation's server runs and answers; if not, whether it could listen."""
    host, port = services().settings["host"], services().settings["port"]
    if services().is_server_running():
        yield from _running_server(machine)
        return
    try:
        check_address(host, port)
    except SettingsInvalid as error:
        yield _taken_port(machine, host, port, error)
        return
    yield Finding("server.not_running", "hint", "The server does not run.", "easel run")


def _running_server(machine: Machine) -> Iterator[Finding]:
    url = services().stored_server_url()
    found = machine.at(url) if url else None
    if url and found is None:
        from detection import find_services

        found = find_services([url])[url]
    if found is None or found.kind != "easel":
        where = f" at {url}" if url else ""
        yield Finding(
            "server.silent",
            "error",
            f"A server uses {services().state_dir}, and none answers{where}.",
            "Look at its log, and start it again: easel run",
        )
    elif found.version != installation.VERSION:
        yield Finding(
            "server.other_version",
            "warning",
            f"The server at {url} is Easel {found.version}; this command is {installation.VERSION}.",
            "Stop that server and start the new one: easel run",
        )
    else:
        yield Finding("server.ok", "ok", f"Easel {found.version} runs at {url}.")
    if refused := refused_edit():
        yield Finding(
            "engines.refused",
            "warning",
            f"The running server uses the last valid engines: {refused}",
            "Correct easel.yaml; the server looks at it every second.",
        )


def _taken_port(machine: Machine, host: str, port: int, error: SettingsInvalid) -> Finding:
    service, process = machine.at(f"http://127.0.0.1:{port}"), machine.process_on(port)
    by = service.title if service else process.program if process else ""
    if not by:
        return Finding("server.cannot_listen", "error", error.message, "easel run --port 0")
    if service and service.kind == "easel":
        by = f"another {service.title}"
    number = f", process {process.id}" if process else ""
    free = free_port(host, port) or 0
    return Finding(
        "server.port_taken",
        "error",
        f"Port {port} is taken by {by}{number}: Easel cannot start there.",
        f"easel run --port {free}   # or `port: {free}` in easel.yaml",
    )


def check_keys(machine: Machine) -> Iterator[Finding]:
    """Whether the network can use this server without a key."""
    settings, gate = services().settings, services().gate
    if problem := gate.problem:
        yield Finding(problem.code, "error", problem.message, "easel keys list")
        return
    try:
        services().check_exposure()
    except SettingsInvalid as error:
        yield Finding("keys.missing", "error", error.message, "easel keys add NAME")
        return
    if not is_loopback(settings["host"]) and not gate.needs_key:
        yield Finding(
            "keys.open",
            "warning",
            f"Everyone who reaches {settings['host']}:{settings['port']} may use this server: allow_open is on, and there "
            "are no keys.",
            "easel keys add NAME",
        )
    else:
        yield Finding(
            "keys.ok", "ok", "Keys are in use." if gate.needs_key else "No keys: only this machine may call."
        )


def check_proxy(machine: Machine) -> Iterator[Finding]:
    """Whether the settings about reverse proxies believe everyone."""
    import ipaddress

    for text in services().settings["trusted_proxies"]:
        network = ipaddress.ip_network(text, strict=False)
        if network.prefixlen == 0:
            yield Finding(
                "proxy.trusts_everyone",
                "warning",
                f"trusted_proxies has {text}: every client can pretend to have another address.",
                "Write the address of the proxy into trusted_proxies, such as 127.0.0.1.",
            )
    url, host = services().settings["public_url"], services().settings["host"]
    if url and is_loopback(urlsplit(url).hostname) and not is_loopback(host):
        yield Finding(
            "proxy.public_url_is_local",
            "warning",
            f"public_url is {url}, and other machines may call this server: the URLs of their images lead to themselves.",
            "Write the address that clients use into public_url, or remove it.",
        )


def check_catalogue_files(machine: Machine) -> Iterator[Finding]:
    """Whether the catalogue and the owner's folder are valid."""
    try:
        catalogue = services().catalogue()
    except (CatalogueInvalid, TemplateInvalid) as error:
        yield Finding(error.code, "error", error.message, "easel check-catalogue")
        return
    if refused := services().catalogue_error():
        yield Finding(
            refused.code,
            "warning",
            f"The last valid catalogue is used: {refused.message}",
            "easel check-catalogue",
        )
    for fault in catalogue.own_faults:
        yield Finding("catalogue.own_fault", "warning", f"Not used: {fault}", "easel check-catalogue")
    if faulty := [model.id for model in catalogue.visible_models if catalogue.undrawable.get(model.id)]:
        yield Finding(
            "catalogue.undrawable",
            "warning",
            f"Workflows with faults: {_first(faulty)} cannot draw everything.",
            "easel check-catalogue",
        )
    if not refused and not catalogue.own_faults and not faulty:
        yield Finding("catalogue.ok", "ok", f"The catalogue is valid: {len(catalogue.models)} models.")


def check_engine(machine: Machine) -> Iterator[Finding]:
    """Whether ComfyUI answers and opens its WebSocket, and what its models lack."""
    hosts = services().host_list
    if hosts is not None:
        yield from _hosts(hosts)
        if not services().settings["engine.url"] and not services().settings["engines"]:
            return  # this machine asks others to draw
    fleet = services().fleet
    if fleet.is_single:
        yield from _only_engine(machine)
    else:
        yield from _several_engines(fleet, machine)


def _only_engine(machine: Machine) -> Iterator[Finding]:
    try:
        engine = services().engine_selector.comfyui()
        if engine is None:
            yield from _without_comfyui(machine)
            return
        stats = engine.stats()
        engine.connect()
    except EngineUnreachable as error:
        start = "easel run   # it starts ComfyUI" if services().settings["engine.start"] else "Start ComfyUI"
        yield Finding(error.code, "error", error.message, f"{start}, or correct engine.url in easel.yaml.")
        return
    yield from _answering(engine, stats, machine)
    catalogue = _valid_catalogue()
    if catalogue is None:
        return
    checked = [checked_model(model, catalogue, engine, stats) for model in catalogue.visible_models]
    yield from _ready_models(checked, catalogue, stats)
    if any(map(_is_drawable, checked)):
        yield from _default_model(catalogue, checked)
    yield from _lacking(checked, stats)


def _several_engines(fleet: Fleet, machine: Machine) -> Iterator[Finding]:
    """Of each engine, with its name. What only one of them lacks prevents no drawing."""
    looks = [_look(fleet, unit, machine) for unit in fleet.units]
    best: dict[str, CheckedModel] = {}
    for _, checked in looks:
        for each in checked:
            if each.model.id not in best or _is_drawable(each):
                best[each.model.id] = each
    can_draw = any(map(_is_drawable, best.values()))
    for unit, (findings, _) in zip(fleet.units, looks, strict=True):
        for finding in findings:
            severity = "warning" if finding.severity == "error" and can_draw else finding.severity
            yield replace(finding, severity=severity, message=f"Engine {unit.name}: {finding.message}")
    catalogue = _valid_catalogue()
    if can_draw and catalogue is not None:
        yield from _default_model(catalogue, list(best.values()))


def _look(fleet: Fleet, unit: EngineUnit, machine: Machine) -> tuple[list[Finding], list[CheckedModel]]:
    """What is found about one of several engines, and the models that it may draw."""
    catalogue, checked = _valid_catalogue(), list[CheckedModel]()
    try:
        engine = unit.engine()
        stats = engine.stats()
        engine.connect()
        if catalogue is not None:
            models = [model for model in catalogue.visible_models if fleet.lists(unit, model.id)]
            checked = [checked_model(model, catalogue, engine, stats) for model in models]
    except EngineUnreachable as error:
        start = "easel run   # it starts ComfyUI" if unit.process.can_start else "Start it"
        fix = f"{start}, or correct its url under `engines` in easel.yaml."
        return [Finding(error.code, "error", error.message, fix)], []
    found = list(_answering(engine, stats, machine))
    if catalogue is not None:
        found += [*_ready_models(checked, catalogue, stats, " there"), *_lacking(checked, stats)]
    return found, checked


def _is_drawable(checked: CheckedModel) -> bool:
    return checked.state is not None and checked.state.is_drawable


def _valid_catalogue() -> Catalogue | None:
    """None if it is not valid, which `check_catalogue_files` says."""
    try:
        return services().catalogue()
    except (CatalogueInvalid, TemplateInvalid):
        return None


def _answering(engine: Engine, stats: EngineStats, machine: Machine) -> Iterator[Finding]:
    """Of an engine that answers: what it is, and whether it has a GPU."""
    name = "A sketch engine" if stats.is_sketch else f"ComfyUI {stats.version}"
    gpu = (
        f", {stats.device} with {stats.vram_total / 1e9:.1f} GB" if stats.has_gpu and stats.vram_total else ""
    )
    yield Finding("engine.ok", "ok", f"{name} at {engine.url}{gpu}")
    if not stats.has_gpu and not stats.is_sketch:
        yield Finding(
            "engine.no_gpu",
            "warning" if machine.gpus else "hint",
            "ComfyUI draws with the processor, which takes minutes for a picture.",
            "Start ComfyUI without --cpu, with the PyTorch for your GPU."
            if machine.gpus
            else "Use small models and few steps, such as those of `easel models list sd-1.5`.",
        )


def _hosts(hosts: HostsOfCommand) -> Iterator[Finding]:
    try:
        reports = hosts.reports()
    except EaselError as error:
        yield Finding(error.code, "error", error.message, error.remedy)
        return
    ready = [report["name"] for report in reports if report["state"] == "ready"]
    if ready:
        yield Finding("cluster.ok", "ok", f"Redis answers; hosts that draw: {_first(ready)}")
    else:
        message = "Redis answers, and no host is there that can draw."
        yield Finding("cluster.no_hosts", "error", message, "easel worker   # on a machine with a GPU")
    for report in reports:
        if report["state"] == "unreadable":
            message = f"The host {report['name']} is there, and {report['problem']}."
            yield Finding("cluster.host_unreadable", "warning", message, ClusterMessageInvalid.remedy)
        elif report["state"] not in ("ready", "drained"):
            message = f"The host {report['name']} is {report['state']}: {report['problem']}"
            yield Finding("cluster.host_down", "warning", message, "easel hosts list")


def _without_comfyui(machine: Machine) -> Iterator[Finding]:
    draws_sketches = services().settings["engine.sketch"]
    code = "engine.sketch" if draws_sketches else EngineUnreachable.code
    severity: Severity = "warning" if draws_sketches else "error"
    result = (
        "the server draws sketches"
        if draws_sketches
        else "nothing can be drawn, because engine.sketch is off"
    )
    elsewhere = next((service for service in machine.services if service.kind == "comfyui"), None)
    if elsewhere:
        message = f"{elsewhere.title} answers at {elsewhere.url}, and engine.url does not name it: {result}."
        yield Finding(
            code, severity, message, f"EASEL_ENGINE_URL={elsewhere.url} easel run   # or: easel setup"
        )
    else:
        fix = "Start ComfyUI; if it is elsewhere: EASEL_ENGINE_URL=http://HOST:8188 easel run"
        yield Finding(code, severity, f"No ComfyUI answers: {result}.", fix)


def _ready_models(
    checked: Sequence[CheckedModel], catalogue: Catalogue, stats: EngineStats, where: str = ""
) -> Iterator[Finding]:
    """Which of the models of an engine can draw."""
    if ready := list(filter(_is_drawable, checked)):
        names = _first([each.model.id for each in ready])
        yield Finding("models.ok", "ok", f"{len(ready)} of {len(checked)} models can draw: {names}")
        return
    first = first_models(catalogue, stats.vram_total if stats.has_gpu else None, stats.version)
    yield Finding(
        "models.none_ready",
        "error",
        f"No model has all of its files, so nothing can be drawn{where}.",
        pull_line(first[0]) if first else "easel models",
    )


def _default_model(catalogue: Catalogue, checked: Sequence[CheckedModel]) -> Iterator[Finding]:
    default = next((each for each in checked if each.model.id == catalogue.default_model), None)
    if default is None or _is_drawable(default):
        return
    why = "whose licence was not accepted" if default.is_refused else "which cannot be drawn yet"
    accept = f"easel accept-licence {default.model.id}   # "
    fix = accept if default.is_refused else f"{pull_line(default.model)}; "
    yield Finding(
        "models.default_not_ready",
        "warning",
        f"Requests without a model ask for {default.model.id}, {why}.",
        f"{fix}or set images.default_model",
    )


def _lacking(checked: Sequence[CheckedModel], stats: EngineStats) -> Iterator[Finding]:
    """Models that have their files and lack something else."""
    too_old = [
        each.model.id for each in checked if each.state and each.state.needs_comfyui and not each.state.files
    ]
    if too_old:
        yield Finding(
            "engine.too_old",
            "hint",
            f"ComfyUI {stats.version} is too old for {len(too_old)} models: {_first(too_old)}.",
            "Update ComfyUI, if you want one of these.",
        )
    for each in checked:
        state = each.state
        if state and state.lacks and not state.files and not state.needs_comfyui and not state.is_ready:
            yield Finding(
                "models.nodes_missing",
                "hint" if state.is_drawable else "warning",
                f"{each.model.id} has its files and cannot draw everything: {state.lacks[0]}",
                "Install the nodes in ComfyUI and restart it.",
            )


def check_model_files(machine: Machine) -> Iterator[Finding]:
    """Whether it is known where models go, and whether one waits for its licence only."""
    try:
        folders = services().model_folders()
    except (ModelsFolderMissing, SettingsInvalid) as error:
        yield from _without_models_folder(machine, error)
        return
    yield Finding("files.ok", "ok", f"Models: {folders.models_dir}")
    try:
        catalogue = services().catalogue()
    except (CatalogueInvalid, TemplateInvalid):
        return
    waiting = [
        model
        for model in catalogue.visible_models
        if catalogue.licences.blocks_drawing(model)
        and catalogue.licences.state(model) == "not_accepted"
        and not plan_pull([model], folders).files
    ]
    if waiting:
        ids = [model.id for model in waiting]
        yield Finding(
            "licences.not_accepted",
            "warning",
            f"The files of {_first(ids)} are there, and their licence was not accepted.",
            f"easel accept-licence {' '.join(ids)}",
        )


def _without_models_folder(machine: Machine, error: EaselError) -> Iterator[Finding]:
    if services().settings["engine.models_dir"]:
        yield Finding(error.code, "warning", error.message, "Correct engine.models_dir in easel.yaml.")
        return
    for service in machine.services:
        facts, process = service.comfyui, machine.process_of(service)
        if facts is None or not is_loopback(urlsplit(service.url).hostname):
            continue
        if place := comfyui_place(facts.folders, facts.arguments, process.folder if process else None):
            yield Finding(
                "files.folder_unknown",
                "hint",
                f"`easel pull-model` does not know that ComfyUI keeps its models in {place.models_dir}.",
                f"export EASEL_ENGINE_MODELS_DIR={shlex.quote(str(place.models_dir))}   # or engine.models_dir",
            )
            return


def check_llm_servers(machine: Machine) -> Iterator[Finding]:
    """Whether the configured LLM servers answer as their drivers expect."""
    for status in services().stacks.status():
        problem = status.problem
        if problem is None:
            loaded = ", ".join(status.loaded or ()) or "nothing"
            yield Finding("llm.ok", "ok", f"{status.name} at {status.url}, loaded: {loaded}")
        elif status.loaded == ():
            yield Finding("llm.not_running", "hint", f"{status.name} does not run: {problem}", "Start it.")
        else:
            yield Finding(
                "llm.unusable",
                "error",
                f"{stack_problem(status.name, status.url, problem)} While it is not known what it holds of the "
                "GPU, no picture is drawn.",
                "Correct llm.stacks in easel.yaml, see docs/llm_stacks.md; `easel setup --print` shows what was found.",
            )
    directory = services().model_directory
    directory.refresh()
    for upstream in directory.status():
        if upstream.problem and upstream.stack is None:
            yield Finding(
                "llm.upstream_silent",
                "warning",
                f"{upstream.name} at {upstream.url}: {upstream.problem}",
                "Start it, or correct llm.upstreams in easel.yaml.",
            )
    yield from other_servers(machine, _listed_urls())


def stack_problem(name: str, url: str | None, problem: str) -> str:
    """The problem of an LLM server as a sentence that names it."""
    said = problem if problem.startswith(name) else f"{name}{f' at {url}' if url else ''}: {problem}"
    return said if said.endswith((".", "!", "?")) else f"{said}."


def _listed_urls() -> list[str]:
    settings = services().settings
    entries = (*settings["llm.stacks"], *settings["llm.upstreams"])
    return [entry["url"] for entry in entries if isinstance(entry.get("url"), str)]


def other_servers(machine: Machine, listed: Sequence[str] = ()) -> Iterator[Finding]:
    """LLM servers that run here and that the settings do not name."""
    for service in machine.services:
        if service.is_llm and not any(same_place(service.url, url) for url in listed):
            has_gpu = bool(machine.gpus)
            yield Finding(
                "llm.not_listed",
                "warning" if has_gpu else "hint",
                f"{service.title} answers at {service.url}, and easel.yaml does not name it: its chats do not go through "
                f"Easel{', and it keeps its GPU memory while pictures are drawn' if has_gpu else ''}.",
                "easel setup --print   # shows the lines",
            )


def check_file_limit(machine: Machine) -> Iterator[Finding]:
    """Whether a server may open enough files."""
    yield from file_limit_findings(
        resource.getrlimit(resource.RLIMIT_NOFILE)[1], services().settings["threads"]
    )


def file_limit_findings(hard: int, threads: int) -> Iterator[Finding]:
    """`hard`: how far a process may raise the number of files that it opens. Half of them are kept for
    threads, each of which may need four."""
    needed = max(_FILES_FOR_SERVER, 2 * (64 + 4 * threads))
    if hard == resource.RLIM_INFINITY or hard >= needed:
        shown = "any number of" if hard == resource.RLIM_INFINITY else f"{hard}"
        yield Finding("files.limit_ok", "ok", f"A process may open {shown} files.")
    else:
        yield Finding(
            "files.limit_low",
            "warning",
            f"A process may open {hard} files only; {threads} threads need {needed}. Many clients at once would be refused.",
            f"ulimit -n {needed}   # for systemd: LimitNOFILE={needed}",
        )


def _first(names: Sequence[str]) -> str:
    """The first few names, and how many there are besides."""
    further = len(names) - _MAX_NAMES
    return f"{', '.join(names[:_MAX_NAMES])} and {further} more" if further > 0 else ", ".join(names)


CHECKS: tuple[Callable[[Machine], Iterator[Finding]], ...] = (
    check_data_folder,
    check_server,
    check_keys,
    check_catalogue_files,
    check_engine,
    check_llm_servers,
    check_model_files,
    check_proxy,
    check_file_limit,
)
