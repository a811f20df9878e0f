"""What easel setup does: looks, asks, writes the file, and says what comes next."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import click

import installation
from atomic_file import create_atomic
from commands.application import easel_command, load_application
from commands.first_models import first_models, pull_line
from commands.machine import Machine, look_around, same_place
from commands.setup_plan import (
    LlmPlan,
    LlmUse,
    Plan,
    differences,
    entries,
    file_text,
    found_comfyuis,
    llm_plans,
    needed_url,
)
from commands.terminal import printable
from compiler import Catalogue
from conversation import read_upstreams
from detection import (
    ComfyuiPlace,
    Service,
    check_address,
    comfyui_place,
    find_services,
    free_port,
    is_models_folder,
    place_of_folder,
    usual_folders,
)
from engine.selection import PROBE_URLS
from errors import EaselError, SettingsInvalid
from llm import read_stacks
from loopback import is_loopback
from model_files import ModelFolders, find_model_folders, plan_pull
from schemas import read_yaml
from settings import Settings, load_settings

_WIDTH = 30
"""Of the column that says what was found"""
_MAX_NAMES = 4
_USES: Mapping[str, LlmUse] = {"s": "share", "f": "forward", "n": "skip"}
_USE_TEXT = "s: unload its models for pictures; f: only forward chats to it; n: leave it alone"


def run(context: click.Context, *, is_agreed: bool, prints: bool) -> None:
    """Exits with the status that the help of the command names."""
    asks = not (is_agreed or prints)
    if asks and not sys.stdin.isatty():
        raise click.UsageError(
            "There is no terminal to ask at. Add --yes to take all proposals, or --print to see the file."
        )
    target = config_file()
    exists = os.path.lexists(target)
    say = Speaker(to_stderr=prints, command=easel_command(context))
    if exists and not target.exists():
        raise click.ClickException(
            f"{target} is a link to a file that does not exist. Remove the link, or create that file."
        )
    if not exists:
        _read_no_file()
    app = load_application(context)
    if isinstance(app, EaselError):
        click.secho(f"{app.code}: {app.message}", err=True, fg="red")
        click.echo(
            f"{target if exists else 'The environment'} must be corrected first: easel doctor", err=True
        )
        sys.exit(1)
    container = app.extensions["easel"]
    settings: Settings = container.settings
    say("Looking at this machine (nothing is sent to the internet) …")
    machine = look_around(settings, os.environ)
    with app.app_context():
        catalogue: Catalogue = container.catalogue()
    plan = proposed_plan(machine, settings)
    say.found(machine, plan, catalogue)
    if asks:
        plan = _asked(plan, machine, settings)
    text = file_text(
        plan, date=time.strftime("%Y-%m-%d"), example=str(installation.PROJECT / "easel.example.yaml")
    )
    check_text(text, plan)
    if prints:
        click.echo(text, nl=False)
    if exists:
        _compare(plan, settings, target, say, prints=prints)
    elif not prints:
        _write(target, text)
        say(f"\nWritten: {target}")
    say.next_steps(plan, machine, catalogue, server_url(settings["host"], plan.port or settings["port"]))


def config_file() -> Path:
    """Where the settings are, or would be: as `easel --version` says."""
    named = os.environ.get("EASEL_CONFIG")
    return Path(named).absolute() if named else installation.config_folder() / "easel.yaml"


def _read_no_file() -> None:
    """A file that is to be written cannot be read before, and what another one says is not for it."""
    if (installation.config_folder() / "easel.yaml").exists():
        os.environ["EASEL_CONFIG"] = os.devnull
    else:
        os.environ.pop("EASEL_CONFIG", None)


# --- looking ----------------------------------------------------------------------------------------------


def proposed_plan(machine: Machine, settings: Settings) -> Plan:
    """What is proposed without asking."""
    configured = settings["engine.url"].rstrip("/")
    comfyui = next(iter(found_comfyuis(machine, configured)), None)
    behind_login = machine.at(configured) if configured else None
    if behind_login is not None and behind_login.needs_key:
        comfyui = None  # it can be the one that the settings name
    port, reason = free_port_for(machine, settings["host"], settings["port"])
    return Plan(
        comfyui=comfyui,
        engine_url=needed_url(comfyui, configured),
        place=models_place(machine, comfyui),
        port=port,
        port_reason=reason,
        llms=llm_plans(machine, comfyui),
    )


def free_port_for(machine: Machine, host: str, port: int) -> tuple[int | None, str]:
    """Another port for Easel and who has its own one; None if that is free, or if an Easel has it."""
    try:
        check_address(host, port)
    except SettingsInvalid:
        service, process = machine.at(f"http://127.0.0.1:{port}"), machine.process_on(port)
        if service and service.kind == "easel":
            return None, ""
        who = service.title if service else process.program if process else "Another program"
        who = who[:1].upper() + who[1:] if service and service.kind == "unknown" else who
        return free_port(host, port), f"{who} has port {port}."
    return None, ""


def server_url(host: str, port: int) -> str:
    """Where Easel is for a program of this machine."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104  nothing listens here
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def models_place(machine: Machine, comfyui: Service | None) -> ComfyuiPlace | None:
    """Where ComfyUI has its models on this machine. One that runs is believed; the usual places count if none runs, or if it
    is too old to say."""
    if comfyui is not None and comfyui.comfyui is not None:
        if not is_loopback(urlsplit(comfyui.url).hostname):
            return None
        facts, process = comfyui.comfyui, machine.process_of(comfyui)
        arguments = facts.arguments or (process.arguments if process else ())
        if place := comfyui_place(facts.folders, arguments, process.folder if process else None):
            return place
        if facts.folders:
            return None  # it has named folders, and they are not on this machine: it runs in a container
    return next(filter(None, map(place_of_folder, usual_folders(_home()))), None)


