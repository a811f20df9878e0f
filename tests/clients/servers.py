"""The servers that the rows call: Easel as users start it, and others that have no engine, fail, or are slow."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import requests
import yaml

from compiler import SourcePaths, load_catalogue, read_sources
from sketch import SketchProcess
from tests.clients.access_logs import serve_access_logs
from tests.clients.llm_upstream import CHAT_MODEL, EMBEDDING_MODEL, KEY, serve_llm
from tests.clients.pictures import draw_pictures
from tests.conftest import NODES, ROOT
from tests.server.running import running

SLOW_MS = 6000
FAILING_TEMPLATE = """{% include "sd15_simple.json.j2" %}
{"outside": {"class_type": "SaveImage", "inputs": {"images": ["decoded", 0], "filename_prefix": "../../../outside/x"}}}
"""
"""No engine saves under this prefix: the job runs, reports its progress, and fails at the end."""
STITCHING_TEMPLATE = """{
  "image1": {"class_type": "LoadImage", "inputs": {"image": {{ image }}}},
  "image2": {"class_type": "LoadImage", "inputs": {"image": {{ images[1] }}}},
  "both": {
    "class_type": "ImageStitch",
    "inputs": {
      "image1": ["image1", 0], "image2": ["image2", 0],
      "direction": "right", "match_image_size": false, "spacing_width": 0, "spacing_color": "white"
    }
  },
  "picture": {"class_type": "SaveImage", "inputs": {"images": ["both", 0], "filename_prefix": {{ prefix }}}}
}
"""
"""Two images side by side, without a model"""
HOSTS = "example.test,pictures.example"


@contextlib.contextmanager
def start_servers(scratch: Path, comfyui: str, llama_server: str = "") -> Iterator[dict[str, str]]:
    """Start everything that the rows call. Yields the environment variables that contain the addresses.

    `comfyui`: the address of a real one; empty for the sketch engine. `llama_server`: that of a real llama-server, whose
    first model chats, and whose model `embed` embeds; empty for the fake LLM server only.
    """
    with contextlib.ExitStack() as stack:
        engine, slow_engine = comfyui, comfyui
        if not comfyui:
            paths = SourcePaths(ROOT / "catalogue.yaml", ROOT / "templates_wf", ROOT / "schemas")
            files = load_catalogue(read_sources(paths)).files
            engine = stack.enter_context(SketchProcess(nodes=NODES, files=files)).url
            slow_engine = stack.enter_context(SketchProcess(nodes=NODES, files=files, render_ms=SLOW_MS)).url
        one_worker = {"EASEL_ENGINE_URL": engine, "EASEL_WORKERS": "1"}
        llms, llm_models = _llms(stack.enter_context(serve_llm()), llama_server)
        settings = {
            "llm": {"EASEL_ENGINE_URL": engine, **llms},
            # It and `llm` are the only ones with the default number of workers.
            "normal": {"EASEL_ENGINE_URL": engine, "EASEL_ALLOWED_HOSTS": HOSTS},
            "down": {**one_worker, "EASEL_ENGINE_URL": stack.enter_context(_closed_port())},
            "failing": {**one_worker, **_failing_model(scratch / "failing")},
            "proxied": {**one_worker, "EASEL_TRUSTED_PROXIES": "127.0.0.1", "EASEL_ALLOWED_HOSTS": HOSTS},
            # Two waiting requests fill the queue; the next one is refused.
            "slow": {**one_worker, "EASEL_ENGINE_URL": slow_engine, "EASEL_MAX_WAITING": "2"},
        }
        servers = {
            name: stack.enter_context(running(scratch / f"state-{name}", **variables))
            for name, variables in settings.items()
        }
        yield {
            **{f"EASEL_TEST_{name.upper()}_URL": server.url for name, server in servers.items()},
            "EASEL_TEST_SLOW_ENGINE_URL": slow_engine,
            "EASEL_TEST_ACCESS_LOGS_URL": stack.enter_context(serve_access_logs(servers)),
            "EASEL_TEST_ENGINE": "comfyui" if comfyui else "sketch",
            "EASEL_TEST_CONNECT": json.dumps(_connect_command(scratch / "state-llm")),
            "EASEL_TEST_PICTURES": str(draw_pictures(scratch / "pictures")),
            **llm_models,
        }


def _connect_command(state: Path) -> list[str]:
    """A command that prints, with the name of a program behind it, the lines for the server `llm`."""
    easel = shlex.join([sys.executable, "-m", "easel", "--state-dir", str(state), "connect"])
    return ["sh", "-c", f'cd {shlex.quote(str(ROOT))} && exec {easel} "$1"', "sh"]


def _llms(fake: str, llama_server: str) -> tuple[dict[str, str], dict[str, str]]:
    """Settings for the LLM servers, and the models for the rows: of the fake one first."""
    upstreams = [{"name": "fake", "url": fake, "key_env": "FAKE_LLM_KEY",
                  "paths": {"ollama_chat": True, "ollama_generate": True, "ollama_embed": True, "ollama_show": True}}]  # fmt: skip
    chat, embed = [CHAT_MODEL], [EMBEDDING_MODEL]
    if llama_server:
        key = os.environ.get("LLAMA_KEY")
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        models = requests.get(f"{llama_server}/v1/models", headers=headers, timeout=60).json()["data"]
        ids = [model["id"] for model in models]
        chat.append(ids[0])
        embed += [id for id in ids if id == "embed"]
        upstreams.append(
            {"preset": "llama-server", "url": llama_server, **({"key_env": "LLAMA_KEY"} if key else {})}
        )
    variables = {"EASEL_LLM_UPSTREAMS": json.dumps(upstreams), "FAKE_LLM_KEY": KEY,
                 "EASEL_LLM_ALIASES": json.dumps({"primary": CHAT_MODEL})}  # fmt: skip
    return variables, {
        "EASEL_TEST_CHAT_MODELS": ",".join([*chat, "primary"]),
        "EASEL_TEST_EMBEDDING_MODELS": ",".join(embed),
    }


@contextlib.contextmanager
def _closed_port() -> Iterator[str]:
    """A URL that refuses connections. The port stays bound, so that no other process can listen on it."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"


