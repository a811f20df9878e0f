"""What the Engine class promises, on the sketch engine and on a real ComfyUI."""

from __future__ import annotations

import re
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from raw_comfyui import Comfy, assert_steps, changed, flat, new_id, options, picture_of, png, sampled

from engine import Engine, Preview, Progress
from errors import (
    EngineRejected,
    JobInterrupted,
    JobLost,
    JobTimedOut,
    NodeFailed,
    RequestCancelled,
    ServerStopping,
)


def test_a_run_returns_the_picture(engine: Engine) -> None:
    prompt_id = new_id()
    outcome = engine.run(flat(colour=0x0A5AF0), prompt_id=prompt_id, timeout_s=60)
    (picture,) = outcome.pictures
    assert (outcome.prompt_id, picture.node, picture.mime) == (prompt_id, "save", "image/png")
    assert picture_of(picture.data).getpixel((5, 5)) == (0x0A, 0x5A, 0xF0)
    assert min(outcome.queued_s, outcome.run_s, outcome.fetch_s) >= 0


def test_pictures_of_preview_image_are_returned_too(engine: Engine) -> None:
    (picture,) = engine.run(flat(output="PreviewImage"), prompt_id=new_id(), timeout_s=60).pictures
    assert picture_of(picture.data).size == (64, 64)


def test_pictures_of_save_image_websocket_are_returned_too(engine: Engine) -> None:
    if not engine.signatures(["SaveImageWebsocket"]):
        pytest.skip("this engine has no SaveImageWebsocket")
    events: list[object] = []
    graph = flat(output="SaveImageWebsocket", batch=3, colour=0x112233)
    pictures = engine.run(graph, prompt_id=new_id(), timeout_s=60, on_progress=events.append).pictures
    assert [picture_of(picture.data).getpixel((0, 0)) for picture in pictures] == [(0x11, 0x22, 0x33)] * 3
    assert events == []


def test_pictures_are_in_the_order_of_the_graph_then_of_the_batch(engine: Engine) -> None:
    graph = _two_colours()
    pictures = engine.run(graph, prompt_id=new_id(), timeout_s=60).pictures
    shades = [picture_of(picture.data).getpixel((0, 0)) for picture in pictures]
    assert shades == [(255, 0, 0), (0, 255, 0), (0, 255, 0)]


def test_only_the_pictures_of_the_wanted_node_are_returned(engine: Engine) -> None:
    for node, colour in (("save_green", (0, 255, 0)), ("save_red", (255, 0, 0))):
        pictures = engine.run(_two_colours(), prompt_id=new_id(), timeout_s=60, output=node).pictures
        assert {picture.node for picture in pictures} == {node}
        assert {picture_of(picture.data).getpixel((0, 0)) for picture in pictures} == {colour}
    preview = {
        **flat(colour=0xFF0000),
        "preview": {"class_type": "PreviewImage", "inputs": {"images": ["source", 0]}},
    }
    (picture,) = engine.run(preview, prompt_id=new_id(), timeout_s=60, output="preview").pictures
    assert picture.node == "preview"


def test_an_invalid_output_beside_the_wanted_one_does_not_matter(engine: Engine) -> None:
    other = changed(flat(size=0), "save", images=["other", 0])
    graph = {**flat(), "other": other["source"], "other_save": other["save"]}
    (picture,) = engine.run(graph, prompt_id=new_id(), timeout_s=60, output="save").pictures
    assert picture.node == "save"
    with pytest.raises(EngineRejected):
        engine.run(graph, prompt_id=new_id(), timeout_s=60, output="other_save")


def _two_colours() -> dict[str, Any]:
    """Two output nodes: the pictures follow the order of the graph, not the order in which the engine runs the
    nodes."""
    red, green = flat(colour=0xFF0000), flat(colour=0x00FF00, batch=2)
    return {
        "save_red": changed(red, "save", images=["red", 0])["save"],
        "save_green": changed(green, "save", images=["green", 0])["save"],
        "green": green["source"],
        "red": red["source"],
    }


