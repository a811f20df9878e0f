"""Where this Easel keeps its files: in the project's folder if it is a checkout, where the platform keeps those of an
installed program if it is a package."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

VERSION = "0.1.0"
"""As in pyproject.toml and schemas/openapi.yaml; a test compares them"""
PROJECT = Path(__file__).resolve().parent
"""The folder with app.py"""
IS_INSTALLED = (PROJECT / "__main__.py").exists()
"""A wheel puts the project's files beside those of the package `easel`."""
_NAME = "easel"


def config_folder() -> Path:
    """The folder of easel.yaml, such as ~/.config/easel; of a checkout: its own."""
    if not IS_INSTALLED:
        return PROJECT
    from platformdirs import user_config_path

    return _or_of_system(lambda: user_config_path(_NAME, appauthor=False), Path("/etc"))


def state_folder() -> Path:
    """The default of `state_dir`, such as ~/.local/share/easel; of a checkout: `var` in it."""
    if not IS_INSTALLED:
        return PROJECT / "var"
    from platformdirs import user_data_path

    return _or_of_system(lambda: user_data_path(_NAME, appauthor=False), Path("/var/lib"))


def _or_of_system(users: Callable[[], Path], systems: Path) -> Path:
    """The folder of this user; the system's for a user without a home, as in a container that runs as any number."""
    try:
        return users()
    except RuntimeError:
        return systems / _NAME
