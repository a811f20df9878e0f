"""The servers that the rows call: Easel as people start it, and beside it some that are down, fail, or are slow."""

from __future__ import annotations

import contextlib
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import yaml

from compiler import SourcePaths, load_catalogue, read_sources
from sketch import SketchProcess
from tests.clients.pictures import draw_pictures
from tests.clients.witness import witness
from tests.conftest import NODES, ROOT
from tests.server.running import running

SLOW_MS = 6000
FAILS = '{% set prefix = "../../../outside" %}\n{% include "sd15_simple.json.j2" %}\n'
"""A prefix that no engine saves under: the job runs, shows its progress, and fails at its last node."""
NAMES = "example.test,pictures.example"


@contextlib.contextmanager
def serving(scratch: Path, comfyui: str) -> Iterator[dict[str, str]]:
    """Everything that the rows call, as the variables that tell them where it is.

    `comfyui`: the address of a real one; empty for the sketch engine.
    """
    with contextlib.ExitStack() as stack:
        engine, slow_engine = comfyui, comfyui
        if not comfyui:
            paths = SourcePaths(ROOT / "catalogue.yaml", ROOT / "templates_wf", ROOT / "schemas")
            files = load_catalogue(read_sources(paths)).files
            engine = stack.enter_context(SketchProcess(nodes=NODES, files=files)).url
            slow_engine = stack.enter_context(SketchProcess(nodes=NODES, files=files, render_ms=SLOW_MS)).url
        one = {"EASEL_ENGINE_URL": engine, "EASEL_WORKERS": "1"}
        given = {
            # This one with as many workers as people have.
            "normal": {"EASEL_ENGINE_URL": engine, "EASEL_ALLOWED_HOSTS": NAMES},
            "down": {**one, "EASEL_ENGINE_URL": stack.enter_context(_nobody())},
            "failing": {**one, **_failing_model(scratch / "failing")},
            "proxied": {**one, "EASEL_TRUSTED_PROXIES": "127.0.0.1", "EASEL_ALLOWED_HOSTS": NAMES},
            # Two that wait are all it takes: the next is told that the queue is full.
            "slow": {**one, "EASEL_ENGINE_URL": slow_engine, "EASEL_MAX_WAITING": "2"},
        }
        servers = {
            name: stack.enter_context(running(scratch / f"state-{name}", **variables))
            for name, variables in given.items()
        }
        yield {
            **{f"EASEL_TEST_{name.upper()}_URL": server.url for name, server in servers.items()},
            "EASEL_TEST_SLOW_ENGINE_URL": slow_engine,
            "EASEL_TEST_WITNESS_URL": stack.enter_context(witness(servers)),
            "EASEL_TEST_ENGINE": "comfyui" if comfyui else "sketch",
            "EASEL_TEST_PICTURES": str(draw_pictures(scratch / "pictures")),
        }


@contextlib.contextmanager
def _nobody() -> Iterator[str]:
    """An address where nobody listens, and nobody can begin to while the block runs."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{held.getsockname()[1]}"


def _failing_model(folder: Path) -> dict[str, str]:
    """The project's catalogue and, in it, a model `fails` whose job fails in the engine at its end."""
    templates, catalogue = folder / "templates", folder / "catalogue.yaml"
    shutil.copytree(ROOT / "templates_wf", templates)
    (templates / "fails.json.j2").write_text(FAILS, "utf-8")
    document = yaml.safe_load((ROOT / "catalogue.yaml").read_text("utf-8"))
    document["workflows"]["fails"] = {**document["workflows"]["sd15_simple"], "title": "Fails"}
    like = document["models"]["sd-1.5-pruned-emaonly"]
    document["models"]["fails"] = {**like, "title": "Fails", "workflow": "fails", "aliases": []}
    catalogue.write_text(yaml.safe_dump(document, sort_keys=False), "utf-8")
    return {"EASEL_CATALOGUE": str(catalogue), "EASEL_TEMPLATES": str(templates)}
