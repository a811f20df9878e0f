"""easel run: becomes gunicorn with this project's configuration."""

from __future__ import annotations

import os
import sys

import click

from installation import PROJECT


@click.command(short_help="Start the server.")
@click.option(
    "--host", metavar="ADDRESS", help="Where it listens; default: `host` of the settings, 127.0.0.1."
)
@click.option(
    "--port", type=click.IntRange(0, 65535), help="Default: `port` of the settings, 8080; 0: any free one."
)
def run(host: str | None, port: int | None) -> None:
    """Start the server and serve until Ctrl-C or SIGTERM."""
    if host is not None:
        os.environ["EASEL_HOST"] = host
    if port is not None:
        os.environ["EASEL_PORT"] = str(port)
    # -P: the working directory may have modules of the same names.
    arguments = ["-P", "-m", "gunicorn", "--config", str(PROJECT / "gunicorn.conf.py"), "wsgi:app"]
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, *arguments])  # noqa: S606  our own interpreter and module
