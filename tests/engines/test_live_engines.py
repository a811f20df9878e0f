"""Engines that are added, changed and removed while the server runs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml

from app import Container
from arbiter import Arbiter
from engines import EngineEntry, LastGoodEngines, LiveEngines, engines_of_text
from tests.api.test_key_permissions import schema_of
from tests.conftest import ROOT, MakeApp
from tests.server.running import running, stopped
from tests.waiting import wait_until

ONE = {"name": "one", "url": "http://127.0.0.1:1"}
VARIABLES = {"TOKEN": "a-secret-token"}
TWO = {"name": "two", "url": "http://127.0.0.1:2", "gpu": "1"}


class Installation:
    """An application whose easel.yaml is edited."""

    def __init__(
        self, make_app: MakeApp, folder: Path, *entries: dict[str, Any], is_another_process: bool = False
    ) -> None:
        """`is_another_process`: one of a server that was started with these `entries` and whose file is edited already"""
        self.path = folder / "easel.yaml"
        if not is_another_process:
            self.write(*entries)
        self.container: Container = make_app(engine__url="", engines=entries).extensions["easel"]
        self.fleet = self.container.fleet
        self.live = LiveEngines(
            self.fleet,
            engines_of_text(yaml.safe_dump({"engines": list(entries)}), VARIABLES),
            self.path,
            lambda text: engines_of_text(text, VARIABLES),
            self.make,
            LastGoodEngines(folder / "engines.last_good.json", VARIABLES),
        )

    def make(self, entry: EngineEntry) -> Any:
        return self.container._named_engine(entry)

    def write(self, *entries: dict[str, Any]) -> None:
        self.write_text(yaml.safe_dump({"engines": list(entries)}))

    def write_text(self, text: str) -> None:
        self.path.write_text(text)
        past = time.time() - 60
        os.utime(self.path, (past, past))

    def edit(self, *entries: dict[str, Any]) -> list[str]:
        """The names of the engines after an edit."""
        self.write(*entries)
        self.live.look()
        return self.names()

    def names(self) -> list[str]:
        return [unit.name for unit in self.fleet.units]


@pytest.fixture
def installation(make_app: MakeApp, tmp_path: Path) -> Installation:
    return Installation(make_app, tmp_path, ONE)


def test_an_engine_is_added_and_removed(installation: Installation) -> None:
    (first,) = installation.fleet.units
    assert installation.fleet.is_single
    assert installation.edit(ONE, TWO) == ["one", "two"]
    assert installation.fleet.units[0] is first  # an entry that has not changed stays as it is
    assert not installation.fleet.is_single
    assert installation.edit(TWO) == ["two"]
    assert installation.fleet.first.url == TWO["url"]


def test_models_and_weight_are_changed_without_a_new_queue(installation: Installation) -> None:
    arbiter = installation.fleet.first.arbiter
    installation.edit({**ONE, "models": ["sd-1.5"], "weight": 2})
    unit = installation.fleet.first
    assert (unit.models, unit.weight) == (frozenset({"sd-1.5"}), 2)
    assert unit.arbiter is arbiter


def test_another_address_is_another_engine_with_the_same_queue(installation: Installation) -> None:
    before = installation.fleet.first
    installation.edit({**ONE, "url": "http://127.0.0.1:3"})
    after = installation.fleet.first
    assert after.url == "http://127.0.0.1:3"
    assert after.arbiter is not before.arbiter
    assert after.arbiter.claims.folder == before.arbiter.claims.folder


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("engines: [", "easel.yaml:"),
        ("engines: [{name: one}]", "engines.0"),
        (
            "engines: [{name: a, url: 'http://127.0.0.1:1', gpu: x}, {name: b, url: 'http://127.0.0.1:2', gpu: x}]",
            "gpu",
        ),
        ("port: 1", "no `engines`"),
        ("engines: []", "engines"),
    ],
)
def test_what_is_not_valid_changes_nothing(
    installation: Installation, text: str, message: str, caplog: pytest.LogCaptureFixture
) -> None:
    before = installation.fleet.units
    installation.write_text(text)
    for _ in range(3):
        installation.live.look()
    assert installation.fleet.units is before
    assert installation.live.error is not None
    assert message in installation.live.error.message
    assert len([record for record in caplog.records if record.name == "easel.engine"]) == 1
    assert installation.edit(ONE, TWO) == ["one", "two"]
    assert installation.live.error is None


def test_a_file_that_could_not_be_read_once_is_read_again(
    installation: Installation, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    installation.write(ONE, TWO)
    with monkeypatch.context() as failing:

        def fail(path: Path, encoding: str) -> str:
            raise OSError(24, "Too many open files")

        failing.setattr(Path, "read_text", fail)
        for _ in range(3):
            installation.live.look()
    assert installation.live.error is not None
    assert "Too many open files" in installation.live.error.message
    assert len([record for record in caplog.records if record.name == "easel.engine"]) == 1
    installation.live.look()
    assert [unit.name for unit in installation.fleet.units] == ["one", "two"]
    assert installation.live.error is None


def test_the_reconciler_of_an_engine_that_stays_is_not_started_again(installation: Installation) -> None:
    reconciler = installation.fleet.first.arbiter.reconciler
    reconciler.start()
    installation.live._runs_reconcilers = True
    before = threading.active_count()
    try:
        installation.edit({**ONE, "weight": 2})
        assert installation.fleet.first.weight == 2
        assert threading.active_count() == before
    finally:
        reconciler.stop(5)


REFUSED = "engines: [{name: two, url: 7}]"


def test_a_process_that_starts_while_an_edit_is_refused_uses_what_was_accepted_last(
    make_app: MakeApp, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = Installation(make_app, tmp_path, ONE, TWO)
    first.live.catch_up()
    assert first.edit(TWO) == ["two"]
    first.write_text(REFUSED)
    first.live.look()
    caplog.clear()
    later = Installation(make_app, tmp_path, ONE, TWO, is_another_process=True)
    later.live.catch_up()
    for _ in range(3):
        later.live.look()
    assert later.names() == first.names() == ["two"]
    assert later.live.error is not None
    [said] = [record.message for record in caplog.records if "not valid" in record.message]
    assert "easel.yaml:1: engines.0.url" in said
    assert later.edit(ONE) == ["one"]
    assert later.live.error is None


def test_a_process_that_did_not_see_an_edit_before_the_refused_one_uses_it_too(
    make_app: MakeApp, tmp_path: Path
) -> None:
    quick, slow = (Installation(make_app, tmp_path, ONE, is_another_process=index > 0) for index in range(2))
    slow.live.look()
    slow.write_text(REFUSED)
    slow.live.look()
    assert slow.names() == ["one"]
    quick.edit(ONE, TWO)
    slow.write_text(REFUSED)
    slow.live.look()
    assert slow.names() == ["one", "two"]


def test_what_an_earlier_run_accepted_is_forgotten(make_app: MakeApp, tmp_path: Path) -> None:
    Installation(make_app, tmp_path, ONE).edit(TWO)
    LastGoodEngines(tmp_path / "engines.last_good.json", VARIABLES).clear()
    later = Installation(make_app, tmp_path, ONE, is_another_process=True)
    later.write_text(REFUSED)
    later.live.catch_up()
    assert later.names() == ["one"]


@pytest.mark.parametrize("content", [None, "", "{}", '{"engines": []}', '{"engines": [{"name": "x"}]}'])
def test_a_lost_or_damaged_list_is_written_again_while_an_edit_is_refused(
    make_app: MakeApp, tmp_path: Path, content: str | None
) -> None:
    first = Installation(make_app, tmp_path, ONE)
    first.edit(TWO)
    first.write_text(REFUSED)
    first.live.look()
    stored = tmp_path / "engines.last_good.json"
    before = stored.read_text()
    if content is None:
        stored.unlink()
    else:
        stored.write_text(content)
    for _ in range(2):  # the first look may only find the damage
        first.live.look()
    assert stored.read_text() == before
    later = Installation(make_app, tmp_path, ONE, is_another_process=True)
    later.live.catch_up()
    assert later.names() == ["two"]


def test_the_stored_list_has_the_names_of_variables_and_not_their_values(
    make_app: MakeApp, tmp_path: Path
) -> None:
    entry = {**TWO, "token_env": "TOKEN", "weight": 2, "models": ["sd-1.5"]}
    Installation(make_app, tmp_path, ONE).edit(entry)
    stored = tmp_path / "engines.last_good.json"
    assert json.loads(stored.read_text()) == {"engines": [entry]}
    assert stored.stat().st_mode & 0o777 == 0o600
    assert LastGoodEngines(stored, VARIABLES).changed() == engines_of_text(stored.read_text(), VARIABLES)


def test_what_has_changed_while_it_was_read_is_neither_stored_nor_used(
    make_app: MakeApp, tmp_path: Path
) -> None:
    installation = Installation(make_app, tmp_path, ONE)
    stored = LastGoodEngines(tmp_path / "engines.last_good.json", {})
    installation.write(TWO)
    read_text = installation.path.read_text()
    assert not stored.store(read_text, lambda: False)
    assert stored.changed() is None

    installation.live._read = lambda text: (installation.write(ONE, TWO), engines_of_text(text, {}))[1]
    installation.live.look()
    assert installation.names() == ["one"]
    installation.live._read = lambda text: engines_of_text(text, {})
    installation.live.look()
    assert installation.names() == ["one", "two"]


def test_a_state_directory_that_is_not_writable_does_not_keep_an_edit_away(
    make_app: MakeApp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installation = Installation(make_app, tmp_path, ONE)

    def fail(*arguments: Any, **options: Any) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("engines.last_good.write_atomic", fail)
    assert installation.edit(TWO) == ["two"]


def test_a_worker_that_replaces_a_killed_one_has_the_engines_that_were_accepted_last(
    tmp_path: Path, sketch_url: str
) -> None:
    path, state = tmp_path / "easel.yaml", tmp_path / "state"
    one, two = {**ONE, "url": sketch_url}, TWO
    path.write_text(yaml.safe_dump({"engines": [two, one]}))
    # Of an earlier run.
    state.mkdir()
    (state / "engines.last_good.json").write_text(json.dumps({"engines": [{**TWO, "name": "old"}]}))
    with running(state, EASEL_CONFIG=str(path), EASEL_WORKERS="2") as server:

        def status() -> dict[str, Any]:
            document: dict[str, Any] = requests.get(f"{server.url}/api/comfyui/status", timeout=60).json()
            return document

        def names() -> list[str]:
            return [each["name"] for each in status()["engines"]]

        def of_each_worker() -> list[list[str]]:
            found = []
            for worker in server.workers():
                with stopped(worker):
                    found.append(names())
            return found

        wait_until(lambda: len(server.workers()) == 2)
        assert of_each_worker() == [["two", "one"]] * 2
        assert "old" not in server.log
        path.write_text(yaml.safe_dump({"engines": [one]}))
        wait_until(lambda: of_each_worker() == [["one"]] * 2)
        path.write_text("engines: [{name: one, url: 7}]\n")
        wait_until(lambda: server.log.count("the changed engines are not valid") == 2)
        killed = server.workers()[0]
        os.kill(killed, signal.SIGKILL)
        wait_until(lambda: server.log.count("the changed engines are not valid") == 3)
        wait_until(lambda: len(set(server.workers()) - {killed}) == 2)
        assert of_each_worker() == [["one"]] * 2
        assert status()["settings"]["error"]["code"] == "settings.invalid"


def test_a_deleted_file_changes_nothing_and_is_said(
    installation: Installation, caplog: pytest.LogCaptureFixture
) -> None:
    installation.path.unlink()
    for _ in range(3):
        installation.live.look()
    assert [unit.name for unit in installation.fleet.units] == ["one"]
    assert [record.message for record in caplog.records if "not there any more" in record.message] == [
        "the changed engines are not valid; those of before stay in use: easel.yaml is not there any more."
    ]
    assert installation.edit(TWO) == ["two"]


def test_a_file_that_is_still_written_is_left_alone(installation: Installation) -> None:
    installation.path.write_text(yaml.safe_dump({"engines": [ONE, TWO]}))
    installation.live.look()
    assert len(installation.fleet.units) == 1


def test_a_job_that_waits_at_a_removed_engine_is_placed_again(
    installation: Installation, sketch_url: str
) -> None:
    entries = [{**ONE, "url": sketch_url}, {**TWO, "url": sketch_url.replace("127.0.0.1", "localhost")}]
    installation.edit(*entries)
    unit = installation.fleet.place("job", "flux-schnell")
    assert not installation.fleet.is_better_elsewhere("job", {})
    installation.edit(*(entry for entry in entries if entry["name"] != unit.name))
    assert installation.fleet.is_better_elsewhere("job", {})


def test_the_llms_of_a_removed_engine_keep_their_gpu(make_app: MakeApp, tmp_path: Path) -> None:
    stack = {"driver": "ollama", "url": "http://127.0.0.1:9", "gpu": "1"}
    path = tmp_path / "easel.yaml"
    path.write_text(yaml.safe_dump({"engines": [ONE, TWO]}))
    app = make_app(engine__url="", engines=(ONE, TWO), llm__stacks=(stack,))
    container: Container = app.extensions["easel"]
    arbiter: Arbiter = container.fleet.arbiter_of("1")
    assert arbiter.shares_gpu
    assert not container.fleet.arbiter_of("one").shares_gpu
    live = LiveEngines(
        container.fleet,
        engines_of_text(path.read_text(), {}),
        path,
        lambda text: engines_of_text(text, {}),
        container._named_engine,
        LastGoodEngines(tmp_path / "engines.last_good.json", {}),
    )
    path.write_text(yaml.safe_dump({"engines": [ONE]}))
    os.utime(path, (1, 1))
    live.look()
    assert [unit.name for unit in container.fleet.units] == ["one"]
    assert container.fleet.arbiter_of("1") is arbiter


def test_an_edit_that_is_refused_is_said_by_the_status_and_by_commands(
    tmp_path: Path, sketch_url: str
) -> None:
    path, state = tmp_path / "easel.yaml", tmp_path / "state"
    valid = yaml.safe_dump({"engines": [{**ONE, "url": sketch_url}]})
    path.write_text(valid)

    def easel(*arguments: str) -> subprocess.CompletedProcess[str]:
        options = ("--config", str(path), "--state-dir", str(state))
        command = [sys.executable, "-m", "easel", *options, *arguments]
        kept = {name: value for name, value in os.environ.items() if not name.startswith("EASEL_")}
        return subprocess.run(command, cwd=ROOT, env=kept, capture_output=True, text=True, timeout=120)

    with running(state, EASEL_CONFIG=str(path), EASEL_WORKERS="1") as server:

        def error() -> dict[str, Any] | None:
            document = requests.get(f"{server.url}/api/comfyui/status", timeout=60).json()
            schema_of("ComfyuiStatus").validate(document)
            found: dict[str, Any] | None = document["settings"]["error"]
            return found

        assert error() is None
        path.write_text(f"engines:\n- {ONE | {'url': sketch_url}}\n- {ONE | {'url': TWO['url']}}\n")
        refused = wait_until(error)
        assert (refused["code"], refused["file"], refused["line"]) == ("settings.invalid", "easel.yaml", 3)
        assert "names must be unique" in refused["message"]
        path.write_text("log_level: info\n")  # commands accept this one
        wait_until(lambda: "no `engines` any more" in (error() or {}).get("message", ""))
        findings = {each["code"]: each for each in json.loads(easel("doctor", "--json").stdout)["findings"]}
        assert "no `engines` any more" in findings["engines.refused"]["message"]
        listed = easel("engines", "list", "--json")
        assert "uses the last valid engines: easel.yaml has no `engines` any more" in listed.stderr
        assert [each["name"] for each in json.loads(listed.stdout)] == ["engine"]
        path.write_text(valid)
        wait_until(lambda: error() is None)
        assert easel("engines", "list").stderr == ""
