"""The `flask` commands: compile-workflow, check-catalogue, generate, gpu, snapshot-nodes, write-docs."""

from __future__ import annotations

from flask import Flask

from commands.catalogue import check_catalogue
from commands.compile import compile_command
from commands.documents import write_docs
from commands.generate import generate
from commands.gpu import gpu
from commands.snapshot import snapshot_nodes


def register_commands(app: Flask) -> None:
    """Add the commands to `flask`. They use the services in `app.extensions["easel"]`, see `CommandServices`."""
    for command in (compile_command, check_catalogue, generate, gpu, snapshot_nodes, write_docs):
        app.cli.add_command(command)
