"""What Easel relies on in ComfyUI's HTTP and WebSocket. True of 0.3.64, 0.8.0, 0.33.0 and the sketch engine. Where they
differ, a test names both answers."""

from __future__ import annotations

import uuid
from typing import Any

import pytest
from raw_comfyui import (
    Comfy,
    Socket,
    assert_steps,
    changed,
    data_of,
    flat,
    kinds,
    new_id,
    picture_of,
    png,
    sampled,
)

SERVER_ERROR_TEXT = "500 Internal Server Error\n\nServer got itself in trouble"


def _errors(response: Any, node: str) -> list[dict[str, Any]]:
    return response.json()["node_errors"][node]["errors"]


# --- POST /prompt: what is refused ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body", ["", '{"prompt":', "null", '{"prompt": null}', '{"prompt": "abc"}', '{"prompt": ["a"]}']
)
def test_a_body_that_is_not_a_request_gives_a_500_in_plain_text(comfy: Comfy, body: str) -> None:
    response = comfy.post("/prompt", data=body, headers={"Content-Type": "application/json"})
    assert response.status_code == 500
    assert response.headers["Content-Type"].startswith("text/plain")
    assert response.text == SERVER_ERROR_TEXT


@pytest.mark.parametrize("body", [[], "text", {}, {"client_id": "x"}])
def test_a_body_without_a_prompt_gives_a_no_prompt_error(comfy: Comfy, body: Any) -> None:
    response = comfy.post("/prompt", body)
    assert response.status_code == 400
    assert response.json() == {
        "error": {
            "type": "no_prompt",
            "message": "No prompt provided",
            "details": "No prompt provided",
            "extra_info": {},
        },
        "node_errors": {},
    }


@pytest.mark.parametrize("graph", [{}, [], {"source": flat()["source"]}])
def test_a_graph_without_an_output_node_is_refused(comfy: Comfy, graph: Any, is_newer: bool) -> None:
    response = comfy.submit(graph)
    if is_newer and isinstance(graph, list):
        assert response.status_code == 500
        return
    assert response.status_code == 400
    assert response.json()["error"]["type"] == "prompt_no_outputs"
    assert response.json()["error"]["message"] == "Prompt has no outputs"


NO_CLASS = "Cannot execute because a node is missing the class_type property."


@pytest.mark.parametrize(
    ("node", "older", "newer"),
    [
        (
            {"class_type": "NoSuchNode", "inputs": {}},
            "Cannot execute because node NoSuchNode does not exist.",
            "Node 'NoSuchNode' not found. The custom node may not be installed.",
        ),
        (
            {"inputs": {}},
            NO_CLASS,
            "Node 'ID #odd' has no class_type. The workflow may be corrupted or a custom node is missing.",
        ),
    ],
)
def test_a_node_of_an_unknown_class_is_named_in_the_details(
    comfy: Comfy, node: Any, older: str, newer: str, is_newer: bool
) -> None:
    response = comfy.submit({**flat(), "odd": node})
    assert response.status_code == 400
    error = response.json()["error"]
    kind, message = ("missing_node_type", newer) if is_newer else ("invalid_prompt", older)
    assert (error["type"], error["message"], error["details"]) == (kind, message, "Node ID '#odd'")
    assert response.json()["node_errors"] == {}


def test_a_node_that_is_no_object_is_refused(comfy: Comfy, is_newer: bool) -> None:
    response = comfy.submit({**flat(), "odd": "text"})
    if is_newer:
        assert response.status_code == 500
        return
    assert response.status_code == 400
    assert response.json()["error"]["message"] == NO_CLASS


