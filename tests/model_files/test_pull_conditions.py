"""Pulls under conditions of their own: TLS, a terminal, silent servers, models that disagree, LoRAs and stages."""

from __future__ import annotations

import json
import os
import pty
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from flask import Flask

from errors import DownloadFailed, InvalidValue
from model_files.elsewhere import shell_commands
from model_files.folders import ModelFolders
from model_files.http_source import HttpOptions
from model_files.plan import plan_pull
from model_files.pull import Pull
from model_files.pull_store import StoredFile
from model_files.stop_signal import Cancelled
from tests.compiler.catalogues import OWN_MODEL
from tests.conftest import ROOT, MakeApp
from tests.model_files.hostile_server import (
    Behaviour,
    Content,
    HostileServer,
    Request,
    hostile_server,
    silent,
    stall_after,
)
from tests.model_files.test_download import Model, assert_is_there, folders, pull, server, weights
from tests.model_files.test_pulls import MIT, run
from tests.waiting import wait_until

__all__ = ["folders", "server"]
SIZE = 3_000_000
CERTIFICATE = ROOT / "tests/server/tls/certificate.pem"


# --- TLS -------------------------------------------------------------------------------------------


def test_a_file_comes_over_tls_from_a_server_with_a_ca_of_its_own(
    folders: ModelFolders, monkeypatch: pytest.MonkeyPatch
) -> None:
    with hostile_server(certificate=CERTIFICATE) as tls:
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(CERTIFICATE))
        pull(folders, weights(tls.add("f", SIZE)))
    assert tls.url.startswith("https://")
    assert_is_there(folders)


def test_an_untrusted_certificate_is_an_error_at_once_with_its_remedy(folders: ModelFolders) -> None:
    with (
        hostile_server(certificate=CERTIFICATE) as tls,
        pytest.raises(DownloadFailed, match=r"is not trusted \(self-signed certificate.*REQUESTS_CA_BUNDLE"),
    ):
        pull(folders, weights(tls.add("f", SIZE)), options=HttpOptions())
    assert tls.requests == []


# --- a cancel --------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_tls", [False, True])
@pytest.mark.parametrize(("always", "size"), [(silent, SIZE), (silent, None), (stall_after(1_000_000), SIZE)])
def test_a_cancel_does_not_wait_for_a_silent_server(
    always: Behaviour,
    size: int | None,
    is_tls: bool,
    folders: ModelFolders,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(CERTIFICATE))
    with hostile_server(certificate=CERTIFICATE if is_tls else None) as source:
        file = weights(source.add("f", SIZE, always=always), size=size)
        running = Pull(plan_pull([Model("m", {"0": file})], folders), folders, HttpOptions())
        ended: list[BaseException] = []

        def work() -> None:
            try:
                running.run()
            except BaseException as error:
                ended.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        wait_until(
            lambda: source.requests and (always is silent or running.progress[0].received == 1_000_000)
        )
        began_at = time.monotonic()
        running.stop.set()
        thread.join(90)
        assert time.monotonic() - began_at < 2
        assert [type(error) for error in ended] == [Cancelled]


def test_a_host_that_does_not_take_connections_does_not_delay_a_cancel(folders: ModelFolders) -> None:
    # A full backlog: the system answers no further connection.
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        port = listener.getsockname()[1]
        filling = []
        for _ in range(4):
            one = socket.socket()
            one.setblocking(False)
            one.connect_ex(("127.0.0.1", port))
            filling.append(one)
        running = Pull(
            plan_pull([Model("m", {"0": weights(f"http://127.0.0.1:{port}/f")})], folders),
            folders,
            HttpOptions(),
        )
        timer = threading.Timer(0.5, running.stop.set)
        timer.start()
        began_at = time.monotonic()
        with pytest.raises(Cancelled):
            running.run()
        assert time.monotonic() - began_at < 2.5
        for one in filling:
            one.close()


# --- models that disagree --------------------------------------------------------------------------


def models_with(first: StoredFile, second: StoredFile) -> list[Model]:
    return [Model("one", {"a": first}), Model("two", {"b": second})]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (weights("https://a.example/f"), weights("https://b.example/f", sha256="0" * 64)),
        (weights("https://a.example/f", sha256=None), weights("https://b.example/f", sha256=None)),
        (weights("https://a.example/f", sha256=None), weights("https://b.example/f")),
        (weights("https://a.example/f", sha256=None), weights("https://a.example/f", size=5, sha256=None)),
    ],
)
def test_different_files_of_one_name_are_refused(
    first: StoredFile, second: StoredFile, folders: ModelFolders
) -> None:
    said = r"one and two need different files called checkpoints/a\.safetensors.*Give one of them another"
    for ask in (lambda models: plan_pull(models, folders), lambda models: list(shell_commands(models))):
        with pytest.raises(InvalidValue, match=said):
            ask(models_with(first, second))


@pytest.mark.parametrize(
    ("first", "second", "url"),
    [
        (weights("https://a.example/f"), weights("https://b.example/f"), "https://a.example/f"),
        (weights(None, size=None, sha256=None), weights("https://b.example/f"), "https://b.example/f"),
        (weights("https://a.example/f"), weights(None, size=None, sha256=None), "https://a.example/f"),
    ],
)
def test_one_file_of_two_models_is_pulled_once_with_what_is_known_of_it(
    first: StoredFile, second: StoredFile, url: str, folders: ModelFolders
) -> None:
    (file,) = plan_pull(models_with(first, second), folders).files
    assert (file.url, file.size, file.sha256) == (url, SIZE, Content(SIZE).sha256)


