"""The arrows of the house: which room may import which. Moving a wall means changing this table on purpose."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "yaml_text": set(),
    "whole_file": set(),
    "tenant": set(),
    "settings": {"errors", "yaml_text"},
    "compiler": {"errors", "yaml_text"},
    "engine": {"errors", "tenant", "whole_file"},
    "arbiter": {"errors", "tenant", "whole_file"},
    "llm": {"errors", "tenant", "yaml_text"},
    "image_store": {"errors"},
    "input_images": {"errors"},
    "live_catalogue": {"compiler", "errors", "whole_file"},
    "generation": {"arbiter", "compiler", "engine", "image_store", "input_images", "errors"},
    "overview": {"arbiter", "compiler", "engine", "generation", "llm", "errors", "whole_file"},
    "api": {
        "arbiter",
        "compiler",
        "engine",
        "generation",
        "image_store",
        "input_images",
        "overview",
        "errors",
    },
    "commands": {
        "api",
        "compiler",
        "engine",
        "generation",
        "input_images",
        "errors",
        "settings",
        "yaml_text",
        "whole_file",
    },
    "app": {
        "api",
        "arbiter",
        "commands",
        "compiler",
        "engine",
        "generation",
        "image_store",
        "input_images",
        "live_catalogue",
        "llm",
        "overview",
        "settings",
        "errors",
        "whole_file",
    },
    "wsgi": {"app", "errors"},
}
FORBIDDEN: dict[str, set[str]] = {
    "compiler": {"flask", "requests", "websocket", "os", "time", "random", "secrets", "socket"},
    "engine": {"flask", "jinja2", "yaml", "jsonschema"},
    "image_store": {"flask", "requests", "websocket"},
    "input_images": {"flask", "requests", "websocket", "os"},
    "arbiter": {"flask", "requests", "websocket", "yaml", "jinja2"},
    "llm": {"flask", "jinja2", "websocket", "filelock"},
    "overview": {"flask", "requests", "yaml"},
    "generation": {"flask", "werkzeug", "yaml", "requests"},
    "errors": {"flask", "werkzeug"},
    "api": {"jinja2", "websocket", "requests", "filelock"},
}
"""Libraries that a room must never know."""


def files_of(room: str) -> list[Path]:
    return sorted((ROOT / room).rglob("*.py")) if (ROOT / room).is_dir() else [ROOT / f"{room}.py"]


def imports_of(room: str) -> set[str]:
    found: set[str] = set()
    for path in files_of(room):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                found.add(node.module.split(".")[0])
    return found - {room}


@pytest.mark.parametrize("room", list(MAY_IMPORT))
def test_a_room_knows_only_the_rooms_it_should(room: str) -> None:
    assert imports_of(room) & set(MAY_IMPORT) <= MAY_IMPORT[room]


@pytest.mark.parametrize("room", list(FORBIDDEN))
def test_a_room_knows_no_library_of_anothers_trade(room: str) -> None:
    assert imports_of(room) & FORBIDDEN[room] == set()


def test_only_the_wiring_reads_settings_and_every_room_is_on_the_plan() -> None:
    readers = {room for room in MAY_IMPORT if "settings" in imports_of(room)}
    assert readers == {"app", "commands"}  # commands only prints the table of them
    top = {path.stem for path in ROOT.glob("*.py") if path.stem != "gunicorn.conf"}
    rooms = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests", "bench"}
    assert top | rooms == set(MAY_IMPORT)
