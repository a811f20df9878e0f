"""WSGI entry point for gunicorn and the `flask` command: `app` is the application."""

from __future__ import annotations

import sys

from app import create_app
from errors import EaselError

try:
    app = create_app()
except EaselError as error:
    # Invalid settings: print the message, not a traceback.
    sys.exit(f"{error.code}: {error.message}")
