"""The command `easel`."""

from __future__ import annotations

import sys
from pathlib import Path

_HERE = Path(__file__).resolve().parent
PROJECT = _HERE if (_HERE / "app.py").exists() else _HERE.parent
"""The folder with app.py: this package's in an installation, the one around it in a checkout"""


def main() -> None:
    """Run the command. Its process finds the project's packages first, whatever else is installed."""
    sys.path.insert(0, str(PROJECT))
    from easel.command_line import easel

    easel(prog_name="easel")


if __name__ == "__main__":
    main()