def _home() -> Path:
    """The home folder; one that does not exist for a user who has none."""
    try:
        return Path.home()
    except RuntimeError:
        return Path(os.devnull)


# --- asking -----------------------------------------------------------------------------------------------


def _asked(plan: Plan, machine: Machine, settings: Settings) -> Plan:
    """The plan as the user wants it."""
    click.echo("\nEnter takes what is in brackets.")
    plan = asked_comfyui(plan, machine, settings)
    default = str(plan.place.models_dir) if plan.place else ""
    answer = _prompt("ComfyUI's folder `models` (- for none)", default, _folder_problem)
    if answer in ("", "-"):
        plan = replace(plan, place=None)
    elif answer != default:
        plan = replace(plan, place=ComfyuiPlace(Path(answer).expanduser().absolute(), "as you said"))
    if plan.port is not None:
        port = click.prompt(
            f"{plan.port_reason} Port of Easel", type=click.IntRange(1, 65535), default=plan.port
        )
        plan = replace(plan, port=port)
    for position, llm in enumerate(plan.llms):
        if not llm.service.needs_key:
            plan = plan.with_llm(position, _asked_use(llm))
    return plan


def asked_comfyui(plan: Plan, machine: Machine, settings: Settings) -> Plan:
    """The plan with the ComfyUI that the user names."""
    default = plan.comfyui.url if plan.comfyui else settings["engine.url"]
    answer = _prompt("Address of ComfyUI (- for none)", default, _url_problem)
    if answer in ("", "-"):
        if used := next((url for url in PROBE_URLS if _is_comfyui(machine.at(url))), None):
            click.secho(f"Without an address Easel uses the ComfyUI at {used} while it runs.", fg="yellow")
        return replace(plan, comfyui=None, engine_url="", llms=llm_plans(machine, None))
    answer = answer.rstrip("/")
    if plan.comfyui is not None and answer == plan.comfyui.url:
        return plan
    service = machine.at(answer) or find_services([answer])[answer]
    comfyui = service if _is_comfyui(service) else None
    if comfyui is None:
        click.secho(f"No ComfyUI answers at {answer} now. It is written all the same.", fg="yellow")
    place = models_place(machine, comfyui) if comfyui else plan.place
    url = needed_url(comfyui, "") if comfyui else answer
    return replace(plan, comfyui=comfyui, engine_url=url, place=place, llms=llm_plans(machine, comfyui))