def test_each_step_is_reported_once_and_previews_are_jpegs(
    engine: Engine, checkpoint: str, is_newer: bool
) -> None:
    events: list[Progress | Preview] = []
    prompt_id = new_id()
    engine.run(sampled(checkpoint, steps=3), prompt_id=prompt_id, timeout_s=120, on_progress=events.append)
    steps = [item for item in events if isinstance(item, Progress)]
    assert len(set(steps)) == len(steps)
    assert_steps(steps, [Progress(prompt_id, "sampler", value, 3) for value in (1, 2, 3)], is_newer)
    for preview in (item for item in events if isinstance(item, Preview)):
        assert (preview.prompt_id, preview.node, preview.mime) == (prompt_id, "sampler", "image/jpeg")
        assert picture_of(preview.data).format == "JPEG"


def test_a_repeated_graph_reports_the_cached_nodes(engine: Engine) -> None:
    graph = flat()
    first = engine.run(graph, prompt_id=new_id(), timeout_s=60)
    again = engine.run(graph, prompt_id=new_id(), timeout_s=60)
    assert sorted(again.cached_nodes) == ["save", "source"]
    assert again.pictures == first.pictures


def test_a_failing_node_is_named_without_traceback_or_paths(engine: Engine) -> None:
    graph = changed(flat(), "save", filename_prefix="../../../outside")
    with pytest.raises(NodeFailed) as caught:
        engine.run(graph, prompt_id=new_id(), timeout_s=60)
    details = caught.value.details
    assert (details["node"], details["class_type"], details["exception_type"]) == (
        "save",
        "SaveImage",
        "Exception",
    )
    assert "outside the output folder" in details["exception_message"]
    for text in (caught.value.message, *map(str, details.values())):
        assert "Traceback" not in text
        assert not re.search(r"(?<![\w.])/\w", text)


def test_a_rejected_graph_reports_node_class_input_type_and_message(engine: Engine, checkpoint: str) -> None:
    graph = changed(sampled(checkpoint), "sampler", steps=0, cfg=1000.0)
    with pytest.raises(EngineRejected) as caught:
        engine.run(graph, prompt_id=new_id(), timeout_s=60)
    errors = {error["input"]: error for error in caught.value.details["errors"]}
    assert errors["steps"] == {
        "node": "sampler",
        "class_type": "KSampler",
        "input": "steps",
        "type": "value_smaller_than_min",
        "message": "Value 0 smaller than min of 1",
    }
    assert errors["cfg"]["type"] == "value_bigger_than_max"


def test_an_unknown_file_of_weights_raises_engine_rejected(engine: Engine) -> None:
    with pytest.raises(EngineRejected) as caught:
        engine.run(sampled("absent.safetensors"), prompt_id=new_id(), timeout_s=60)
    (error,) = caught.value.details["errors"]
    assert (error["node"], error["input"], error["type"]) == ("checkpoint", "ckpt_name", "value_not_in_list")


def test_an_unknown_node_raises_engine_rejected(engine: Engine, is_newer: bool) -> None:
    graph = {**flat(), "odd": {"class_type": "NoSuchNode", "inputs": {}}}
    with pytest.raises(EngineRejected, match="NoSuchNode") as caught:
        engine.run(graph, prompt_id=new_id(), timeout_s=60)
    (error,) = caught.value.details["errors"]
    kind = "missing_node_type" if is_newer else "invalid_prompt"
    assert (error["node"], error["class_type"], error["type"]) == ("odd", "NoSuchNode", kind)


def test_a_graph_with_one_invalid_output_raises_engine_rejected_and_does_not_run(
    engine: Engine, comfy: Comfy
) -> None:
    prompt_id = new_id()
    graph = {**flat(), "invalid": {"class_type": "SaveImage", "inputs": {"images": ["source", 0]}}}
    with pytest.raises(EngineRejected) as caught:
        engine.run(graph, prompt_id=prompt_id, timeout_s=60)
    assert caught.value.details["errors"][0]["node"] == "invalid"
    assert prompt_id not in (*comfy.running(), *comfy.pending())


@pytest.mark.parametrize(
    "node", [{"class_type": "EmptyImage"}, {"class_type": "EmptyImage", "inputs": "no"}, "text"]
)
def test_a_node_that_would_kill_the_engines_worker_is_not_sent(engine: Engine, node: Any) -> None:
    with pytest.raises(EngineRejected, match="inputs"):
        engine.run({**flat(), "no_inputs": node}, prompt_id=new_id(), timeout_s=60)
    assert engine.run(flat(), prompt_id=new_id(), timeout_s=60).pictures