SAVE = flat(colour=1)
REFUSED: dict[str, tuple[str, dict[str, Any], str, str, str]] = {
    # case: (node, inputs, type, message, details)
    "missing input": (
        "save",
        {"images": ...},
        "required_input_missing",
        "Required input is missing",
        "images",
    ),
    "below the minimum": (
        "source",
        {"width": 0},
        "value_smaller_than_min",
        "Value 0 smaller than min of 1",
        "width",
    ),
    "above the maximum": (
        "source",
        {"batch_size": 4097},
        "value_bigger_than_max",
        "Value 4097 bigger than max of 4096",
        "batch_size",
    ),
    "text for INT": (
        "source",
        {"width": "abc"},
        "invalid_input_type",
        "Failed to convert an input value to a INT value",
        "width, abc, invalid literal for int() with base 10: 'abc'",
    ),
    "null for INT": (
        "source",
        {"width": None},
        "invalid_input_type",
        "Failed to convert an input value to a INT value",
        "width, None, int() argument must be a string, a bytes-like object or a real number, not 'NoneType'",
    ),
    "link of three": (
        "save",
        {"images": ["source", 0, 0]},
        "bad_linked_input",
        "Bad linked input, must be a length-2 list of [node_id, slot_index]",
        "images",
    ),
    "link to nothing": (
        "save",
        {"images": ["99", 0]},
        "exception_during_validation",
        "Exception when validating node",
        "'99'",
    ),
    "output index too big": (
        "save",
        {"images": ["source", 7]},
        "exception_during_validation",
        "Exception when validating node",
        "tuple index out of range",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_an_invalid_node_is_refused_with_type_message_and_details(comfy: Comfy, case: str) -> None:
    node, inputs, kind, message, details = REFUSED[case]
    response = comfy.submit(changed(SAVE, node, **inputs))
    assert response.status_code == 400
    assert response.json()["error"]["type"] == "prompt_outputs_failed_validation"
    assert response.json()["error"]["message"] == "Prompt outputs failed validation"
    error = _errors(response, node)[0]
    assert (error["type"], error["message"], error["details"]) == (kind, message, details)
    entry = response.json()["node_errors"][node]
    assert entry["class_type"] == SAVE[node]["class_type"]
    assert entry["dependent_outputs"] == ["save"]


@pytest.mark.parametrize(
    ("inputs", "kind", "message", "details"),
    [
        ({"steps": 0}, "value_smaller_than_min", "Value 0 smaller than min of 1", "steps"),
        ({"cfg": 101.0}, "value_bigger_than_max", "Value 101.0 bigger than max of 100.0", "cfg"),
        ({"seed": -1}, "value_smaller_than_min", "Value -1 smaller than min of 0", "seed"),
        (
            {"seed": 2**64},
            "value_bigger_than_max",
            "Value 18446744073709551616 bigger than max of 18446744073709551615",
            "seed",
        ),
        (
            {"latent_image": ["checkpoint", 0]},
            "return_type_mismatch",
            "Return type mismatch between linked nodes",
            "latent_image, received_type(MODEL) mismatch input_type(LATENT)",
        ),
    ],
)
def test_a_sampler_is_checked_for_range_and_type(
    comfy: Comfy, checkpoint: str, inputs: dict[str, Any], kind: str, message: str, details: str
) -> None:
    response = comfy.submit(changed(sampled(checkpoint), "sampler", **inputs))
    assert response.status_code == 400
    error = _errors(response, "sampler")[0]
    assert (error["type"], error["message"], error["details"]) == (kind, message, details)
    assert error["extra_info"]["input_name"] == next(iter(inputs))


def test_a_missing_file_of_weights_gives_a_value_not_in_list_error(comfy: Comfy) -> None:
    error = _errors(comfy.submit(sampled("absent.safetensors")), "checkpoint")[0]
    assert error["type"] == "value_not_in_list"
    assert error["message"] == "Value not in list"
    assert error["details"].startswith("ckpt_name: 'absent.safetensors' not in ")
    assert error["extra_info"]["received_value"] == "absent.safetensors"


def test_a_long_list_of_choices_is_reported_by_its_length(comfy: Comfy, checkpoint: str) -> None:
    error = _errors(comfy.submit(changed(sampled(checkpoint), "sampler", sampler_name="nope")), "sampler")[0]
    assert error["type"] == "value_not_in_list"
    assert error["details"].startswith("sampler_name: 'nope' not in (list of length ")
    assert error["extra_info"]["input_config"] is None


def test_every_error_of_a_node_is_listed(comfy: Comfy, checkpoint: str) -> None:
    response = comfy.submit(changed(sampled(checkpoint), "sampler", cfg=1000.0, steps=0))
    types = {error["extra_info"]["input_name"]: error["type"] for error in _errors(response, "sampler")}
    assert types == {"cfg": "value_bigger_than_max", "steps": "value_smaller_than_min"}


def test_an_image_that_was_never_uploaded_is_refused(comfy: Comfy) -> None:
    graph = flat()
    graph["source"] = {"class_type": "LoadImage", "inputs": {"image": "absent.png"}}
    error = _errors(comfy.submit(graph), "source")[0]
    assert error["type"] == "custom_validation_failed"
    assert error["message"] == "Custom validation failed for node"
    assert error["details"] == "image - Invalid image file: absent.png"


def test_a_linked_node_without_inputs_is_refused(comfy: Comfy) -> None:
    graph = flat()
    del graph["source"]["inputs"]
    error = _errors(comfy.submit(graph), "source")[0]
    assert (error["type"], error["details"]) == ("exception_during_inner_validation", "'inputs'")


def test_a_cycle_is_refused_and_newer_engines_name_its_nodes(comfy: Comfy, is_newer: bool) -> None:
    scaled = {"upscale_method": "nearest-exact", "width": 8, "height": 8, "crop": "disabled"}
    graph = {
        "a": {"class_type": "ImageScale", "inputs": {"image": ["b", 0], **scaled}},
        "b": {"class_type": "ImageScale", "inputs": {"image": ["a", 0], **scaled}},
        "save": {"class_type": "PreviewImage", "inputs": {"images": ["a", 0]}},
    }
    response = comfy.submit(graph)
    assert response.status_code == 400
    assert response.json()["error"]["type"] == "prompt_outputs_failed_validation"
    if not is_newer:
        assert response.json()["node_errors"] == {}
        return
    for node in response.json()["node_errors"]:
        (error,) = _errors(response, node)
        assert "a (ImageScale)" in error["details"]
        assert set(error["extra_info"]["cycle_nodes"]) == {"a", "b"}


def test_a_foreign_origin_gives_a_403(comfy: Comfy) -> None:
    body = {"prompt": flat(), "client_id": "x"}
    response = comfy.post("/prompt", body, headers={"Origin": "http://elsewhere.example"})
    assert response.status_code == 403


# --- POST /prompt: what is accepted ---------------------------------------------------------------------------


def test_a_prompt_id_sent_by_the_client_is_kept(comfy: Comfy) -> None:
    prompt_id = new_id()
    response = comfy.submit(flat(), prompt_id=prompt_id).json()
    assert response["prompt_id"] == prompt_id
    assert response["node_errors"] == {}
    assert isinstance(response["number"], int)
    assert comfy.wait_for_history(prompt_id)["status"]["status_str"] == "success"


def test_a_prompt_id_is_generated_if_none_is_sent(comfy: Comfy) -> None:
    prompt_id = comfy.submit_ok(flat())
    assert str(uuid.UUID(prompt_id)) == prompt_id
    comfy.wait_for_history(prompt_id)


@pytest.mark.parametrize("width", ["64", 64.9, 64])
def test_text_and_floats_are_converted_to_an_int_input(comfy: Comfy, width: Any) -> None:
    entry = comfy.wait_for_history(comfy.submit_ok(changed(flat(), "source", width=width)))
    assert _first_picture(comfy, entry).size == (64, 64)


def test_an_input_that_the_node_does_not_have_is_ignored(comfy: Comfy) -> None:
    entry = comfy.wait_for_history(comfy.submit_ok(changed(flat(), "source", nonsense=1)))
    assert entry["status"]["status_str"] == "success"


def test_any_content_type_is_accepted(comfy: Comfy) -> None:
    import json

    body = json.dumps({"prompt": flat(), "client_id": "x"})
    assert comfy.post("/prompt", data=body, headers={"Content-Type": "text/plain"}).status_code == 200


def test_an_output_that_is_not_valid_is_dropped_while_the_others_run(comfy: Comfy) -> None:
    graph = flat()
    graph["invalid"] = {"class_type": "SaveImage", "inputs": {"images": ["source", 0]}}
    response = comfy.submit(graph)
    assert response.status_code == 200
    assert _errors(response, "invalid")[0]["type"] == "required_input_missing"
    entry = comfy.wait_for_history(response.json()["prompt_id"])
    assert set(entry["outputs"]) == {"save"}
    assert entry["prompt"][4] == ["save"]


def _first_picture(comfy: Comfy, entry: dict[str, Any]) -> Any:
    return picture_of(comfy.get("/view", params=entry["outputs"]["save"]["images"][0]).content)


# --- history -------------------------------------------------------------------------------------------------


def test_history_of_a_success_has_graph_outputs_and_messages(comfy: Comfy) -> None:
    graph = flat(batch=2)
    prompt_id = comfy.submit_ok(graph, client_id="easel-contract")
    entry = comfy.wait_for_history(prompt_id)
    _, entry_id, entry_graph, extra, outputs = entry["prompt"]
    assert (entry_id, entry_graph, outputs) == (prompt_id, graph, ["save"])
    assert extra["client_id"] == "easel-contract"
    assert entry["status"]["status_str"] == "success"
    assert entry["status"]["completed"] is True
    assert [kind for kind, _ in entry["status"]["messages"]] == [
        "execution_start",
        "execution_cached",
        "execution_success",
    ]
    images = entry["outputs"]["save"]["images"]
    assert [image["type"] for image in images] == ["output", "output"]
    assert [image["subfolder"] for image in images] == ["easel-contract"] * 2
    prefix = graph["save"]["inputs"]["filename_prefix"].split("/")[1]
    assert [image["filename"] for image in images] == [f"{prefix}_00001_.png", f"{prefix}_00002_.png"]


def test_history_has_no_entry_for_an_unknown_a_pending_or_a_running_job(
    comfy: Comfy, endless: dict[str, Any]
) -> None:
    with comfy.running_job(endless) as running:
        pending = comfy.submit_ok(flat())
        responses = [comfy.get(f"/history/{prompt_id}") for prompt_id in (running, pending, new_id())]
        comfy.cancel(pending)
    assert [(response.status_code, response.json()) for response in responses] == [(200, {})] * 3


def test_history_of_a_failure_has_node_class_exception_and_traceback(comfy: Comfy) -> None:
    entry = comfy.wait_for_history(comfy.submit_ok(changed(flat(), "save", images="no link")))
    assert entry["status"]["status_str"] == "error"
    assert entry["status"]["completed"] is False
    kind, data = entry["status"]["messages"][-1]
    assert kind == "execution_error"
    assert (data["node_id"], data["node_type"]) == ("save", "SaveImage")
    assert data["exception_type"] == "AttributeError"
    assert data["exception_message"].strip() == "'str' object has no attribute 'shape'"
    assert isinstance(data["traceback"], list)


def test_history_can_be_deleted(comfy: Comfy) -> None:
    prompt_id = comfy.submit_ok(flat())
    comfy.wait_for_history(prompt_id)
    assert comfy.post("/history", {"delete": [prompt_id, "unknown"]}).status_code == 200
    assert comfy.entry(prompt_id) is None


# --- queue and interrupt --------------------------------------------------------------------------------------


def test_the_queue_lists_number_id_graph_extra_data_and_outputs(
    comfy: Comfy, endless: dict[str, Any]
) -> None:
    graph = flat()
    with comfy.running_job(endless) as running:
        pending = comfy.submit_ok(graph)
        queue, remaining = (
            comfy.get("/queue").json(),
            comfy.get("/prompt").json()["exec_info"]["queue_remaining"],
        )
        comfy.cancel(pending)
    (first,) = [entry for entry in queue["queue_running"] if entry[1] == running]
    (second,) = [entry for entry in queue["queue_pending"] if entry[1] == pending]
    assert (first[2], second[2]) == (endless, graph)
    assert second[3]["client_id"] == "easel-contract"
    assert second[4] == ["save"]
    assert second[0] > first[0]
    assert remaining >= 2


def test_a_job_deleted_from_the_queue_has_no_history(comfy: Comfy, endless: dict[str, Any]) -> None:
    with comfy.running_job(endless):
        pending = comfy.submit_ok(flat())
        assert comfy.post("/queue", {"delete": [pending]}).status_code == 200
        assert pending not in comfy.pending()
    comfy.wait_for_history(comfy.submit_ok(flat()))
    assert comfy.entry(pending) is None


def test_deleting_from_the_queue_does_not_affect_the_running_job(
    comfy: Comfy, endless: dict[str, Any]
) -> None:
    with comfy.running_job(endless) as running:
        assert comfy.post("/queue", {"delete": [running, "unknown"]}).status_code == 200
        assert comfy.running() == [running]


def test_an_interrupt_by_id_stops_that_job_only(comfy: Comfy, endless: dict[str, Any]) -> None:
    with comfy.running_job(endless) as running:
        assert comfy.post("/interrupt", {"prompt_id": new_id()}).status_code == 200
        assert comfy.running() == [running]
    entry = comfy.wait_for_history(running)
    assert entry["status"]["status_str"] == "error"
    kind, data = entry["status"]["messages"][-1]
    assert kind == "execution_interrupted"
    assert {"node_id", "node_type", "executed", "prompt_id"} <= set(data)


def test_an_interrupt_while_nothing_runs_does_not_stop_the_next_job(comfy: Comfy) -> None:
    assert comfy.post("/interrupt", {}).status_code == 200
    assert comfy.wait_for_history(comfy.submit_ok(flat()))["status"]["status_str"] == "success"


@pytest.mark.parametrize("path", ["/queue", "/history", "/free"])
def test_a_body_that_is_not_json_gives_a_500(comfy: Comfy, path: str) -> None:
    assert comfy.post(path, data="{").status_code == 500


def test_newer_engines_cancel_a_job_by_its_id_whether_it_is_pending_running_or_gone(
    comfy: Comfy, endless: dict[str, Any], is_newer: bool
) -> None:
    if not is_newer:
        assert comfy.post(f"/api/jobs/{new_id()}/cancel").status_code in (404, 405)
        return
    with comfy.running_job(endless) as running:
        pending = comfy.submit_ok(flat())
        answers = [comfy.post(f"/api/jobs/{job}/cancel").json() for job in (pending, running, new_id())]
        assert answers == [{"cancelled": True}, {"cancelled": True}, {"cancelled": False}]
        comfy.wait_until(lambda: not {pending, running} & {*comfy.running(), *comfy.pending()})


# --- events ---------------------------------------------------------------------------------------------------


def test_the_first_message_is_the_status_with_the_client_id(engine_url: str) -> None:
    with Socket(engine_url) as socket:
        assert socket.first_message["type"] == "status"
        assert socket.first_message["data"]["sid"] == socket.client_id
        assert "queue_remaining" in socket.first_message["data"]["status"]["exec_info"]


def test_a_success_sends_events_in_this_order(comfy: Comfy, engine_url: str) -> None:
    with Socket(engine_url) as socket:
        prompt_id = comfy.submit_ok(flat(), client_id=socket.client_id)
        messages = socket.read_job(prompt_id)
    assert kinds(messages) == [
        "execution_start",
        "execution_cached",
        "executing",
        "executing",
        "executed",
        "execution_success",
        "executing",
    ]
    assert [data["node"] for data in data_of(messages, "executing")] == ["source", "save", None]
    assert all(
        message["data"].get("prompt_id") == prompt_id for message in messages if message["type"] != "status"
    )
    (executed,) = data_of(messages, "executed")
    assert executed["node"] == executed["display_node"] == "save"
    assert executed["output"]["images"] == comfy.wait_for_history(prompt_id)["outputs"]["save"]["images"]
    assert data_of(messages, "execution_cached")[0]["nodes"] == []


def test_each_step_of_a_sampler_sends_progress(
    comfy: Comfy, engine_url: str, checkpoint: str, is_newer: bool
) -> None:
    with Socket(engine_url) as socket:
        messages = socket.read_job(comfy.submit_ok(sampled(checkpoint, steps=3), client_id=socket.client_id))
    steps = [(data["node"], data["value"], data["max"]) for data in data_of(messages, "progress")]
    assert_steps(steps, [("sampler", 1, 3), ("sampler", 2, 3), ("sampler", 3, 3)], is_newer)


def test_a_failure_sends_an_error_and_no_success(comfy: Comfy, engine_url: str) -> None:
    with Socket(engine_url) as socket:
        graph = changed(flat(), "save", images="no link")
        messages = socket.read_job(comfy.submit_ok(graph, client_id=socket.client_id))
    assert kinds(messages)[-2:] == ["execution_error", "executing"]
    assert "execution_success" not in kinds(messages)
    (error,) = data_of(messages, "execution_error")
    assert (error["node_id"], error["node_type"], error["exception_type"]) == (
        "save",
        "SaveImage",
        "AttributeError",
    )


def test_an_interruption_sends_an_event(comfy: Comfy, engine_url: str, endless: dict[str, Any]) -> None:
    with Socket(engine_url) as socket:
        with comfy.running_job(endless, client_id=socket.client_id) as prompt_id:
            socket.read_until("progress")
        messages = socket.read_job(prompt_id)
    assert kinds(messages)[-2:] == ["execution_interrupted", "executing"]
    (interrupted,) = data_of(messages, "execution_interrupted")
    assert (interrupted["node_id"], interrupted["node_type"]) == ("sampler", "KSampler")


def test_events_go_to_the_socket_of_their_client_only(comfy: Comfy, engine_url: str) -> None:
    with Socket(engine_url) as first, Socket(engine_url) as second:
        first.read_job(comfy.submit_ok(flat(), client_id=first.client_id))
        messages = second.read_job(comfy.submit_ok(flat(), client_id=second.client_id))
    assert kinds(messages).count("execution_start") == 1


PREVIEWS_FIXED_AT_START = "whether this engine sends previews depends on its command line (--preview-method)"


def _messages_with_previews(comfy: Comfy, socket: Socket, checkpoint: str, method: str) -> list[Any]:
    fields = {"client_id": socket.client_id, "extra_data": {"preview_method": method}}
    return socket.read_job(comfy.submit_ok(sampled(checkpoint, steps=2), **fields))


def test_previews_have_ids_if_the_first_message_asks_for_them(
    comfy: Comfy, engine_url: str, checkpoint: str
) -> None:
    with Socket(engine_url, feature_flags=True) as socket:
        assert socket.flags_response["type"] == "feature_flags"
        assert socket.flags_response["data"]["supports_preview_metadata"] is True
        messages = _messages_with_previews(comfy, socket, checkpoint, "latent2rgb")
    frames = [message for message in messages if isinstance(message, bytes)]
    prompt_id = data_of(messages, "execution_start")[0]["prompt_id"]
    if not frames:
        pytest.skip(PREVIEWS_FIXED_AT_START)
    for frame in frames:
        length = int.from_bytes(frame[4:8], "big")
        assert int.from_bytes(frame[:4], "big") == 4
        assert f'"prompt_id": "{prompt_id}"'.encode() in frame[8 : 8 + length]
        assert picture_of(frame[8 + length :]).format == "JPEG"


def test_previews_have_no_ids_otherwise(comfy: Comfy, engine_url: str, checkpoint: str) -> None:
    with Socket(engine_url) as socket:
        messages = _messages_with_previews(comfy, socket, checkpoint, "latent2rgb")
    frames = [message for message in messages if isinstance(message, bytes)]
    if not frames:
        pytest.skip(PREVIEWS_FIXED_AT_START)
    assert {frame[:8] for frame in frames} == {b"\x00\x00\x00\x01\x00\x00\x00\x01"}
    assert picture_of(frames[-1][8:]).format == "JPEG"


@pytest.mark.parametrize(
    ("feature_flags", "kinds_of_a_step"), [(True, ["binary", "progress"]), (False, ["progress", "binary"])]
)
def test_a_preview_with_ids_comes_before_the_progress_of_its_step_and_one_without_ids_after_it(
    comfy: Comfy, engine_url: str, checkpoint: str, feature_flags: bool, kinds_of_a_step: list[str]
) -> None:
    with Socket(engine_url, feature_flags=feature_flags) as socket:
        messages = _messages_with_previews(comfy, socket, checkpoint, "latent2rgb")
    if "binary" not in kinds(messages):
        pytest.skip(PREVIEWS_FIXED_AT_START)
    assert [kind for kind in kinds(messages) if kind in kinds_of_a_step] == kinds_of_a_step * 2


@pytest.mark.parametrize("method", ["latent2rgb", "auto", "taesd"])
def test_a_preview_method_gives_a_preview_per_step_or_is_ignored(
    comfy: Comfy, engine_url: str, checkpoint: str, method: str
) -> None:
    with Socket(engine_url, feature_flags=True) as socket:
        messages = _messages_with_previews(comfy, socket, checkpoint, method)
    assert kinds(messages)[-2:] == ["execution_success", "executing"]
    assert len(data_of(messages, "progress")) == 2
    assert kinds(messages).count("binary") in ((2,) if _has_preview_method(comfy) else (0, 2))


def test_preview_method_none_gives_no_previews(comfy: Comfy, engine_url: str, checkpoint: str) -> None:
    if not _has_preview_method(comfy):
        pytest.skip(PREVIEWS_FIXED_AT_START)
    with Socket(engine_url, feature_flags=True) as socket:
        messages = _messages_with_previews(comfy, socket, checkpoint, "none")
    assert len(data_of(messages, "progress")) == 2
    assert "binary" not in kinds(messages)


def _has_preview_method(comfy: Comfy) -> bool:
    """Whether a job can choose its `preview_method`; 0.3.64 only has the one it was started with."""
    system = comfy.get("/system_stats").json()["system"]
    return system.get("easel_sketch") or system["comfyui_version"] != "0.3.64"


def test_the_websocket_node_sends_each_picture_as_a_frame(
    comfy: Comfy, engine_url: str, object_info: dict[str, Any]
) -> None:
    if "SaveImageWebsocket" not in object_info:
        pytest.skip("this engine has no SaveImageWebsocket")
    graph = flat(batch=3, output="SaveImageWebsocket")
    with Socket(engine_url, feature_flags=True) as socket:
        messages = socket.read_job(comfy.submit_ok(graph, client_id=socket.client_id))
    frames = [message for message in messages if isinstance(message, bytes)]
    assert len(frames) == 3
    for frame in frames:
        length = int.from_bytes(frame[4:8], "big")
        assert b'"node_id": "save"' in frame[8 : 8 + length]
        assert b'"image_type": "image/png"' in frame[8 : 8 + length]
        assert picture_of(frame[8 + length :]).size == (64, 64)


def test_the_socket_is_not_compressed_if_the_client_does_not_offer_it(engine_url: str) -> None:
    with Socket(engine_url) as socket:
        assert "sec-websocket-extensions" not in socket._socket.headers


# --- the cache ------------------------------------------------------------------------------------------------


def test_a_repeated_graph_returns_the_file_of_the_first_run(comfy: Comfy, engine_url: str) -> None:
    graph = flat()
    with Socket(engine_url) as socket:
        first = comfy.submit_ok(graph, client_id=socket.client_id)
        socket.read_job(first)
        second = comfy.submit_ok(graph, client_id=socket.client_id)
        messages = socket.read_job(second)
    assert sorted(data_of(messages, "execution_cached")[0]["nodes"]) == ["save", "source"]
    (executed,) = data_of(messages, "executed")
    assert executed["output"] == comfy.wait_for_history(first)["outputs"]["save"]
    assert comfy.wait_for_history(second)["outputs"] == comfy.wait_for_history(first)["outputs"]


def test_with_another_prefix_only_the_save_node_runs_again(comfy: Comfy, engine_url: str) -> None:
    graph = flat()
    with Socket(engine_url) as socket:
        socket.read_job(comfy.submit_ok(graph, client_id=socket.client_id))
        changed_graph = changed(graph, "save", filename_prefix=f"easel-contract/{uuid.uuid4().hex}")
        messages = socket.read_job(comfy.submit_ok(changed_graph, client_id=socket.client_id))
    assert data_of(messages, "execution_cached")[0]["nodes"] == ["source"]
    assert [data["node"] for data in data_of(messages, "executing")] == ["save", None]


def test_the_same_seed_gives_the_same_bytes(comfy: Comfy, checkpoint: str) -> None:
    def pixels(graph: dict[str, Any]) -> bytes:
        return _first_picture(comfy, comfy.wait_for_history(comfy.submit_ok(graph))).tobytes()

    assert pixels(sampled(checkpoint, seed=5)) == pixels(sampled(checkpoint, seed=5))
    assert pixels(sampled(checkpoint, seed=5)) != pixels(sampled(checkpoint, seed=6))


# --- files ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(comfy: Comfy) -> dict[str, str]:
    """A file in the output folder, as history reports it."""
    return comfy.wait_for_history(comfy.submit_ok(flat()))["outputs"]["save"]["images"][0]


def test_a_saved_picture_can_be_viewed(comfy: Comfy, saved: dict[str, str]) -> None:
    response = comfy.get("/view", params=saved)
    assert response.status_code == 200
    assert response.headers["Content-Type"] == "image/png"
    assert picture_of(response.content).size == (64, 64)


def test_a_preview_image_is_in_the_temp_folder(comfy: Comfy) -> None:
    (image,) = comfy.wait_for_history(comfy.submit_ok(flat(output="PreviewImage")))["outputs"]["save"][
        "images"
    ]
    assert image["type"] == "temp"
    assert comfy.get("/view", params=image).status_code == 200


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"filename": "absent.png"}, 404),
        ({"filename": ""}, 400),
        ({"filename": "../../x.png"}, 400),
        ({"filename": "/etc/hostname"}, 400),
        ({"filename": "a\0.png"}, 404),
        ({"type": "bogus"}, 400),
        ({"type": "temp"}, 404),
        ({"subfolder": "../.."}, 403),
        ({"subfolder": "../output_evil"}, 403),
        ({"subfolder": "/etc", "filename": "hostname"}, 403),
        ({"subfolder": "elsewhere"}, 404),
    ],
)
def test_view_returns_only_files_of_its_folders(
    comfy: Comfy, saved: dict[str, str], change: dict[str, str], status: int
) -> None:
    response = comfy.get("/view", params={**saved, **change})
    assert (response.status_code, response.content) == (status, b"")