def _is_comfyui(service: Service | None) -> bool:
    return service is not None and service.kind == "comfyui"


def _asked_use(llm: LlmPlan) -> LlmUse:
    default = next(key for key, use in _USES.items() if use == llm.use)
    click.echo(f"{llm.service.title} at {llm.service.url} {llm.reason}.\n  {_USE_TEXT}")
    choices = [key for key, use in _USES.items() if use != "share" or llm.service.can_unload]
    return _USES[click.prompt("  Use", type=click.Choice(choices), default=default, show_choices=True)]


def _prompt(question: str, default: str, problem: Callable[[str], str]) -> str:
    while True:
        shown = f"{question} [{printable(default)}]" if default else question
        answer = str(click.prompt(shown, default=default, show_default=False)).strip()
        if not (text := problem(answer) if answer not in ("", "-") else ""):
            return answer
        click.secho(text, fg="yellow")


def _url_problem(text: str) -> str:
    """Why the settings would refuse an address; empty if they would not."""
    try:
        load_settings({"EASEL_ENGINE_URL": text}, root=Path(os.devnull))
    except SettingsInvalid as error:
        return error.message.replace("EASEL_ENGINE_URL: ", "")
    return ""


def _folder_problem(text: str) -> str:
    folder = Path(text).expanduser()
    if is_models_folder(folder):
        return ""
    if is_models_folder(folder / "models"):
        return f"Its folder is {folder / 'models'}."
    return f"{folder} has no folder checkpoints, diffusion_models or unet."


# --- writing ----------------------------------------------------------------------------------------------


def check_text(text: str, plan: Plan) -> None:
    """Load the file as Easel does. Raises click.ClickException if it does not say what the plan says."""
    with tempfile.TemporaryDirectory(prefix="easel-") as folder:
        file = Path(folder) / "easel.yaml"
        try:
            file.write_text(text, "utf-8")
            loaded = load_settings({"EASEL_CONFIG": str(file)})
            read_stacks(list(loaded["llm.stacks"]), {})
            read_upstreams(list(loaded["llm.upstreams"]), loaded["llm.stacks"], {})
        except (EaselError, UnicodeEncodeError) as error:
            message = error.message if isinstance(error, EaselError) else "a path is not valid Unicode"
            raise click.ClickException(
                f"The file would not be valid, so it is not written: {message}"
            ) from error
    if lines := differences(entries(plan), loaded.values):
        raise click.ClickException(f"The file would not say what was found: {'; '.join(lines)}")


def _write(target: Path, text: str) -> None:
    try:
        create_atomic(target, text.encode())
    except FileExistsError as error:
        raise click.ClickException(f"{target} was written by somebody else just now; it stays.") from error
    except OSError as error:
        raise click.ClickException(
            f"{target} cannot be written: {error.strerror}. Name another file: easel --config FILE setup; Easel then needs "
            "--config FILE at each start. Or print the file: easel setup --print"
        ) from error


def _compare(plan: Plan, settings: Settings, target: Path, say: Speaker, *, prints: bool) -> None:
    """Say what the existing file lacks; exits with 1 if it lacks something, unless the new one is printed."""
    lines = differences(entries(plan), settings.values)
    if not lines:
        say(f"\n{target} exists already, and has everything.")
        return
    say(f"\n{target} exists already and stays as it is. It would have in addition:")
    for line in lines:
        say(printable(f"  {line}"))
    say("`easel setup --print` prints a whole new file." if not prints else "")
    if not prints:
        sys.exit(1)


