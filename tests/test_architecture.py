"""Which package may import which. To change the structure, change these tables deliberately."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "dynamic_inputs": set(),
    "atomic_file": set(),
    "state_files": {"atomic_file"},
    "system_errors": {"errors"},
    "deadline": set(),
    "bounded_socket": {"deadline"},
    "http_connections": {"bounded_socket", "deadline"},
    "gpu_tenant": set(),
    "observer": set(),
    "logs": {"observer"},
    "http_session": {"bounded_socket"},
    "loopback": set(),
    "scratch_folder": set(),
    "schemas": {"errors"},
    "installation": set(),
    "settings": {"errors", "installation", "schemas"},
    "state_format": {"errors", "installation", "state_files"},
    "access": {"atomic_file", "errors", "state_files", "system_errors"},
    "compiler": {"dynamic_inputs", "errors", "schemas"},
    "importer": {"compiler", "dynamic_inputs", "errors"},
    "weights": set(),
    "licences": {"atomic_file", "compiler", "errors", "schemas", "state_files"},
    "engine": {
        *("atomic_file", "bounded_socket", "deadline", "errors", "gpu_tenant", "http_connections"),
        *("loopback", "state_files", "system_errors"),
    },
    "sketch": {
        *("dynamic_inputs", "errors", "atomic_file", "loopback", "scratch_folder"),
        *("state_files", "system_errors"),
    },
    "detection": {"deadline", "errors", "http_connections"},
    "arbiter": {
        *("errors", "atomic_file", "deadline", "gpu_tenant", "observer", "schemas"),
        *("state_files", "system_errors"),
    },
    "llm": {
        *("deadline", "errors", "gpu_tenant", "http_session", "loopback", "schemas", "system_errors"),
    },
    "conversation": {
        *("arbiter", "deadline", "errors", "http_connections", "schemas", "system_errors"),
    },
    "metrics": {"observer"},
    "tracing": {"errors", "observer"},
    "model_files": {"atomic_file", "errors", "loopback", "state_files", "system_errors"},
    "image_store": {"errors", "atomic_file", "state_files", "system_errors"},
    "image_jobs": {"errors", "atomic_file", "state_files", "system_errors"},
    "pictures": {"errors", "system_errors"},
    "page": set(),
    "engines": {
        *("arbiter", "engine", "gpu_tenant", "observer"),
        *("atomic_file", "deadline", "errors", "schemas", "state_files", "system_errors"),
    },
    "generation": {
        *("arbiter", "compiler", "engine", "engines", "image_store", "importer", "pictures"),
        *("atomic_file", "deadline", "errors", "observer", "state_files", "system_errors"),
    },
    "cluster": {
        *("arbiter", "compiler", "engine", "engines", "errors", "generation", "observer"),
    },
    "status": {
        *("arbiter", "compiler", "engine", "engines", "generation", "llm", "observer"),
        *("atomic_file", "deadline", "errors", "state_files", "system_errors"),
    },
    "api": {
        *(
            "access",
            "arbiter",
            "compiler",
            "conversation",
            "engine",
            "engines",
            "generation",
            "image_jobs",
            "image_store",
        ),
        *("metrics", "model_files", "pictures", "status"),
        *("deadline", "errors", "logs", "loopback", "observer", "schemas", "system_errors"),
    },
    "commands": {
        *(
            "access",
            "api",
            "arbiter",
            "compiler",
            "conversation",
            "detection",
            "deadline",
            "engine",
            "engines",
            "generation",
            "importer",
            "licences",
            "llm",
            "metrics",
            "model_files",
        ),
        *("pictures", "settings", "weights"),
        *("atomic_file", "errors", "http_session", "installation", "loopback", "schemas"),
        "state_format",
    },
    "service_options": {
        *("access", "api", "arbiter", "cluster", "conversation", "engines", "llm"),
        *("errors", "loopback", "settings"),
    },
    "app": {
        *(
            "access",
            "api",
            "arbiter",
            "cluster",
            "commands",
            "compiler",
            "conversation",
            "engine",
            "engines",
            "generation",
            "image_jobs",
            "image_store",
            "licences",
            "llm",
            "metrics",
            "model_files",
            "page",
            "pictures",
        ),
        *("sketch", "status", "settings", "deadline", "errors", "logs", "loopback", "observer"),
        *("installation", "schemas", "service_options", "state_files", "tracing"),
    },
    "server": {
        *("api", "app", "cluster", "compiler", "detection", "engine", "engines", "errors", "generation"),
        *("installation", "logs", "loopback"),
        *("service_options", "settings", "state_files", "state_format", "status", "system_errors"),
    },
    "demo": {
        *("access", "arbiter", "commands", "compiler", "sketch"),
        *("atomic_file", "errors", "http_session", "installation", "scratch_folder"),
    },
    "wsgi": {"app", "errors"},
    "easel": {"commands", "errors", "installation", "schemas", "server", "wsgi"},
}
FORBIDDEN: dict[str, set[str]] = {
    "access": {"flask", "werkzeug", "jinja2", "requests", "websocket", "yaml"},
    "compiler": {"flask", "requests", "websocket", "os", "time", "random", "secrets", "socket"},
    "importer": {"flask", "requests", "websocket", "jinja2"},
    "weights": {"flask", "jinja2", "requests", "websocket", "yaml", "pickle"},
    "licences": {"flask", "jinja2", "requests", "websocket", "yaml"},
    "engine": {"flask", "jinja2", "yaml", "jsonschema", "requests"},
    "cluster": {"flask", "werkzeug", "jinja2", "requests", "websocket", "yaml"},
    "engines": {"flask", "werkzeug", "jinja2", "requests", "websocket", "yaml"},
    "sketch": {"flask", "jinja2", "yaml", "jsonschema", "requests", "websocket"},
    "tracing": {"flask", "werkzeug", "requests", "yaml"},
    "metrics": {"flask", "werkzeug", "requests", "yaml"},
    "model_files": {"flask", "werkzeug", "jinja2", "yaml", "websocket"},
    "image_store": {"flask", "requests", "websocket"},
    "image_jobs": {"flask", "werkzeug", "jinja2", "requests", "websocket", "yaml"},
    "pictures": {"flask", "requests", "websocket", "os"},
    "page": {"requests", "websocket", "yaml", "os"},
    "conversation": {"flask", "requests", "websocket", "jinja2", "filelock"},
    "arbiter": {"flask", "requests", "websocket", "yaml", "jinja2"},
    "detection": {"flask", "jinja2", "requests", "websocket", "yaml"},
    "llm": {"flask", "jinja2", "websocket", "filelock"},
    "status": {"flask", "requests", "yaml"},
    "generation": {"flask", "werkzeug", "yaml", "requests"},
    "errors": {"flask", "werkzeug"},
    "api": {"jinja2", "websocket", "requests", "filelock"},
    "demo": {"flask", "werkzeug", "jinja2", "yaml", "websocket"},
}
"""package -> libraries that it must not import"""
FORBIDDEN |= {
    package: FORBIDDEN.get(package, set()) | {"prometheus_client", "opentelemetry"}
    for package in MAY_IMPORT
    if package not in ("metrics", "tracing")
}
FORBIDDEN |= {
    package: FORBIDDEN.get(package, set()) | {"celery", "kombu", "redis"}
    for package in MAY_IMPORT
    if package != "cluster"
}


def files_of(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py")) if (ROOT / package).is_dir() else [ROOT / f"{package}.py"]


def imports_of(package: str) -> set[str]:
    names: set[str] = set()
    for path in files_of(package):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                names.add(node.module.split(".")[0])
    return names - {package}


@pytest.mark.parametrize("package", list(MAY_IMPORT))
def test_a_package_imports_only_the_packages_that_it_may(package: str) -> None:
    assert imports_of(package) & set(MAY_IMPORT) <= MAY_IMPORT[package]


@pytest.mark.parametrize("package", list(FORBIDDEN))
def test_a_package_imports_no_forbidden_library(package: str) -> None:
    assert imports_of(package) & FORBIDDEN[package] == set()


def test_only_app_its_options_server_and_commands_import_settings() -> None:
    readers = {package for package in MAY_IMPORT if "settings" in imports_of(package)}
    assert readers == {
        "app",
        "commands",
        "server",
        "service_options",
    }  # commands only prints the table of settings


def test_every_package_is_in_the_table() -> None:
    modules = {path.stem for path in ROOT.glob("*.py") if path.stem != "gunicorn.conf"}
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests", "bench"}
    assert modules | packages == set(MAY_IMPORT)