def test_view_requires_a_file_name(comfy: Comfy) -> None:
    assert comfy.get("/view").status_code == 404


def _upload(comfy: Comfy, name: str, data: bytes, **fields: str) -> Any:
    return comfy.post("/upload/image", files={"image": (name, data, "image/png")}, data=fields)


def test_an_upload_with_a_taken_name_keeps_it_for_the_same_bytes_and_gets_a_new_name_for_others(
    comfy: Comfy,
) -> None:
    name, red, blue = f"{uuid.uuid4().hex}.png", png(), png(colour=(0, 0, 255))
    assert _upload(comfy, name, red).json() == {"name": name, "subfolder": "", "type": "input"}
    assert _upload(comfy, name, red).json()["name"] == name
    assert _upload(comfy, name, blue).json()["name"] == name.replace(".png", " (1).png")
    assert _upload(comfy, name, blue, overwrite="true").json()["name"] == name
    assert comfy.get("/view", params={"filename": name, "type": "input"}).content == blue


def test_an_upload_goes_into_a_subfolder(comfy: Comfy) -> None:
    name = f"{uuid.uuid4().hex}.png"
    assert _upload(comfy, name, png(), subfolder="easel/x").json() == {
        "name": name,
        "subfolder": "easel/x",
        "type": "input",
    }
    assert (
        comfy.get("/view", params={"filename": name, "subfolder": "easel/x", "type": "input"}).status_code
        == 200
    )


