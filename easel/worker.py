"""easel worker: draws on this host what other hosts were asked for."""

from __future__ import annotations

import os
import sys

import click

from errors import EaselError, SettingsInvalid


@click.command(short_help="Draw on this host for others, see docs/hosts.md.")
@click.option("--name", metavar="NAME", help="Of this host; default: `cluster.name` of the settings.")
def worker(name: str | None) -> None:
    """Draw on this host what others are asked for, until Ctrl-C or SIGTERM: the job that runs is finished first. All are
    joined by a Redis, see docs/hosts.md."""
    if name is not None:
        os.environ["EASEL_CLUSTER_NAME"] = name
    try:
        from server.host_worker import work  # an extra
    except ModuleNotFoundError as error:
        if error.name not in ("celery", "kombu", "redis"):
            raise
        sys.exit(
            f"{SettingsInvalid.code}: {error.name} is not installed. Install what requirements-cluster.txt lists "
            "(`pip install 'easel[cluster]'`)."
        )
    try:
        sys.exit(work())
    except EaselError as error:
        sys.exit(f"{error.code}: {error.message}")