def test_a_running_job_is_cancelled_when_the_caller_cancels(
    engine: Engine, comfy: Comfy, endless: dict[str, Any]
) -> None:
    stepped = threading.Event()
    prompt_id = new_id()
    with pytest.raises(RequestCancelled):
        engine.run(
            endless,
            prompt_id=prompt_id,
            timeout_s=120,
            on_progress=lambda _: stepped.set(),
            cancelled=stepped.is_set,
        )
    comfy.wait_until(lambda: prompt_id not in comfy.running())


def test_a_pending_job_is_cancelled_when_the_caller_cancels(
    engine: Engine, comfy: Comfy, endless: dict[str, Any]
) -> None:
    prompt_id = new_id()
    with comfy.running_job(endless) as running_id:
        with pytest.raises(RequestCancelled):
            engine.run(
                flat(), prompt_id=prompt_id, timeout_s=120, cancelled=lambda: prompt_id in comfy.pending()
            )
        assert prompt_id not in comfy.pending()
        assert comfy.running() == [running_id]


def test_a_job_that_times_out_is_cancelled(engine: Engine, comfy: Comfy, endless: dict[str, Any]) -> None:
    prompt_id = new_id()
    with pytest.raises(JobTimedOut, match="was running"):
        engine.run(endless, prompt_id=prompt_id, timeout_s=1.0)
    comfy.wait_until(lambda: prompt_id not in comfy.running())


def test_cancel_stops_a_job_of_this_process(engine: Engine, comfy: Comfy, endless: dict[str, Any]) -> None:
    prompt_id = new_id()
    with ThreadPoolExecutor() as pool:
        running = pool.submit(engine.run, endless, prompt_id=prompt_id, timeout_s=120)
        comfy.wait_until(lambda: prompt_id in comfy.running())
        engine.cancel(prompt_id)
        with pytest.raises(RequestCancelled):
            running.result()
    comfy.wait_until(lambda: prompt_id not in comfy.running())


def test_cancel_stops_a_job_of_another_process(engine: Engine, comfy: Comfy, endless: dict[str, Any]) -> None:
    with comfy.running_job(endless) as running:
        pending = comfy.submit_ok(flat())
        engine.cancel(pending)
        assert pending not in comfy.pending()
        engine.cancel(running)
        assert running not in comfy.running()
        engine.cancel(new_id())


def test_cancel_all_cancels_every_job_with_the_given_reason(
    engine: Engine, comfy: Comfy, endless: dict[str, Any]
) -> None:
    ids = [new_id(), new_id(), new_id()]
    with ThreadPoolExecutor() as pool:
        jobs = [pool.submit(engine.run, endless, prompt_id=prompt_id, timeout_s=120) for prompt_id in ids]
        comfy.wait_until(lambda: set(ids) <= {*comfy.running(), *comfy.pending()})
        engine.cancel_all(ServerStopping("The server is stopping."))
        for job in jobs:
            with pytest.raises(ServerStopping):
                job.result()
    comfy.wait_until(lambda: not set(ids) & {*comfy.running(), *comfy.pending()})


def test_a_job_that_another_client_interrupts_raises_job_interrupted(
    engine: Engine, comfy: Comfy, endless: dict[str, Any]
) -> None:
    prompt_id = new_id()

    def interrupt(_: object) -> None:
        comfy.post("/interrupt", {"prompt_id": prompt_id})

    with pytest.raises(JobInterrupted):
        engine.run(endless, prompt_id=prompt_id, timeout_s=120, on_progress=interrupt)


def test_a_job_that_another_client_deletes_raises_job_lost(
    engine_url: str, comfy: Comfy, endless: dict[str, Any]
) -> None:
    engine, prompt_id = Engine(engine_url, poll_interval_s=0.2), new_id()
    with comfy.running_job(endless), ThreadPoolExecutor() as pool:
        job = pool.submit(engine.run, flat(), prompt_id=prompt_id, timeout_s=120)
        comfy.wait_until(lambda: prompt_id in comfy.pending())
        comfy.post("/queue", {"delete": [prompt_id]})
        with pytest.raises(JobLost):
            job.result()
    engine.close()