class Speaker:
    """Prints what is not the file itself. `command`: how the next commands begin."""

    def __init__(self, *, to_stderr: bool, command: str) -> None:
        self._to_stderr = to_stderr
        self._easel = command

    def __call__(self, text: str) -> None:
        click.echo(text, err=self._to_stderr)

    def found(self, machine: Machine, plan: Plan, catalogue: Catalogue) -> None:
        """What was found, one thing a line."""
        for service in machine.services:
            self._line(service.title, f"{service.url}{_about(service, plan)}")
        if not any(service.kind == "comfyui" for service in machine.services):
            self._line("no ComfyUI", "sketches are drawn until one answers")
        if plan.place is not None:
            self._line("ComfyUI's models", f"{plan.place.models_dir} ({plan.place.source})")
            if folders := _folders(plan.place):
                self._line("models on disk", _ready_text(ready_models(catalogue, folders)))
        for gpu in machine.gpus:
            self._line(gpu.name, f"{gpu.bytes / 1e9:.1f} GB")
        if not machine.gpus and not _gpu_bytes(plan, machine):
            self._line("no GPU", "none that NVIDIA's, AMD's or Apple's drivers know")
        if machine.memory:
            self._line("memory", f"{machine.memory / 1e9:.0f} GB")

    def _line(self, what: str, where: str) -> None:
        self(printable(f"  {what:<{_WIDTH}} {where}"))

    def next_steps(self, plan: Plan, machine: Machine, catalogue: Catalogue, url: str) -> None:
        """The commands that come next. `url`: where Easel will be."""
        self("\nNext:")
        self(f"  {self._easel} run   # then open {url}")
        self(f"  {self._easel} doctor   # is everything right?")
        folders = _folders(plan.place) if plan.place else None
        ready = ready_models(catalogue, folders) if folders else ()
        if ready:
            self(f"  {self._easel} generate 'a lighthouse at dawn' --model {ready[0]} -o lighthouse.png")
            return
        version = plan.comfyui.version if plan.comfyui else None
        self("and a first model, such as:")
        for model in first_models(catalogue, _gpu_bytes(plan, machine), version):
            self(f"  {pull_line(model, self._easel)}, {model.title}")
        if folders is None:
            self(
                "ComfyUI's folder `models` is not known: with --commands these print what to run on its machine."
            )


def _about(service: Service, plan: Plan) -> str:
    """What is done with a server, and what it says about its GPU."""
    facts = service.comfyui
    if facts is not None:
        gpu = f"{facts.gpu or 'no GPU'}{f', {facts.gpu_bytes / 1e9:.1f} GB' if facts.gpu_bytes else ''}"
        return f"  {gpu}" if plan.comfyui is service else f"  {gpu}; not used"
    for llm in plan.llms:
        if llm.service is service:
            return {
                "share": "  shares the GPU",
                "forward": "  chats are forwarded to it",
                "skip": f"  left alone: it {llm.reason}",
            }[llm.use]
    if service.needs_key and plan.engine_url and same_place(service.url, plan.engine_url):
        return "  for ComfyUI behind a login: set EASEL_ENGINE_USER and EASEL_ENGINE_PASSWORD, or EASEL_ENGINE_TOKEN"
    return "" if service.kind == "easel" else "  left alone"


def _gpu_bytes(plan: Plan, machine: Machine) -> int | None:
    if plan.comfyui is not None and plan.comfyui.comfyui is not None:
        return plan.comfyui.comfyui.gpu_bytes
    return max((gpu.bytes for gpu in machine.gpus), default=None)


def _folders(place: ComfyuiPlace) -> ModelFolders | None:
    try:
        return find_model_folders(str(place.models_dir), str(place.extra_model_paths or ""), read_yaml)
    except EaselError:
        return None


def ready_models(catalogue: Catalogue, folders: ModelFolders) -> tuple[str, ...]:
    """The ids of the models whose files are all on disk."""
    found = (model for model in catalogue.visible_models if model.files and "generate" in model.workflows)
    return tuple(model.id for model in found if not plan_pull([model], folders).files)


def _ready_text(ready: Sequence[str]) -> str:
    if not ready:
        return "none of the catalogue is complete; `easel adopt-models` looks for others"
    further = len(ready) - _MAX_NAMES
    return f"{len(ready)} complete: {', '.join(ready[:_MAX_NAMES])}{f' and {further} more' if further > 0 else ''}"
