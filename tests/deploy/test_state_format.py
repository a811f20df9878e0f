"""The form of the state directory: a newer one is refused, an older one is taken over."""

from __future__ import annotations

import hashlib
import json
import shutil
import sqlite3
import time
from pathlib import Path

import pytest

from errors import SettingsInvalid
from state_format import FILE_NAME, FORMAT, check_format
from tests.conftest import MakeApp
from tests.deploy import state_content
from tests.server.running import running, started

OLD_STATES = Path(__file__).with_name("old_states")


def tree(folder: Path) -> dict[str, str]:
    """The files and what is in them."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_a_directory_without_a_form_gets_this_ones(tmp_path: Path) -> None:
    check_format(tmp_path)
    assert json.loads((tmp_path / FILE_NAME).read_text())["format"] == FORMAT
    check_format(tmp_path)


@pytest.mark.parametrize("content", [b"", b"[]", b'{"format": "1"}', b'{"format": true}', b"\xff"])
def test_a_damaged_form_stops_no_server(tmp_path: Path, content: bytes) -> None:
    (tmp_path / FILE_NAME).write_bytes(content)
    check_format(tmp_path)
    assert json.loads((tmp_path / FILE_NAME).read_text())["format"] == FORMAT


def test_a_newer_form_is_refused_and_named(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_text(json.dumps({"format": FORMAT + 1, "easel": "9.9.9"}))
    with pytest.raises(SettingsInvalid, match=r"newer Easel, 9\.9\.9.*EASEL_STATE_DIR"):
        check_format(tmp_path)


def test_a_version_brings_no_control_characters_to_the_terminal(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_text(json.dumps({"format": FORMAT + 1, "easel": "9\x1b[31m\n" + "9" * 1000}))
    with pytest.raises(SettingsInvalid) as refused:
        check_format(tmp_path)
    assert refused.value.message.isprintable()
    assert len(refused.value.message) < 500 + len(str(tmp_path))


@pytest.mark.parametrize(
    "command",
    [("keys", "add", "phone"), ("keys", "revoke", "phone"), ("accept-licence", "sdxl-turbo", "--yes")],
)
def test_a_command_changes_nothing_in_a_directory_of_a_newer_form(
    command: tuple[str, ...], make_app: MakeApp, tmp_path: Path
) -> None:
    state = tmp_path / "state"
    state.mkdir()
    (state / FILE_NAME).write_text(json.dumps({"format": FORMAT + 1, "easel": "9.9.9"}))
    result = make_app(state_dir=str(state)).test_cli_runner().invoke(args=list(command))
    assert result.exit_code != 0
    assert "newer Easel, 9.9.9" in result.output
    assert not {path.name for path in state.iterdir()} & {"keys.json", "licences.json", "audit.jsonl"}


def test_a_form_that_cannot_be_read_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be a newer one, written by another user."""
    content = json.dumps({"format": FORMAT + 1, "easel": "9.9.9"})
    (tmp_path / FILE_NAME).write_text(content)

    def refuse(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("state_format.read_file", refuse)
    with pytest.raises(PermissionError):
        check_format(tmp_path)
    assert (tmp_path / FILE_NAME).read_text() == content


def test_a_server_changes_nothing_in_a_directory_of_a_newer_form(tmp_path: Path) -> None:
    state = tmp_path / "state"
    shutil.copytree(OLD_STATES / "index-1", state)
    (state / FILE_NAME).write_text(json.dumps({"format": FORMAT + 1, "easel": "9.9.9"}))
    before = tree(state)
    with started(state) as server:
        assert server.process.wait(60) == 1
        assert "was last used by a newer Easel, 9.9.9" in server.log
    after = tree(state)
    assert {name: after[name] for name in before} == before
    assert set(after) - set(before) <= {"server.lock", "keys.last_good.json", "keys.lock"}


def test_the_state_of_an_older_version_is_taken_over(tmp_path: Path) -> None:
    """old_states/index-1 was made by the commit 863290e: a key, two pictures, a favourite, and a job that was cut off."""
    state = tmp_path / "state"
    shutil.copytree(OLD_STATES / "index-1", state)
    with sqlite3.connect(state / "images" / "index.sqlite3") as index:
        assert index.execute("PRAGMA user_version").fetchone() == (1,)
    index.close()
    # Jobs give up after a day when the engine is not there at once.
    [status] = (state / "image-jobs" / "work").glob("*/status.json")
    status.write_text(json.dumps(json.loads(status.read_text()) | {"created": time.time()}))
    content = state_content.Content(**json.loads((OLD_STATES / "index-1.json").read_text()))
    with running(state) as server:
        state_content.check(content, server.url)
    assert json.loads((state / FILE_NAME).read_text())["format"] == FORMAT
