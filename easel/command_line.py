"""All commands under one name, grouped by what they are for. `flask` has them too, in a checkout."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import click
from flask.cli import ScriptInfo

import installation


class Entry(NamedTuple):
    """`place`: module and name of the click command; `help`: its `short_help`, known without importing it"""

    place: str
    help: str


SECTIONS: dict[str, dict[str, Entry]] = {
    "Serve": {
        "run": Entry("easel.run:run", "Start the server."),
        "worker": Entry("easel.worker:worker", "Draw on this host for others, see docs/hosts.md."),
        "setup": Entry("commands.setup:setup", "Look at this machine and write easel.yaml."),
        "doctor": Entry("commands.doctor:doctor", "Say what is wrong, and which command puts it right."),
        "connect": Entry("easel.connect:connect", "Print what a program needs to use this Easel."),
        "demo": Entry(
            "demo.command:demo", "Play a busy hour in a minute, with sketches and a simulated LLM and GPU."
        ),
        "top": Entry("commands.top:top", "Watch the engine, the GPU and the queue."),
        "gpu": Entry("commands.gpu:gpu", "Show who has the GPU; switch it, pin it, cancel requests."),
        "engines": Entry("commands.engines:engines", "List the engines; drain and resume them."),
        "hosts": Entry("commands.hosts:hosts", "List the hosts that draw; drain and resume them."),
        "keys": Entry("commands.keys:keys", "Add, list and revoke the keys of clients."),
        "audit": Entry("commands.audit:audit_command", "Show who changed what, and when."),
    },
    "Models": {
        "models": Entry("commands.models:models", "List the models; check, pull, adopt them."),
        "check-catalogue": Entry(
            "commands.catalogue:check_catalogue",
            "Check catalogue.yaml, its templates, and what an engine lacks.",
        ),
        "pull-model": Entry(
            "commands.pull:pull_model", "Download the files of models into ComfyUI's folders."
        ),
        "adopt-models": Entry(
            "commands.adopt_command:adopt_command", "Use the model files that are there already."
        ),
        "accept-licence": Entry("commands.licences:accept_licence", "Accept the licence of models."),
        "import-workflow": Entry(
            "commands.import_command:import_command", "Make a model of a workflow of ComfyUI."
        ),
        "snapshot-nodes": Entry("commands.snapshot:snapshot_nodes", "Learn node signatures from ComfyUI."),
    },
    "Pictures": {
        "generate": Entry("commands.generate:generate", "Draw a prompt and write the picture to a file."),
        "compile-workflow": Entry(
            "commands.compile:compile_command", "Print the ComfyUI graph for a model and a prompt."
        ),
    },
}


class _EaselGroup(click.Group):
    """Lists its commands without importing them: with them comes all of Easel, and completion would take a second."""

    def list_commands(self, context: click.Context) -> list[str]:
        return [name for entries in SECTIONS.values() for name in entries]

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        entry = next((entries[name] for entries in SECTIONS.values() if name in entries), None)
        if entry is None:
            return None
        module, _, attribute = entry.place.partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        for title, entries in SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl([(name, entry.help) for name, entry in entries.items()])


def _set_environment(config: Path | None, state_dir: Path | None) -> Iterator[tuple[str, str]]:
    if config is not None:
        yield "EASEL_CONFIG", str(config.absolute())
    if state_dir is not None:
        yield "EASEL_STATE_DIR", str(state_dir.absolute())


def _print_version(context: click.Context, parameter: click.Parameter, is_given: bool) -> None:
    if not is_given or context.resilient_parsing:
        return
    click.echo(f"Easel {installation.VERSION}")
    click.echo(f"settings: {installation.config_folder() / 'easel.yaml'}")
    click.echo(f"data: {installation.state_folder()}")
    context.exit()


def _create_app() -> Any:
    from wsgi import app

    return app


@click.group(cls=_EaselGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--config",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The file with the settings; default: that of `easel --version`, if it exists.",
)
@click.option(
    "--state-dir",
    type=click.Path(path_type=Path, file_okay=False),
    help="The folder for pictures and everything else that survives a restart.",
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Print the version and where settings and data are, and exit.",
)
@click.pass_context
def easel(context: click.Context, config: Path | None, state_dir: Path | None) -> None:
    """One OpenAI-compatible address for pictures and chats, in front of ComfyUI and your LLM servers.

    `easel run` starts it. Without a ComfyUI it draws sketches.
    """
    os.environ.update(_set_environment(config, state_dir))
    context.obj = ScriptInfo(create_app=_create_app, set_debug_flag=False)
