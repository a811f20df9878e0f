"""The log: a line for each picture, and JSON that a machine can read."""

from __future__ import annotations

import json
import logging
import sys
from dataclasses import replace
from typing import Any

import pytest

from logs import JsonFormatter, PictureLog, facts
from observer import DrawingReport, PictureReport
from tests.conftest import MakeApp

PICTURE = PictureReport(7, "512x512", "9b2e1c44", 0.25, 4.0)


def report(**changes: Any) -> DrawingReport:
    values: dict[str, Any] = {
        "request_id": "req-1",
        "key": "anna",
        "trace": "",
        "model": "sdxl",
        "prompt": "a secret\ncat",
        "result": "done",
        "code": "",
        "jobs": (),
        "pictures": (PICTURE, PICTURE),
        "stages": (),
    }
    return DrawingReport(**{**values, **changes})


def as_json(record: logging.LogRecord) -> dict[str, Any]:
    line = JsonFormatter().format(record)
    assert "\n" not in line
    entry: dict[str, Any] = json.loads(line)
    return entry


def test_each_picture_is_one_line(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "easel.pictures")
    PictureLog(with_prompts=False).drawing(report())
    assert [record.getMessage() for record in caplog.records] == [
        "req-1 drew sdxl for anna, 512x512, seed 7, image 9b2e1c44, waited 0.25 s, rendered 4.00 s"
    ] * 2
    entry = as_json(caplog.records[0])
    assert {name: entry[name] for name in ("request_id", "key", "model", "seed", "size", "image")} == {
        "request_id": "req-1",
        "key": "anna",
        "model": "sdxl",
        "seed": 7,
        "size": "512x512",
        "image": "9b2e1c44",
    }
    assert (entry["wait_s"], entry["render_s"]) == (0.25, 4.0)
    assert "secret" not in caplog.text + json.dumps(entry)


def test_the_line_of_a_picture_names_its_engine_if_it_has_a_name(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "easel.pictures")
    PictureLog(with_prompts=False).drawing(report(pictures=(replace(PICTURE, engine="left"), PICTURE)))
    named, only = caplog.records
    assert named.getMessage().endswith("waited 0.25 s, rendered 4.00 s on left")
    assert as_json(named)["engine"] == "left"
    assert "engine" not in as_json(only)


def test_a_drawing_that_fails_is_a_line_with_its_code(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "easel.pictures")
    listener = PictureLog(with_prompts=False)
    listener.drawing(report(result="failed", code="engine.out_of_memory", pictures=()))
    listener.drawing(report(result="cancelled", code="", pictures=()))
    first, second = caplog.records
    assert first.levelname == "WARNING"
    assert as_json(first)["code"] == "engine.out_of_memory"
    assert second.levelname == "INFO"
    assert as_json(second)["result"] == "cancelled"


def test_prompts_are_written_only_if_the_owner_wants_them(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "easel.pictures")
    PictureLog(with_prompts=True).drawing(report(pictures=(PICTURE,)))
    (record,) = caplog.records
    assert "\n" not in record.getMessage()
    assert record.getMessage().endswith(r': "a secret\ncat"')
    assert as_json(record)["prompt"] == "a secret\ncat"


@pytest.mark.parametrize("key", ['a"b', "line\nbreak", "\x1b[31mred", "Zoë", "half\ud83d"])
def test_a_name_of_any_kind_stays_one_line(caplog: pytest.LogCaptureFixture, key: str) -> None:
    caplog.set_level(logging.INFO, "easel.pictures")
    PictureLog(with_prompts=False).drawing(report(key=key, pictures=(PICTURE,)))
    (record,) = caplog.records
    assert record.getMessage().isprintable()
    assert as_json(record)["key"] == key


def test_an_error_with_a_traceback_and_a_wrong_message_is_json_too() -> None:
    try:
        raise ValueError("no")
    except ValueError:
        record = logging.getLogger("easel").makeRecord(
            "easel",
            logging.ERROR,
            "f",
            1,
            "%d wrong",
            ("text",),
            sys.exc_info(),
            extra=facts(code="x", level=1),
        )
    entry = as_json(record)
    assert entry["code"] == "x"
    assert entry["level"] == "error"  # a fact replaces nothing
    assert "ValueError: no" in entry["exception"]
    assert "wrong" in entry["message"]


def test_a_request_writes_its_picture_and_its_access(
    make_app: MakeApp, caplog: pytest.LogCaptureFixture
) -> None:
    client = make_app(api_keys=("key-one",)).test_client()
    caplog.set_level(logging.INFO, "easel")
    headers = {"Authorization": "Bearer key-one", "x-request-id": "mine"}
    body = {"prompt": "an unusual prompt", "size": "256x256", "n": 2, "seed": 5, "response_format": "url"}
    response = client.post("/v1/images/generations", json=body, headers=headers)
    assert response.status_code == 200
    entries = [as_json(record) for record in caplog.records]
    drawn = [entry for entry in entries if entry["logger"] == "easel.pictures"]
    assert [entry["seed"] for entry in drawn] == [image["seed"] for image in response.json["_hal0"]["images"]]
    assert {entry["request_id"] for entry in drawn} == {"mine"}
    urls = [image["url"] for image in response.json["data"]]
    assert [url.rpartition("/")[2].startswith(entry["image"]) for url, entry in zip(urls, drawn, strict=True)]
    (access,) = [entry for entry in entries if entry["logger"] == "easel.access"]
    assert (access["status"], access["path"], access["request_id"]) == (200, "/v1/images/generations", "mine")
    refused = client.get("/v1/models", headers={"Authorization": "Bearer wrong-key"})
    assert as_json(caplog.records[-1])["code"] == refused.json["error"]["code"]
    text = caplog.text + json.dumps(entries)
    assert "unusual" not in text
    assert "key-one" not in text
    assert "wrong-key" not in text
    assert not any(url.rpartition("/")[2] in text for url in urls)