def test_a_job_is_cancelled_when_its_progress_callback_raises(
    engine: Engine, comfy: Comfy, endless: dict[str, Any]
) -> None:
    def fail(_: object) -> None:
        raise LookupError("from the callback")

    prompt_id = new_id()
    with pytest.raises(LookupError, match="from the callback"):
        engine.run(endless, prompt_id=prompt_id, timeout_s=120, on_progress=fail)
    comfy.wait_until(lambda: prompt_id not in comfy.running())


def test_eight_threads_each_get_their_own_pictures(engine: Engine) -> None:
    def colour_of(colour: int) -> tuple[int, ...]:
        (picture,) = engine.run(flat(colour=colour), prompt_id=new_id(), timeout_s=120).pictures
        return picture_of(picture.data).getpixel((1, 1))

    colours = [uuid.uuid4().int % 2**24 for _ in range(48)]
    with ThreadPoolExecutor(8) as pool:
        actual = list(pool.map(colour_of, colours))
    assert actual == [(colour >> 16, colour >> 8 & 255, colour & 255) for colour in colours]


def test_the_queue_lists_the_running_job_and_the_pending_ones_in_their_order(
    engine: Engine, comfy: Comfy, endless: dict[str, Any]
) -> None:
    with comfy.running_job(endless) as running:
        waiting = [comfy.submit_ok(flat()) for _ in range(5)]
        queue = engine.queue()
        for prompt_id in waiting:
            comfy.cancel(prompt_id)
    assert queue.running == (running,)
    assert [prompt_id for prompt_id in queue.pending if prompt_id in waiting] == waiting


def picture_of_upload(engine: Engine, name: str) -> Any:
    """The picture that LoadImage loads for an upload."""
    graph = flat() | {"source": {"class_type": "LoadImage", "inputs": {"image": name}}}
    (picture,) = engine.run(graph, prompt_id=new_id(), timeout_s=60).pictures
    return picture_of(picture.data).convert("RGB")


def test_an_uploaded_image_can_be_loaded_by_the_returned_name(engine: Engine) -> None:
    name = engine.upload(png(24, 16, (10, 200, 30)), f"{uuid.uuid4().hex}.png")
    assert name.startswith("easel/")
    assert picture_of_upload(engine, name).getpixel((3, 3)) == (10, 200, 30)


def test_an_upload_replaces_one_of_the_same_name(engine: Engine) -> None:
    file_name = f"{uuid.uuid4().hex}.png"
    names = [engine.upload(png(colour=(0, 0, blue)), file_name) for blue in (8, 9)]
    assert names[0] == names[1]
    assert picture_of_upload(engine, names[0]).getpixel((0, 0)) == (0, 0, 9)


def test_an_erased_upload_is_one_pixel(engine: Engine) -> None:
    file_name = f"{uuid.uuid4().hex}.png"
    name = engine.upload(png(24, 16, (10, 200, 30)), file_name)
    engine.erase_uploads([file_name])
    assert picture_of_upload(engine, name).size == (1, 1)


def test_free_returns_in_time_and_the_engine_still_runs_jobs(engine: Engine) -> None:
    started_at = time.monotonic()
    engine.free()
    assert time.monotonic() - started_at < 20
    assert engine.run(flat(), prompt_id=new_id(), timeout_s=60).pictures


def test_stats_has_version_and_memory(engine: Engine, comfy: Comfy) -> None:
    stats = engine.stats()
    system = comfy.get("/system_stats").json()["system"]
    assert stats.version == system["comfyui_version"]
    assert stats.is_sketch == (system.get("easel_sketch") is True)
    assert stats.ram_total is not None
    assert stats.ram_total > 0
    assert stats.device


def test_signatures_are_raw_entries_of_the_classes_that_the_engine_has(engine: Engine, comfy: Comfy) -> None:
    entries = engine.signatures(["KSampler", "NoSuchNode", "CheckpointLoaderSimple"])
    assert set(entries) == {"KSampler", "CheckpointLoaderSimple"}
    assert entries["KSampler"] == comfy.get("/object_info/KSampler").json()["KSampler"]
    assert options(
        engine.signatures(["CheckpointLoaderSimple"], fresh=True)["CheckpointLoaderSimple"], "ckpt_name"
    )
