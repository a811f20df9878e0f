"""The application of a command that must also work without one, because the settings may be wrong."""

from __future__ import annotations

import shlex

import click
from flask import Flask
from flask.cli import ScriptInfo

from errors import EaselError, SettingsInvalid


def easel_command(context: click.Context) -> str:
    """How a further command is called that is to use the same files: `easel`, with the options that this one has."""
    given = context.find_root().params
    options = [
        f"--{name.replace('_', '-')} {shlex.quote(str(given[name]))}"
        for name in ("config", "state_dir")
        if given.get(name)
    ]
    return " ".join(["easel", *options])


def load_application(context: click.Context) -> Flask | EaselError:
    """The application, or why these settings make none."""
    try:
        return context.ensure_object(ScriptInfo).load_app()
    except EaselError as error:
        return error
    except SystemExit as stop:  # wsgi.py ends the process, for a server
        cause = stop.__context__
        return cause if isinstance(cause, EaselError) else SettingsInvalid(str(stop.code))
