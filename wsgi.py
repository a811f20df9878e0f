"""gunicorn's door, and flask's: `app` is the application."""

from __future__ import annotations

import sys

from app import create_app
from errors import EaselError

try:
    app = create_app()
except EaselError as error:
    # Wrong settings are the owner's to mend: a sentence helps, a traceback does not.
    sys.exit(f"{error.code}: {error.message}")
