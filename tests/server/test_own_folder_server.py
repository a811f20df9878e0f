"""The owner's folder in a real server: both workers serve what is written there, and what a mistake leaves."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.compiler.catalogues import OWN_MODEL, exported
from tests.server.running import Server, running, stopped
from tests.waiting import wait_until


def document(**changes: Any) -> str:
    workflow = {"title": "Mine", "tasks": ["generate"], "inputs": {}}
    model = {**OWN_MODEL, "workflow": "mine", "aliases": ["sd-1.5"], **changes}
    return json.dumps({"workflows": {"mine": workflow}, "models": {"mine": model}})  # JSON is YAML


def get(server: Server, path: str) -> Any:
    """The answer of a worker that runs; a stopped one may have accepted the connection."""
    while True:
        try:
            return requests.get(f"{server.url}{path}", timeout=2).json()
        except requests.Timeout:
            pass


def ids(server: Server) -> list[str]:
    return [model["id"] for model in get(server, "/v1/models")["data"]]


@pytest.mark.parametrize("has_file", [True, False])
def test_both_workers_serve_an_own_workflow_while_it_is_there_and_valid(
    tmp_path: Path, has_file: bool
) -> None:
    variables = {}
    folder = tmp_path / "state/catalogue.d"
    if has_file:
        (tmp_path / "conf").mkdir()
        (tmp_path / "conf/easel.yaml").write_text("log_level: info\n")
        folder = tmp_path / "conf/catalogue.d"
        variables = {"EASEL_CONFIG": str(tmp_path / "conf/easel.yaml")}
    with running(tmp_path / "state", **variables) as server:
        wait_until(lambda: len(server.workers()) == 2 and server.sketch() is not None)
        first, second = server.workers()
        folder.mkdir(parents=True)
        (folder / "mine.json.j2").write_text(exported())
        (folder / "mine.yaml").write_text(document())
        for worker in (first, second):
            with stopped(worker):
                wait_until(lambda: "mine" in ids(server))
                wait_until(lambda: server.draw(model="mine").status_code == 200)
        drawn = server.draw(model="SD-1.5").json()["_hal0"]
        assert (drawn["model"], drawn["workflow"]) == ("mine", "mine")
        assert drawn["meta"]["template"] == "catalogue.d/mine.json.j2"
        licence = get(server, "/v1/models/mine")["licence"]
        assert (licence["url"], licence["commercial"]) == (None, "unknown")
        (overridden,) = get(server, "/ready")["catalogue"]["own_overrides"]
        assert "sd-1.5 is not an alias of sd-1.5-pruned-emaonly in catalogue.yaml any more" in overridden

        (folder / "mine.yaml").write_text(document(size="large"))
        for worker in (first, second):
            with stopped(worker):
                wait_until(lambda: len(get(server, "/ready")["catalogue"]["own_faults"]) == 1)
                assert "mine" not in ids(server)
                (fault,) = get(server, "/ready")["catalogue"]["own_faults"]
                assert fault.startswith("catalogue.d/mine.yaml:1: models.mine.size: ")
        assert server.draw(model="sd-1.5").json()["_hal0"]["model"] == "sd-1.5-pruned-emaonly"
        assert "catalogue.d/mine.yaml:1: models.mine.size: " in server.log

        (folder / "mine.yaml").write_text(document())
        for worker in (first, second):
            with stopped(worker):
                wait_until(lambda: server.draw(model="mine").status_code == 200)
                assert get(server, "/ready")["catalogue"]["own_faults"] == []


def test_a_value_that_only_an_own_file_allows_is_drawn_by_the_engine_of_the_server(tmp_path: Path) -> None:
    folder = tmp_path / "own"
    folder.mkdir()
    (folder / "mine.json.j2").write_text(exported(n3_sampler_name="of_a_later_comfyui"))
    (folder / "mine.yaml").write_text(document())
    with running(tmp_path / "state", EASEL_CATALOGUE_DIR=str(folder)) as server:
        assert server.draw(model="mine").json()["error"]["code"] == "model.not_drawable"
        (folder / "more.yaml").write_text('{"nodes": {"KSampler": {"any_value": ["sampler_name"]}}}')
        wait_until(lambda: server.draw(model="mine").status_code == 200)
        assert server.draw(model="sd-1.5-pruned-emaonly").status_code == 200


def test_a_server_starts_with_a_broken_own_folder_and_a_new_worker_serves_it(tmp_path: Path) -> None:
    folder = tmp_path / "own"
    folder.mkdir()
    (folder / "broken.yaml").write_text("[" * 50_000)
    (folder / "loop.yaml").symlink_to("loop.yaml")
    (folder / "mine.json.j2").write_text(exported())
    (folder / "mine.yaml").write_text(document())
    with running(tmp_path / "state", EASEL_CATALOGUE_DIR=str(folder)) as server:
        assert server.draw(model="mine").status_code == 200
        faults = get(server, "/ready")["catalogue"]["own_faults"]
        assert [fault.partition(":")[0] for fault in faults] == ["own/loop.yaml", "own/broken.yaml"]
        (folder / "mine.yaml").write_text(document(title="New"))
        wait_until(lambda: get(server, "/v1/models/mine")["name"] == "New")
        before = set(server.workers())
        for worker in before:
            os.kill(worker, signal.SIGKILL)
        wait_until(lambda: len(set(server.workers()) - before) == 2)
        wait_until(lambda: "mine" in ids(server))
        assert get(server, "/v1/models/mine")["name"] == "New"
