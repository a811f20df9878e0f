"""What ComfyUI has finished for a process that has died is asked for by its id, and fetched instead of drawn again."""

from __future__ import annotations

import io
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from fake_comfyui import PICTURE, FakeComfyUI
from PIL import Image

from engine import Engine, Outcome
from errors import EngineUnreachable

SAVING = {
    "source": {
        "class_type": "EmptyImage",
        "inputs": {"width": 8, "height": 8, "batch_size": 2, "color": 255},
    },
    "save": {"class_type": "SaveImage", "inputs": {"images": ["source", 0], "filename_prefix": "a"}},
}
SENDING = {**SAVING, "save": {"class_type": "SaveImageWebsocket", "inputs": {"images": ["source", 0]}}}
JOB = str(uuid.uuid4())
IMAGE = {"filename": "picture.png", "subfolder": "", "type": "output"}
SUCCESS = [
    ["execution_start", {"prompt_id": JOB, "timestamp": 1_000}],
    ["execution_success", {"prompt_id": JOB, "timestamp": 3_500}],
]


@pytest.fixture
def comfy() -> Iterator[FakeComfyUI]:
    with FakeComfyUI() as comfy:
        yield comfy


def entry(**changes: Any) -> dict[str, Any]:
    """A history entry of a job that has saved a picture."""
    status = {"status_str": "success", "completed": True, "messages": SUCCESS}
    found = {
        "prompt": [1, JOB, SAVING, {}, ["save"]],
        "outputs": {"save": {"images": [IMAGE]}},
        "status": status,
    }
    return {**found, **changes}


def ended(comfy: FakeComfyUI, found: dict[str, Any] | None, graph: Any = SAVING) -> Outcome | None:
    if found is not None:
        comfy.history[JOB] = found
    engine = Engine(comfy.url)
    try:
        return engine.ended_job(JOB, graph, "save")
    finally:
        engine.close()


def failed(kind: str, **data: Any) -> dict[str, Any]:
    messages = [["execution_start", {}], [kind, {"prompt_id": JOB, **data}]]
    return {"status_str": "error", "completed": False, "messages": messages}


def test_a_job_that_has_ended_gives_its_pictures_and_how_long_it_ran(comfy: FakeComfyUI) -> None:
    outcome = ended(comfy, entry())
    assert outcome is not None
    assert [(each.data, each.node, each.mime) for each in outcome.pictures] == [
        (PICTURE, "save", "image/png")
    ]
    assert (outcome.prompt_id, outcome.queued_s, outcome.run_s) == (JOB, 0.0, 2.5)
    assert not comfy.submitted


def test_what_comfyui_writes_into_the_nodes_that_it_got_makes_no_other_graph(comfy: FakeComfyUI) -> None:
    marked = {name: {**node, "is_changed": [1.5]} for name, node in SAVING.items()}
    assert ended(comfy, entry(prompt=[1, JOB, marked, {}, ["save"]])) is not None


@pytest.mark.parametrize(
    "found",
    [
        pytest.param(None, id="unknown, pending or running"),
        pytest.param(entry(outputs={}, status=failed("execution_error", node_id="save")), id="failed"),
        pytest.param(entry(outputs={}, status=failed("execution_interrupted")), id="interrupted"),
        pytest.param(entry(status=failed("execution_interrupted")), id="interrupted after it had saved"),
        pytest.param(entry(outputs={}), id="no pictures"),
        pytest.param(entry(outputs={"other": {"images": [IMAGE]}}), id="only pictures of another node"),
        pytest.param(
            entry(outputs={"save": {"images": [IMAGE, {**IMAGE, "filename": "gone.png"}]}}),
            id="a file is gone",
        ),
        pytest.param(entry(prompt=[1, JOB, SENDING, {}, ["save"]]), id="its pictures went with the socket"),
        pytest.param(entry(prompt=[1, JOB, {"save": SAVING["save"]}, {}, ["save"]]), id="another graph"),
        pytest.param(
            entry(
                prompt=[1, JOB, {**SAVING, "source": {**SAVING["source"], "inputs": {"width": 9}}}, {}, []]
            ),
            id="other values",
        ),
        pytest.param(entry(prompt=None), id="no graph"),
        pytest.param(entry(prompt=[1, JOB, {"source": None, "save": 1}, {}, []]), id="a graph that is none"),
    ],
)
def test_without_its_saved_pictures_there_is_nothing_to_return(comfy: FakeComfyUI, found: Any) -> None:
    assert ended(comfy, found) is None


def test_an_engine_that_does_not_answer_says_nothing_about_the_job(comfy: FakeComfyUI) -> None:
    comfy.call(comfy.crash())
    with pytest.raises(EngineUnreachable):
        ended(comfy, None)
    comfy.call(comfy.listen())


def test_another_client_gets_the_pictures_that_the_first_one_got(sketch_url: str) -> None:
    first, second = Engine(sketch_url), Engine(sketch_url)
    try:
        drawn = first.run(SAVING, prompt_id=JOB, timeout_s=60, output="save")
        found = second.ended_job(JOB, SAVING, "save")
        assert found is not None
        assert [each.data for each in found.pictures] == [each.data for each in drawn.pictures]
        assert [Image.open(io.BytesIO(each.data)).size for each in found.pictures] == [(8, 8), (8, 8)]
        assert second.ended_job(str(uuid.uuid4()), SAVING, "save") is None
        sent = str(uuid.uuid4())
        first.run(SENDING, prompt_id=sent, timeout_s=60, output="save")
        assert second.ended_job(sent, SENDING, "save") is None
    finally:
        first.close()
        second.close()