# --- LoRAs and stages ------------------------------------------------------------------------------


@pytest.fixture
def app(make_app: MakeApp, server: HostileServer, tmp_path: Path) -> Flask:
    """With a model, a LoRA for its family, and a stage that has the model's upscaler."""
    files = {
        name: {"name": f"{name}.safetensors", "folder": folder, "url": server.add(name, SIZE), "size": SIZE}
        for name, folder in (("mine", "checkpoints"), ("style", "loras"))
    }
    models = {
        "mine": {**OWN_MODEL, "family": "SD 1.x", "licence": MIT, "files": {"checkpoint": files["mine"]}}
    }
    lora = {"title": "Style", "families": ["SD 1.x"], "file": {key: value for key, value in files["style"].items() if key != "folder"}, "licence": MIT}  # fmt: skip
    (tmp_path / "own").mkdir()
    (tmp_path / "own/mine.yaml").write_text(json.dumps({"models": models, "loras": {"my-style": lora}}))
    (tmp_path / "models").mkdir()
    return make_app(catalogue_dir=str(tmp_path / "own"), engine__models_dir=str(tmp_path / "models"))


def test_a_lora_is_pulled_and_removed_by_its_name(app: Flask, tmp_path: Path) -> None:
    place = tmp_path / "models/loras/style.safetensors"
    result = run(app, "My-Style")
    assert result.exit_code == 0, result.output
    assert place.stat().st_size == SIZE
    assert "freed" in run(app, "my-style", "--remove", "--yes").output
    assert not place.exists()
    answer = app.test_client().post("/api/models/pull", json={"models": ["my-style", "mine"]})
    assert answer.status_code == 202
    wait_until(place.exists)


def test_the_file_of_a_stage_goes_when_all_that_needs_it_is_named(app: Flask, tmp_path: Path) -> None:
    upscaler = app.extensions["easel"].catalogue().stages["upscale"].files["upscaler"]
    place = tmp_path / "models" / upscaler.folder / upscaler.name
    place.parent.mkdir()
    with place.open("wb") as file:
        file.truncate(upscaler.size)
    assert "needed by the stage upscale" in run(app, "realesrgan-x4plus", "--remove", "--yes").output
    assert "needed by realesrgan-x4plus" in run(app, "upscale", "--remove", "--yes").output
    assert place.exists()
    removed = run(app, "upscale", "realesrgan-x4plus", "--remove", "--yes")
    assert (removed.exit_code, place.exists()) == (0, False), removed.output


def test_a_stage_can_be_pulled(app: Flask) -> None:
    result = run(app, "upscale", "--dry-run")
    assert "missing: upscale_models/" in result.output, result.output
    unknown = run(app, "upscail")
    assert (unknown.exit_code, "upscail" in unknown.output) == (2, True)


# --- a terminal ------------------------------------------------------------------------------------


def in_a_terminal(command: list[str], **variables: str) -> tuple[int, str]:
    """Exit code, and what the command wrote to stderr, which is a terminal."""
    ours, theirs = pty.openpty()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("EASEL_")}
    process = subprocess.Popen(
        command, cwd=ROOT, env={**environment, **variables}, stderr=theirs, stdout=subprocess.DEVNULL
    )
    os.close(theirs)
    text = b""
    while True:
        try:
            data = os.read(ours, 4096)
        except OSError:  # how Linux reports that the other side is closed
            break
        if not data:
            break
        text += data
    os.close(ours)
    return process.wait(60), text.decode()


def test_a_terminal_shows_one_bar_that_is_written_anew(server: HostileServer, tmp_path: Path) -> None:
    def in_two_parts(request: Request) -> None:
        request.body(request.good_head(), 1_500_000)
        request.handler.wfile.flush()
        time.sleep(2.5)  # the bar moves once a second
        request.body(1_500_000)

    file = {"name": "mine.safetensors", "folder": "checkpoints", "url": server.add("f", SIZE, in_two_parts), "size": SIZE}  # fmt: skip
    (tmp_path / "state/catalogue.d").mkdir(parents=True)
    entry = {"models": {"mine": {**OWN_MODEL, "licence": MIT, "files": {"checkpoint": file}}}}
    (tmp_path / "state/catalogue.d/mine.yaml").write_text(json.dumps(entry))
    (tmp_path / "models").mkdir()
    settings: dict[str, Any] = {
        "EASEL_STATE_DIR": str(tmp_path / "state"),
        "EASEL_ENGINE_MODELS_DIR": str(tmp_path / "models"),
    }
    command = [sys.executable, "-m", "flask", "--app", "app", "pull-model", "mine"]
    code, text = in_a_terminal(command, **settings)
    assert code == 0, text
    lines = text.split("\r\x1b[K")[1:]
    assert any(line.startswith("[###############---------------]  50% of 0.00 GB") for line in lines), lines
    assert lines[-1].startswith("[##############################] 100% of 0.00 GB, 0 MB/s\r\n"), lines
    assert all("\n" not in line for line in lines[:-1])
    assert all(len(line) < 100 for line in lines)