def _failing_model(folder: Path) -> dict[str, str]:
    """Settings for the project's catalogue plus a model `fails`, whose job fails in the engine at its last node, and a model
    `stitch`, which takes two images."""
    templates, catalogue = folder / "templates", folder / "catalogue.yaml"
    shutil.copytree(ROOT / "templates_wf", templates)
    (templates / "fails.json.j2").write_text(FAILING_TEMPLATE, "utf-8")
    document = yaml.safe_load((ROOT / "catalogue.yaml").read_text("utf-8"))
    document["workflows"]["fails"] = {
        **document["workflows"]["sd15_simple"],
        "title": "Fails",
        "output": "picture",
    }
    model = document["models"]["sd-1.5-pruned-emaonly"]
    document["models"]["fails"] = {**model, "title": "Fails", "workflow": "fails", "aliases": []}
    (templates / "stitch.json.j2").write_text(STITCHING_TEMPLATE, "utf-8")
    images = {"min": 2, "max": 2}
    document["workflows"]["stitch"] = {"title": "Stitch", "tasks": ["vary"], "images": images, "inputs": {}}
    stitch = {**model, "title": "Stitch", "family": "none", "workflow": "stitch", "aliases": [], "files": {}}
    document["models"]["stitch"] = {name: value for name, value in stitch.items() if name != "limits"}
    catalogue.write_text(yaml.safe_dump(document, sort_keys=False), "utf-8")
    return {"EASEL_CATALOGUE": str(catalogue), "EASEL_TEMPLATES": str(templates)}