@pytest.mark.parametrize(
    ("name", "fields", "status"),
    [
        ("../evil.png", {}, 400),
        ("a.png", {"subfolder": "../.."}, 400),
        ("a.png", {"subfolder": "/etc"}, 400),
        ("a.png", {"type": "bogus"}, 500),
    ],
)
def test_an_upload_stays_in_its_folder(comfy: Comfy, name: str, fields: dict[str, str], status: int) -> None:
    assert _upload(comfy, name, png(), **fields).status_code == status


def test_an_upload_without_a_file_is_refused(comfy: Comfy) -> None:
    assert comfy.post("/upload/image", data={"subfolder": ""}).status_code == 400


def test_an_uploaded_image_can_be_loaded(comfy: Comfy) -> None:
    stored = _upload(comfy, f"{uuid.uuid4().hex}.png", png(24, 16, (10, 200, 30)), subfolder="easel").json()
    graph = flat()
    graph["source"] = {"class_type": "LoadImage", "inputs": {"image": f"easel/{stored['name']}"}}
    picture = _first_picture(comfy, comfy.wait_for_history(comfy.submit_ok(graph)))
    assert picture.size == (24, 16)
    assert picture.convert("RGB").getpixel((3, 3)) == (10, 200, 30)


def test_an_upload_that_is_not_an_image_is_stored_and_fails_when_it_is_loaded(comfy: Comfy) -> None:
    stored = _upload(comfy, f"{uuid.uuid4().hex}.png", b"no image").json()
    graph = flat()
    graph["source"] = {"class_type": "LoadImage", "inputs": {"image": stored["name"]}}
    kind, data = comfy.wait_for_history(comfy.submit_ok(graph))["status"]["messages"][-1]
    assert (kind, data["node_type"], data["exception_type"]) == (
        "execution_error",
        "LoadImage",
        "PIL.UnidentifiedImageError",
    )


