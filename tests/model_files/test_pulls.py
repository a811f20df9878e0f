"""Pulls by the command and the API: they run in processes of their own, and survive the end of any process."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from flask import Flask
from jsonschema import Draft202012Validator

from schemas import read_yaml
from tests.compiler.catalogues import OWN_MODEL
from tests.conftest import ROOT, MakeApp
from tests.model_files.hostile_server import Content, HostileServer, hostile_server, stall_after, status
from tests.processes import command_line
from tests.server.running import running
from tests.waiting import wait_until

SIZE = 3_000_000
MIT = {"name": "MIT", "url": "https://opensource.org/license/mit", "commercial": True}
DOCUMENT = read_yaml((ROOT / "schemas/openapi.yaml").read_text())
PULL = Draft202012Validator(DOCUMENT["components"]["schemas"]["Pull"])


@pytest.fixture
def server() -> Iterator[HostileServer]:
    with hostile_server() as server:
        yield server


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """The file of the model `mine`"""
    (tmp_path / "models").mkdir()
    return tmp_path / "models/checkpoints/mine.safetensors"


def write_model(folder: Path, url: str, **more: Any) -> None:
    file = {"name": "mine.safetensors", "folder": "checkpoints", "url": url, "size": SIZE, **more}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "mine.yaml").write_text(
        json.dumps({"models": {"mine": {**OWN_MODEL, "licence": MIT, "files": {"checkpoint": file}}}})
    )


@pytest.fixture
def app(make_app: MakeApp, server: HostileServer, place: Path, tmp_path: Path) -> Flask:
    write_model(tmp_path / "own", server.add("f", SIZE), sha256=Content(SIZE).sha256)
    return make_app(catalogue_dir=str(tmp_path / "own"), engine__models_dir=str(tmp_path / "models"))


def run(app: Flask, *arguments: str) -> Any:
    return app.test_cli_runner().invoke(args=["pull-model", *arguments])


# --- the command -----------------------------------------------------------------------------------


def test_the_command_pulls_shows_the_licence_and_is_listed(app: Flask, place: Path) -> None:
    result = run(app, "mine")
    assert result.exit_code == 0, result.output
    assert "MIT: mine" in result.output
    assert "missing: checkpoints/mine.safetensors (0.00 GB)" in result.output
    assert place.stat().st_size == SIZE
    assert "1 files are there already." in run(app, "mine").output
    (pull,) = app.test_client().get("/api/models/pulls").get_json()["pulls"]
    assert (pull["state"], pull["by"], pull["received"]) == ("done", "command", SIZE)
    assert list(PULL.iter_errors(pull)) == []


def test_a_dry_run_pulls_nothing(app: Flask, place: Path, server: HostileServer) -> None:
    assert "missing" in run(app, "mine", "--dry-run").output
    assert (place.exists(), server.requests) == (False, [])


def test_a_file_that_cannot_be_pulled_is_exit_code_3_with_the_reason(
    app: Flask, server: HostileServer
) -> None:
    server.always["f"] = status(404)
    result = run(app, "mine")
    assert result.exit_code == 3
    assert "model.download_failed" in result.stderr
    assert "answered 404" in result.stderr


def test_without_the_folder_the_commands_for_another_machine_are_printed(
    make_app: MakeApp, tmp_path: Path
) -> None:
    write_model(tmp_path / "own", "https://models.example/f")
    result = run(make_app(catalogue_dir=str(tmp_path / "own")), "mine")
    assert result.exit_code == 1
    assert "curl -L --fail --retry 8 -C - -o checkpoints/mine.safetensors.part" in result.stdout
    assert "model.no_models_folder" in result.stderr


def test_remove_frees_the_files(app: Flask, place: Path) -> None:
    assert run(app, "mine").exit_code == 0
    assert "would remove" in run(app, "mine", "--remove", "--dry-run").output
    assert place.exists()
    assert "freed 0.00 GB" in run(app, "mine", "--remove", "--yes").output
    assert not place.exists()


# --- the API ---------------------------------------------------------------------------------------


def test_the_api_pulls_in_a_process_of_its_own(app: Flask, place: Path) -> None:
    client = app.test_client()
    answer = client.post("/api/models/pull", json={"models": ["mine"]})
    assert answer.status_code == 202
    path = f"/api/models/pulls/{answer.get_json()['id']}"
    wait_until(lambda: client.get(path).get_json()["state"] == "done")
    assert place.stat().st_size == SIZE
    assert list(PULL.iter_errors(client.get(path).get_json())) == []
    again = client.post("/api/models/pull", json={"models": ["mine"]})
    assert (again.status_code, again.get_json()["state"]) == (200, "done")
    assert list(PULL.iter_errors(again.get_json())) == []


def test_a_pull_that_runs_is_not_started_twice_and_can_be_cancelled(
    app: Flask, server: HostileServer, place: Path
) -> None:
    server.always["f"] = stall_after(1_000_000)
    client = app.test_client()
    pull = client.post("/api/models/pull", json={"models": ["mine"]}).get_json()
    assert client.post("/api/models/pull", json={"models": ["mine"]}).get_json()["id"] == pull["id"]
    path = f"/api/models/pulls/{pull['id']}"
    wait_until(lambda: client.get(path).get_json()["received"] == 1_000_000)
    assert client.delete(path).status_code == 202
    server.always["f"] = stall_after(0)
    wait_until(lambda: client.get(path).get_json()["state"] == "cancelled")
    assert not place.exists()


def test_of_many_pulls_only_some_run_at_the_same_time(
    make_app: MakeApp, server: HostileServer, tmp_path: Path
) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "own").mkdir()
    models = {}
    for number in range(7):
        url = server.add(f"f{number}", SIZE, always=stall_after(1_000_000))
        file = {"name": f"m{number}.safetensors", "folder": "checkpoints", "url": url, "size": SIZE}
        models[f"m{number}"] = {**OWN_MODEL, "licence": MIT, "files": {"checkpoint": file}}
    (tmp_path / "own/mine.yaml").write_text(json.dumps({"models": models}))
    app = make_app(catalogue_dir=str(tmp_path / "own"), engine__models_dir=str(tmp_path / "models"))
    client, store = app.test_client(), app.extensions["easel"].pulls

    def states() -> list[str]:
        return sorted(pull["state"] for pull in client.get("/api/models/pulls").get_json()["pulls"])

    for name in models:
        assert client.post("/api/models/pull", json={"models": [name]}).status_code == 202
    wait_until(lambda: states() == ["running"] * 4 + ["waiting"] * 3)
    store.resume()
    assert states() == ["running"] * 4 + ["waiting"] * 3
    for name in list(models):
        server.always[f"f{name[1:]}"] = stall_after(SIZE)
    for pull in client.get("/api/models/pulls").get_json()["pulls"]:
        if pull["state"] == "running":
            client.delete(f"/api/models/pulls/{pull['id']}")
    wait_until(lambda: states() == ["cancelled"] * 4 + ["waiting"] * 3)
    store.resume()
    wait_until(lambda: states() == ["cancelled"] * 4 + ["done"] * 3)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({}, "request.invalid_value"),
        ({"models": []}, "request.invalid_value"),
        ({"models": "mine"}, "request.invalid_value"),
        ({"models": [" "]}, "request.invalid_value"),
        ({"models": ["mine"], "force": True}, "request.invalid_value"),
        ({"models": ["absent"]}, "image.model_not_curated"),
    ],
)
def test_requests_that_are_wrong_are_refused(body: Any, expected: str, app: Flask) -> None:
    answer = app.test_client().post("/api/models/pull", json=body)
    assert answer.get_json()["error"]["code"] == expected


def test_without_the_folder_the_api_answers_409(make_app: MakeApp) -> None:
    answer = make_app().test_client().post("/api/models/pull", json={"models": ["flux-schnell-fp8"]})
    assert (answer.status_code, answer.get_json()["error"]["code"]) == (409, "model.no_models_folder")


@pytest.mark.parametrize("pull_id", ["absent", "..", "%2e%2e"])
def test_an_unknown_pull_is_404(pull_id: str, app: Flask) -> None:
    for method in ("get", "delete"):
        assert getattr(app.test_client(), method)(f"/api/models/pulls/{pull_id}").status_code == 404


def test_pulling_needs_the_key(make_app: MakeApp) -> None:
    client = make_app(api_keys=("secret",)).test_client()
    assert client.post("/api/models/pull", json={"models": ["sdxl-turbo"]}).status_code == 401
    assert client.get("/api/models/pulls").status_code == 401


def test_damaged_records_are_not_listed(app: Flask, tmp_path: Path) -> None:
    (tmp_path / "state/pulls/x").mkdir(parents=True)
    (tmp_path / "state/pulls/x/job.json").write_text('{"id": 1}')
    assert app.test_client().get("/api/models/pulls").get_json()["pulls"] == []


# --- a real server ---------------------------------------------------------------------------------


def test_a_pull_survives_its_process_its_worker_and_its_server(
    server: HostileServer, place: Path, tmp_path: Path
) -> None:
    write_model(tmp_path / "state/catalogue.d", server.add("f", SIZE, always=stall_after(1_000_000)))
    variables = {"EASEL_ENGINE_MODELS_DIR": str(tmp_path / "models")}

    def of(url: str) -> Any:
        return requests.get(f"{url}/api/models/pulls", timeout=60).json()["pulls"][0]

    with running(tmp_path / "state", **variables) as easel:
        answer = requests.post(f"{easel.url}/api/models/pull", json={"models": ["mine"]}, timeout=60)
        assert answer.status_code == 202
        wait_until(lambda: of(easel.url)["received"] == 1_000_000)
        workers = easel.workers()
        first = puller()
        for worker in workers:
            os.kill(worker, signal.SIGKILL)
        wait_until(lambda: len(easel.workers()) == 2 and not set(easel.workers()) & set(workers))
        assert puller() == first
        os.kill(first, signal.SIGKILL)
        wait_until(lambda: puller() not in (None, first))
        second = puller()
        server.always["f"] = stall_after(0)
    wait_until(lambda: puller() != second)
    assert not place.exists()
    server.always["f"] = stall_after(SIZE)
    with running(tmp_path / "state", **variables) as easel:
        wait_until(lambda: of(easel.url)["state"] == "done")
    assert place.read_bytes() == b"".join(Content(SIZE).blocks())


def puller() -> Any:
    """The process of a pull of this test; None if there is none"""
    folder = os.environ["PYTEST_CURRENT_TEST"].partition("::")[2].partition(" ")[0][:30]
    for path in Path("/proc").glob("[0-9]*"):
        line = command_line(int(path.name))
        if "-m model_files" in line and folder in line:
            return int(path.name)
    return None


# --- licences --------------------------------------------------------------------------------------


def test_the_licence_is_asked_for_once_and_the_api_refuses_before(
    make_app: MakeApp, server: HostileServer, place: Path, tmp_path: Path
) -> None:
    file = {"name": "mine.safetensors", "folder": "checkpoints", "url": server.add("f", SIZE), "size": SIZE}
    (tmp_path / "own").mkdir()
    (tmp_path / "own/mine.yaml").write_text(
        json.dumps({"models": {"mine": {**OWN_MODEL, "files": {"checkpoint": file}}}})
    )
    app = make_app(catalogue_dir=str(tmp_path / "own"), engine__models_dir=str(tmp_path / "models"))
    refused = app.test_client().post("/api/models/pull", json={"models": ["mine"]})
    assert (refused.status_code, refused.get_json()["error"]["code"]) == (403, "model.licence_not_accepted")
    assert run(app, "mine", "--dry-run").exit_code == 0
    declined = app.test_cli_runner().invoke(args=["pull-model", "mine"], input="n\n")
    assert (declined.exit_code, place.exists()) == (2, False)
    unanswered = app.test_cli_runner().invoke(args=["pull-model", "mine"], input="")
    assert (unanswered.exit_code, "With --yes" in unanswered.output, place.exists()) == (2, True, False)
    assert run(app, "mine", "--yes").exit_code == 0, "accepted and recorded"
    place.unlink()
    assert run(app, "mine").exit_code == 0, "not asked again"
    assert place.stat().st_size == SIZE
