"""What the status says of requests, past switches and errors, and to whom."""

from __future__ import annotations

import json
from typing import Any

from api.status_document import Audience, whole_status
from app import Container
from arbiter import Sender
from observer import DrawingReport
from status import LastEngineError
from tests.api.test_key_permissions import PATH, SMALL, Installation, schema_of
from tests.conftest import MakeApp
from tests.waiting import wait_until

STATUS = "/api/comfyui/status"


def status(easel: Installation, name: str = "") -> dict[str, Any]:
    document: dict[str, Any] = easel.call(name, "GET", STATUS).get_json()
    schema_of("ComfyuiStatus").validate(document)
    return document


def test_requests_are_listed_with_prompts_for_their_own_key_and_for_operators(make_app: MakeApp) -> None:
    easel = Installation(make_app())
    arbiter = easel.container.arbiter
    for name, scopes in (("mine", None), ("yours", None), ("owner", ["operate"])):
        easel.add(name, scopes)
    with (
        arbiter.listed(
            "r1",
            model="sdxl",
            jobs=["a", "b"],
            sender=Sender("id", "192.0.2.1", "mine"),
            prompt="my cat" * 200,
        ),
        arbiter.listed(
            "r2", model="sd15", jobs=["c"], sender=Sender("id", "192.0.2.2", "yours"), prompt="a dog"
        ),
        arbiter.lease("generation", job="b", timeout_s=5),
    ):
        arbiter.job_progress.report("b", 5, 10)
        seen = {name: {each["id"]: each for each in status(easel, name)["requests"]} for name in easel.keys}
    first = seen["mine"]["r1"]
    assert (first["state"], first["kind"], first["client"], first["can_cancel"]) == (
        "drawing",
        "image",
        "mine",
        True,
    )
    assert first["prompt"] == ("my cat" * 200)[:500]
    assert (first["step"], first["steps"], first["progress"]) == (5, 10, 0.75)
    other = seen["mine"]["r2"]
    assert (other["prompt"], other["client"], other["key"], other["can_cancel"]) == (None, None, None, False)
    assert other["model"] == "sd15"
    assert seen["owner"]["r2"]["prompt"] == "a dog"
    assert seen["owner"]["r1"]["can_cancel"]


def test_a_job_of_the_queue_is_listed_and_cancelled_like_any_request(make_app: MakeApp) -> None:
    easel = Installation(make_app())  # no thread draws jobs here
    for name, scopes in (("mine", None), ("yours", None), ("owner", ["operate"])):
        easel.add(name, scopes)
    job = easel.call("mine", "POST", PATH, SMALL, Prefer="respond-async").get_json()["id"]
    (entry,) = status(easel, "mine")["requests"]
    assert (entry["id"], entry["state"], entry["place"], entry["can_cancel"]) == (job, "waiting", 0, True)
    assert status(easel, "yours")["requests"][0]["key"] is None
    cancel = "/api/comfyui/render/cancel"
    assert easel.call("yours", "POST", cancel, {"id": job}).status_code == 403
    assert easel.call("mine", "POST", cancel, {"id": job}).get_json()["jobs"] == [job]
    assert status(easel, "mine")["requests"] == []
    second = easel.call("mine", "POST", PATH, SMALL, Prefer="respond-async").get_json()["id"]
    assert easel.call("owner", "POST", cancel, {"id": second}).status_code == 202


def test_a_later_key_of_the_same_name_neither_sees_nor_cancels_what_the_first_one_draws(
    make_app: MakeApp,
) -> None:
    easel = Installation(make_app())  # no thread draws jobs here
    gate = easel.container.gate
    easel.add("mine")
    easel.add("owner", ["operate"])
    first = gate.caller_of(easel.keys["mine"].encode())
    job = easel.call("mine", "POST", PATH, SMALL, Prefer="respond-async").get_json()["id"]
    gate.revoke_key("mine")
    easel.add("mine")
    sender = Sender("id", "192.0.2.1", "mine", owner=first.owner)
    arbiter = easel.container.arbiter
    with (
        arbiter.listed("r1", model="sdxl", jobs=["a"], sender=sender, prompt="my cat"),
        arbiter.lease("generation", job="a", timeout_s=5),
    ):
        seen = {name: status(easel, name) for name in easel.keys}
        cancel = easel.call("mine", "POST", "/api/comfyui/render/cancel", {"id": "r1"})
    for entry in seen["mine"]["requests"]:
        assert (entry["prompt"], entry["key"], entry["client"], entry["can_cancel"]) == (
            None,
            None,
            None,
            False,
        )
    assert {entry["id"] for entry in seen["mine"]["requests"]} == {"r1", job}
    assert seen["mine"]["jobs"][0]["key"] is None
    assert cancel.status_code == 403
    assert [entry["prompt"] for entry in seen["owner"]["requests"] if entry["id"] == "r1"] == ["my cat"]
    assert first.owner not in json.dumps(seen)


def test_who_caused_a_switch_is_told_to_operators_and_to_itself(make_app: MakeApp) -> None:
    easel = Installation(make_app())
    for name, scopes in (("mine", None), ("yours", None), ("owner", ["operate"])):
        easel.add(name, scopes)
    log = easel.container.arbiter.events
    log.write("switch_began", number=1, target="generation", reason="x", force=False, waiting=["j"])
    log.write("lease", mode="generation", job="j", key="mine")
    log.write(
        "switch_ended", number=1, target="generation", mode="generation", took_s=1.0, phases=[], error=None
    )
    who = {name: status(easel, name)["switches"][0]["who"] for name in easel.keys}
    assert who == {"mine": "mine", "yours": None, "owner": "mine"}


