"""The log of a real server."""

from __future__ import annotations

import json
from pathlib import Path

from tests.llm.fake_servers import FakeLlamaServer
from tests.server.running import running


def test_each_line_of_a_json_log_is_an_object(tmp_path: Path) -> None:
    with running(tmp_path / "state", EASEL_LOG_FORMAT="json") as server:
        assert server.draw().status_code == 200
        server.wait_for('"logger": "easel.pictures"')
        server.wait_for('"message": "models: ')
    lines = server.log.splitlines()
    entries = [json.loads(line) for line in lines]
    assert all({"time", "level", "logger", "message"} <= entry.keys() for entry in entries)
    assert {"gunicorn.error", "easel.access", "easel.pictures", "easel"} <= {
        entry["logger"] for entry in entries
    }


def test_the_log_names_engine_models_and_stacks_at_the_start(tmp_path: Path) -> None:
    with FakeLlamaServer() as llama:
        stacks = json.dumps([{"name": "chat", "driver": "llama-server", "url": llama.url}])
        with running(tmp_path / "state", EASEL_LLM_STACKS=stacks) as server:
            server.wait_for(r"INFO easel engine: the sketch engine at http://\S+, which runs no model")
            server.wait_for(r"INFO easel models: \d+ ready \([\w.-]+(, [\w.-]+){4} and \d+ more\), 0 with")
            server.wait_for(r"LLM stack chat: loaded: chat, embed")
        assert server.log.count("INFO easel engine:") == 1


def test_an_engine_that_does_not_answer_is_named_with_its_code(tmp_path: Path) -> None:
    with running(tmp_path / "state", EASEL_ENGINE_URL="http://127.0.0.1:9") as server:
        server.wait_for(r"WARNING easel engine: cannot draw yet: engine\.unreachable: ")
