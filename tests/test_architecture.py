"""The arrows of the house: which room may import which. Moving a wall means changing this table on purpose."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "atomic_file": set(),
    "gpu_tenant": set(),
    "http_session": set(),
    "loopback": set(),
    "schemas": {"errors"},
    "settings": {"errors", "schemas"},
    "compiler": {"errors", "schemas"},
    "engine": {"errors", "atomic_file", "gpu_tenant", "http_session"},
    "sketch": {"errors", "atomic_file", "loopback"},
    "arbiter": {"errors", "atomic_file", "gpu_tenant", "schemas"},
    "llm": {"errors", "gpu_tenant", "http_session", "loopback", "schemas"},
    "image_store": {"errors", "atomic_file"},
    "pictures": {"errors"},
    "generation": {"arbiter", "compiler", "engine", "image_store", "pictures", "atomic_file", "errors"},
    "status": {"arbiter", "compiler", "engine", "generation", "llm", "atomic_file", "errors"},
    "api": {
        *("arbiter", "compiler", "engine", "generation", "image_store", "pictures", "status"),
        *("errors", "loopback", "schemas"),
    },
    "commands": {
        *("api", "compiler", "engine", "generation", "pictures", "settings"),
        *("atomic_file", "errors", "http_session", "schemas"),
    },
    "app": {
        *("api", "arbiter", "commands", "compiler", "engine", "generation", "image_store", "llm", "pictures"),
        *("sketch", "status", "settings", "atomic_file", "errors", "loopback"),
    },
    "server": {"api", "app", "errors", "generation", "settings"},
    "wsgi": {"app", "errors"},
}
FORBIDDEN: dict[str, set[str]] = {
    "compiler": {"flask", "requests", "websocket", "os", "time", "random", "secrets", "socket"},
    "engine": {"flask", "jinja2", "yaml", "jsonschema"},
    "sketch": {"flask", "jinja2", "yaml", "jsonschema", "requests", "websocket"},
    "image_store": {"flask", "requests", "websocket"},
    "pictures": {"flask", "requests", "websocket", "os"},
    "arbiter": {"flask", "requests", "websocket", "yaml", "jinja2"},
    "llm": {"flask", "jinja2", "websocket", "filelock"},
    "status": {"flask", "requests", "yaml"},
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
    assert readers == {"app", "commands", "server"}  # commands only prints the table of them
    top = {path.stem for path in ROOT.glob("*.py") if path.stem != "gunicorn.conf"}
    rooms = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests", "bench"}
    assert top | rooms == set(MAY_IMPORT)