# --- information about the engine -----------------------------------------------------------------------------


def test_object_info_of_a_class_has_inputs_and_outputs(comfy: Comfy) -> None:
    entry = comfy.get("/object_info/KSampler").json()["KSampler"]
    required = entry["input"]["required"]
    assert required["model"][0] == "MODEL"
    assert required["steps"][0] == "INT"
    assert {"default", "min", "max"} <= set(required["steps"][1])
    assert "euler" in required["sampler_name"][0]
    assert entry["output"] == ["LATENT"]
    assert entry["output_node"] is False


def test_object_info_of_an_unknown_class_is_empty(comfy: Comfy) -> None:
    response = comfy.get("/object_info/NoSuchNode")
    assert (response.status_code, response.json()) == (200, {})


def test_object_info_marks_the_output_nodes(object_info: dict[str, Any]) -> None:
    assert object_info["SaveImage"]["output_node"] is True
    assert object_info["PreviewImage"]["output_node"] is True


def test_system_stats_has_version_and_memory(comfy: Comfy) -> None:
    stats = comfy.get("/system_stats").json()
    assert stats["system"]["comfyui_version"]
    assert stats["system"]["ram_total"] > 0
    assert {"name", "type", "vram_total", "vram_free"} <= set(stats["devices"][0])


def test_features_has_previews_with_ids_and_the_maximum_upload_size(comfy: Comfy) -> None:
    features = comfy.get("/features").json()
    assert features["supports_preview_metadata"] is True
    assert features["max_upload_size"] > 0


def test_free_is_answered_at_once(comfy: Comfy) -> None:
    assert comfy.post("/free", {"unload_models": True, "free_memory": True}).status_code == 200


@pytest.mark.parametrize("path", ["/system_stats", "/queue", "/object_info/EmptyImage", "/features"])
def test_every_route_is_also_under_api(comfy: Comfy, path: str) -> None:
    assert comfy.get(f"/api{path}").status_code == comfy.get(path).status_code == 200


def test_an_unknown_path_is_404(comfy: Comfy) -> None:
    assert comfy.get("/nothing/here").status_code == 404