def test_the_last_error_of_the_engine_comes_with_its_remedy(make_app: MakeApp) -> None:
    easel = Installation(make_app(engine__url="http://127.0.0.1:9"))
    error = wait_until(lambda: status(easel)["last_error"])
    assert error["code"] == "engine.unreachable"
    assert error["message"]
    assert error["remedy"]


def report(code: str) -> DrawingReport:
    texts = dict.fromkeys(("request_id", "key", "trace", "model", "prompt"), "x")
    return DrawingReport(
        **texts, result="failed", code=code, jobs=(), pictures=(), stages=(), message=f"about {code}"
    )


def test_a_drawing_that_the_engine_failed_is_its_last_error_and_other_failures_are_not(tmp_path: Any) -> None:
    last = LastEngineError(tmp_path / "e.json")
    last.drawing(report("image.store_full"))
    last.drawing(report(""))
    assert last.latest() is None
    last.drawing(report("engine.out_of_memory"))
    found = last.latest() or {}
    assert (found["code"], found["message"]) == ("engine.out_of_memory", "about engine.out_of_memory")


def test_what_comfyui_said_about_a_drawing_is_told_to_operators_only(make_app: MakeApp) -> None:
    easel = Installation(make_app())
    for name, scopes in (("mine", None), ("yours", None), ("owner", ["operate"])):
        easel.add(name, scopes)
    easel.container.last_engine_error.drawing(report("engine.node_failed"))
    seen = {name: status(easel, name)["last_error"] for name in easel.keys}
    assert {name: error["message"] for name, error in seen.items()} == {
        "mine": None,
        "yours": None,
        "owner": "about engine.node_failed",
    }
    assert seen["yours"]["code"] == "engine.node_failed"
    easel.container.last_engine_error.record("engine.unreachable", "no answer")
    assert status(easel, "yours")["last_error"]["message"] == "no answer"


def test_an_error_of_a_drawing_that_an_earlier_version_has_stored_is_not_told_to_all(tmp_path: Any) -> None:
    path = tmp_path / "e.json"
    path.write_text(json.dumps({"at": 1.0, "code": "engine.node_failed", "message": "a cat"}))
    assert (LastEngineError(path).latest() or {})["of_drawing"] is True


def test_an_error_that_lasts_is_written_once(tmp_path: Any) -> None:
    now = [100.0]
    last = LastEngineError(tmp_path / "e.json", clock=lambda: now[0])
    last.record("engine.unreachable", "no answer")
    now[0] = 110.0
    last.record("engine.unreachable", "no answer")
    assert (last.latest() or {})["at"] == 100.0
    last.record("engine.stalled", "no answer")
    assert (last.latest() or {})["at"] == 110.0
    (tmp_path / "e.json").write_text('{"at": "x"}')
    assert last.latest() is None


def test_a_mistake_in_the_catalogue_is_told_with_file_and_line(make_app: MakeApp, tmp_path: Any) -> None:
    folder = tmp_path / "own"
    folder.mkdir()
    (folder / "mine.yaml").write_text("models:\n  bad:\n    title: 5\n")
    easel = Installation(make_app(catalogue_dir=str(folder)))
    (fault, *_) = status(easel)["catalogue"]["own_errors"]
    assert (fault["file"].endswith("mine.yaml"), fault["line"] is not None) == (True, True)
    container: Container = easel.container
    assert container.services.catalogue_error() is None
    easel.add("phone", ["view"])
    assert status(easel, "phone")["catalogue"]["own_errors"] != []


def test_a_key_without_view_learns_no_messages_and_no_addresses(make_app: MakeApp) -> None:
    """It gets the status in the event stream, because people who draw want to know what they wait for."""
    secret = "/srv/easel http://192.0.2.7"
    easel = Installation(make_app())
    error = {"code": "engine.unreachable", "message": secret}
    document = {
        **whole_status(easel.container.services),
        "problem": error,
        "endpoint": secret,
        "switches": [{"who": "other", "error": error}],
        "catalogue": {
            "error": {**error, "file": secret, "line": 1, "column": 1},
            "own_errors": [{"message": secret}],
        },
        "settings": {"error": {**error, "file": secret, "line": 1, "column": None}},
        "last_error": {**error, "at": 1.0, "remedy": "Start it."},
        "stacks": [{"name": "chat", "url": secret, "problem": secret, "loaded": ["qwen"]}],
        "upstreams": [{"url": secret}],
        "keys": {"error": secret},
        "metrics": {"problem": secret},
    }
    document["switchover"] = {
        **document["switchover"],
        "error": secret,
        "notes": [secret],
        "phase": "loading",
    }
    block = {part: document[part] for part in ("switchover", "switches", "arbiter")}
    document["gpus"] = [{"name": "0", "engine": "left", **block}]
    seen = Audience("artist", sees_all=False, sees_messages=False).part_of(document)
    assert secret not in json.dumps(seen)
    assert seen["problem"] == {"code": "engine.unreachable", "message": None}
    assert seen["switches"] == [{"who": None, "error": {"code": "engine.unreachable", "message": None}}]
    assert seen["switchover"]["phase"] == "loading"
    (gpu,) = seen["gpus"]
    assert {part: gpu[part] for part in ("switchover", "switches")} == {
        part: seen[part] for part in ("switchover", "switches")
    }
    assert seen["stacks"] == [{"name": "chat", "url": None, "problem": None, "loaded": ["qwen"]}]
    with_view = Audience("viewer", sees_all=False).part_of(document)
    assert seen.keys() == with_view.keys()
    of_others = ("switches", "gpus")
    assert {name: with_view[name] for name in with_view if name not in of_others} == {
        name: document[name] for name in with_view if name not in of_others
    }
    assert with_view["gpus"][0]["switches"] == with_view["switches"]
