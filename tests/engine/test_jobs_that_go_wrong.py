"""How a job ends when ComfyUI dies, forgets, stalls or lies: what no real one can be made to do on demand."""

from __future__ import annotations

import itertools
import json
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
from fake_comfyui import PICTURE, FakeComfyUI, Script

from engine import Engine, Outcome, Picture, Preview, Progress
from errors import (
    EngineOutOfMemory,
    EngineRejected,
    EngineStalled,
    EngineUnreachable,
    JobInterrupted,
    JobLost,
    JobTimedOut,
    NodeFailed,
    NoPictures,
    RequestCancelled,
    ServerStopping,
)

GRAPH = {
    "source": {"class_type": "EmptyImage", "inputs": {}},
    "save": {"class_type": "SaveImage", "inputs": {"images": ["source", 0]}},
}
SOCKET_GRAPH = {**GRAPH, "save": {"class_type": "SaveImageWebsocket", "inputs": {"images": ["source", 0]}}}


@contextmanager
def engine_of(comfy: FakeComfyUI, **more: Any) -> Iterator[Engine]:
    engine = Engine(comfy.url, **{"poll_s": 0.1, **more})
    try:
        yield engine
    finally:
        engine.close()


def run(engine: Engine, graph: Any = GRAPH, **more: Any) -> Outcome:
    return engine.run(graph, prompt_id=str(uuid.uuid4()), timeout_s=more.pop("timeout_s", 20), **more)


def outcome_of(
    script: Script, graph: Any = GRAPH, watch: Callable[[Any], None] = lambda _: None, **more: Any
) -> Outcome:
    with FakeComfyUI(script) as comfy, engine_of(comfy, **more) as engine:
        return run(engine, graph, watch=watch)


async def happy(comfy: FakeComfyUI, job: str) -> None:
    await comfy.start(job)
    await comfy.succeed(job)


async def endless(comfy: FakeComfyUI, job: str) -> None:
    await comfy.start(job)


async def never_started(comfy: FakeComfyUI, job: str) -> None:
    pass


def with_metadata(job: str, node: str, data: bytes, mime: str = "image/png") -> bytes:
    about = json.dumps({"node_id": node, "prompt_id": job, "image_type": mime}).encode()
    return (4).to_bytes(4, "big") + len(about).to_bytes(4, "big") + about + data


def plain(data: bytes, form: int = 1) -> bytes:
    return (1).to_bytes(4, "big") + form.to_bytes(4, "big") + data


# --- what is sent -----------------------------------------------------------------------------------------------


def test_only_the_safe_shape_of_a_submission_is_sent() -> None:
    with FakeComfyUI(happy) as comfy, engine_of(comfy) as engine:
        outcome = run(engine)
        (body,) = comfy.submitted
    assert set(body) == {"prompt", "prompt_id", "client_id", "extra_data"}
    assert (body["prompt"], body["prompt_id"], body["extra_data"]) == (GRAPH, outcome.prompt_id, {})
    assert isinstance(body["client_id"], str)
    assert body["client_id"]


def test_a_large_seed_is_sent_exactly() -> None:
    graph = {**GRAPH, "noise": {"class_type": "RandomNoise", "inputs": {"noise_seed": 2**64 - 1}}}
    with FakeComfyUI(happy) as comfy, engine_of(comfy) as engine:
        run(engine, graph)
        assert comfy.submitted[0]["prompt"]["noise"]["inputs"]["noise_seed"] == 2**64 - 1


def test_named_previews_are_asked_for_first_and_neither_origin_nor_compression_is_offered() -> None:
    with FakeComfyUI(happy) as comfy, engine_of(comfy) as engine:
        run(engine)
        assert comfy.said[0] == {"type": "feature_flags", "data": {"supports_preview_metadata": True}}
        for headers in comfy.headers:
            assert "Origin" not in headers
            assert "Sec-WebSocket-Extensions" not in headers


def test_proxies_in_the_environment_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert outcome_of(happy).pictures


def test_a_prompt_id_that_is_no_canonical_uuid_is_refused_before_anything_is_sent() -> None:
    with pytest.raises(ValueError, match="UUID"):
        Engine("http://127.0.0.1:9").run(GRAPH, prompt_id=str(uuid.uuid4()).upper(), timeout_s=1)


def test_one_socket_serves_all_jobs() -> None:
    with FakeComfyUI(happy) as comfy, engine_of(comfy) as engine:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda _: run(engine), range(24)))
        assert len({body["client_id"] for body in comfy.submitted}) == 1


# --- how it answers the submission ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        ((500, "500 Internal Server Error\n\nServer got itself in trouble"), EngineRejected),
        ((413, "Maximum request body size 104857600 exceeded."), EngineRejected),
        ((403, ""), EngineRejected),
        ((404, "not here"), EngineUnreachable),
        ((502, "<html>bad gateway</html>"), EngineUnreachable),
        ((200, "not JSON"), EngineRejected),
        ((400, {"error": "only text", "node_errors": []}), EngineRejected),
        ((400, {"error": {"type": "x"}, "node_errors": {"save": None}}), EngineRejected),
        ((400, {"error": {}, "node_errors": {"save": {"errors": ["text"]}}}), EngineRejected),
    ],
)
def test_every_answer_to_a_submission_has_a_name(answer: tuple[int, Any], error: type[Exception]) -> None:
    with FakeComfyUI(answer=answer) as comfy, engine_of(comfy) as engine, pytest.raises(error) as caught:
        run(engine)
    if error is EngineRejected:
        (rejected,) = caught.value.details["errors"]  # type: ignore[attr-defined]
        assert set(rejected) == {"node", "class_type", "input", "type", "message"}


def test_nobody_listening_is_unreachable_at_once() -> None:
    with FakeComfyUI() as comfy:
        url = comfy.url
    began = time.monotonic()
    with pytest.raises(EngineUnreachable):
        run(Engine(url))
    assert time.monotonic() - began < 2


def test_many_threads_find_out_together_that_an_engine_does_not_answer() -> None:
    """Not one connect timeout after the other."""
    with socket.create_server(("127.0.0.1", 0)) as deaf, ThreadPoolExecutor(8) as pool:
        engine = Engine(f"http://127.0.0.1:{deaf.getsockname()[1]}", connect_timeout_s=0.5)
        began = time.monotonic()
        for job in [pool.submit(run, engine) for _ in range(8)]:
            assert isinstance(job.exception(), EngineUnreachable)
        assert time.monotonic() - began < 2


def test_an_engine_that_was_closed_can_be_used_again() -> None:
    with FakeComfyUI(happy) as comfy, engine_of(comfy) as engine:
        run(engine)
        engine.close()
        assert run(engine).pictures


@pytest.mark.parametrize("broken", ["before", "after"])
def test_a_connection_that_breaks_under_the_submission_neither_loses_nor_doubles_the_job(broken: str) -> None:
    with FakeComfyUI(happy) as comfy, engine_of(comfy) as engine:
        comfy.break_next_submission = broken
        outcome = run(engine)
        assert [picture.data for picture in outcome.pictures] == [PICTURE]
        assert len(comfy.clients) == 1
        assert len(comfy.submitted) == (2 if broken == "before" else 1)


# --- events that are lost, late or nonsense ---------------------------------------------------------------------


def test_a_job_whose_socket_is_cut_ends_by_its_history() -> None:
    async def script(comfy: FakeComfyUI, job: str) -> None:
        await comfy.start(job)
        await comfy.drop_sockets()
        comfy.finish(job)

    assert outcome_of(script).pictures == (Picture(PICTURE, "save", "image/png"),)


def test_a_failure_that_only_history_tells_is_a_failure() -> None:
    async def script(comfy: FakeComfyUI, job: str) -> None:
        await comfy.start(job)
        await comfy.drop_sockets()
        error = {
            "node_id": "save",
            "node_type": "SaveImage",
            "exception_type": "OSError",
            "exception_message": "no",
        }
        comfy.close_job(job, "error", [["execution_error", error]], {})

    with pytest.raises(NodeFailed, match="SaveImage"):
        outcome_of(script)


def test_an_interruption_that_only_history_tells_is_an_interruption() -> None:
    async def script(comfy: FakeComfyUI, job: str) -> None:
        await comfy.start(job)
        await comfy.drop_sockets()
        comfy.close_job(job, "error", [["execution_interrupted", {"prompt_id": job}]], {})

    with pytest.raises(JobInterrupted):
        outcome_of(script)


def test_after_a_cut_the_next_job_gets_a_new_socket_with_a_new_client_id() -> None:
    async def script(comfy: FakeComfyUI, job: str) -> None:
        await comfy.start(job)
        if len(comfy.submitted) == 1:
            await comfy.drop_sockets()
            comfy.finish(job)
        else:
            await comfy.succeed(job)

    told: list[object] = []
    with FakeComfyUI(script) as comfy, engine_of(comfy) as engine:
        run(engine)
        run(engine, watch=told.append)
        first, second = (body["client_id"] for body in comfy.submitted)
    assert first != second


def test_events_that_never_come_are_made_up_for_by_history() -> None:
    """As while another client stalls ComfyUI's event loop."""

    async def script(comfy: FakeComfyUI, job: str) -> None:
        comfy.finish(job)

    assert outcome_of(script).pictures


def test_a_success_without_names_waits_for_history_to_be_written() -> None:
    async def script(comfy: FakeComfyUI, job: str) -> None:
        await comfy.start(job)
        await comfy.send(job, "execution_success")
        while comfy.asked_history < 2:
            await comfy.breathe()
        comfy.finish(job)
        await comfy.send(job, "executing", node=None)

    assert outcome_of(script).pictures


def test_a_success_with_names_does_not_ask_history() -> None:
    async def script(comfy: FakeComfyUI, job: str) -> None:
        await comfy.start(job)
        await comfy.executed(job)
        await comfy.send(job, "execution_success")

    with FakeComfyUI(script) as comfy, engine_of(comfy, poll_s=10.0) as engine:
        assert run(engine).pictures
        assert comfy.asked_history == 0


def test_nonsense_on_the_socket_is_passed_over() -> None:
    nonsense: list[str | bytes] = [
        "not JSON",
        "[]",
        "null",
        '"text"',
        '{"type": 7}',
        '{"type": "executed", "data": null}',
        '{"type": "executed", "data": {"prompt_id": ["a"]}}',
        "[" * 100_000,
        b"",
        b"\0",
        b"\0\0\0\1",
        b"\0\0\0\1\0\0\0\x63abc",
        b"\0\0\0\4\xff\xff\xff\xffabc",
        b"\0\0\0\4\0\0\0\2{]image",
        b"\0\0\0\4\0\0\0\2[]image",
        b"\0\0\0\3\0\0\0\1nodetext",
        b"\xff" * 100_000,
    ]

    async def script(comfy: FakeComfyUI, job: str) -> None:
        await comfy.start(job)
        for message in nonsense:
            await comfy.send_raw(job, message)
        for data in (
            {"node": 7},
            {"node": "save", "output": []},
            {"node": "save", "output": {"images": "x"}},
        ):
            await comfy.send(job, "executed", **data)
        await comfy.send(job, "executed", node="save", output={"images": [None, {}, {"filename": 3}]})
        await comfy.send(job, "progress", node=7, value="x", max=None)
        await comfy.send(job, "progress", node="save", value=float("nan"), max=float("inf"))
        await comfy.send(job, "execution_cached", nodes=None)
        await comfy.succeed(job)

    assert outcome_of(script).pictures


def test_events_of_other_jobs_are_not_ours() -> None:
    async def script(comfy: FakeComfyUI, job: str) -> None:
        await comfy.start(job)
        other = json.dumps({"type": "execution_error", "data": {"prompt_id": str(uuid.uuid4())}})
        await comfy.send_raw(job, other)
        await comfy.succeed(job)

    assert outcome_of(script).pictures


def test_a_watcher_that_dawdles_holds_up_only_its_own_job() -> None:
    gate = threading.Event()

    async def script(comfy: FakeComfyUI, job: str) -> None:
        await comfy.start(job)
        await comfy.send(job, "progress", node="source", value=1, max=1)
        await comfy.succeed(job)

    with FakeComfyUI(script) as comfy, engine_of(comfy) as engine, ThreadPoolExecutor() as pool:
        slow = pool.submit(run, engine, watch=lambda _: gate.wait(20))
        assert run(engine).pictures
        assert not slow.done()
        gate.set()
        assert slow.result().pictures


# --- previews and pictures by socket ------------------------------------------------------------------------------


def test_previews_reach_their_watcher_with_and_without_ids() -> None:
    async def script(comfy: FakeComfyUI, job: str) -> None:
        await comfy.start(job)
        await comfy.send(job, "executing", node="source")
        await comfy.send_raw(job, with_metadata(job, "source", b"named", "image/jpeg"))
        await comfy.send_raw(job, plain(b"unnamed"))
        await comfy.send(job, "progress", node="source", value=1, max=4)
        await comfy.succeed(job)

    told: list[Any] = []
    job = outcome_of(script, watch=told.append).prompt_id
    assert told == [
        Preview(job, "source", "image/jpeg", b"named"),
        Preview(job, "source", "image/jpeg", b"unnamed"),
        Progress(job, "source", 1, 4),
    ]


def test_an_unnamed_frame_is_dropped_while_no_job_of_ours_executes() -> None:
    async def script(comfy: FakeComfyUI, job: str) -> None:
        await comfy.send_raw(job, plain(b"somebody else's"))
        await comfy.start(job)
        await comfy.succeed(job)

    told: list[Any] = []
    outcome_of(script, watch=told.append)
    assert told == []


@pytest.mark.parametrize("named", [True, False])
def test_pictures_of_a_websocket_node_come_in_the_order_of_their_frames(named: bool) -> None:
    async def script(comfy: FakeComfyUI, job: str) -> None:
        await comfy.start(job)
        for data in (b"first", b"second"):
            await comfy.send_raw(job, with_metadata(job, "save", data) if named else plain(data, form=2))
            await comfy.send(job, "progress", node="save", value=0, max=2)
        await comfy.send(job, "execution_success")

    told: list[Any] = []
    pictures = outcome_of(script, SOCKET_GRAPH, told.append).pictures
    assert pictures == (Picture(b"first", "save", "image/png"), Picture(b"second", "save", "image/png"))
    assert told == []


def test_a_websocket_picture_that_was_lost_with_its_socket_is_no_picture() -> None:
    async def script(comfy: FakeComfyUI, job: str) -> None:
        await comfy.start(job)
        await comfy.drop_sockets()
        comfy.finish(job, None)

    with pytest.raises(NoPictures, match="SaveImageWebsocket"):
        outcome_of(script, SOCKET_GRAPH)


# --- successes without pictures -----------------------------------------------------------------------------------


def test_a_file_that_is_gone_is_no_picture() -> None:
    """A fully cached job names the file of the job before it, which somebody may have deleted."""

    async def script(comfy: FakeComfyUI, job: str) -> None:
        await comfy.start(job)
        await comfy.succeed(job, "deleted.png")

    with pytest.raises(NoPictures, match=r"404 for its picture deleted\.png"):
        outcome_of(script)


def test_a_success_that_made_nothing_is_no_picture() -> None:
    async def script(comfy: FakeComfyUI, job: str) -> None:
        await comfy.start(job)
        await comfy.send(job, "executed", node="save", output={"text": ["hi"]})
        await comfy.send(job, "executed", node="source", output={"images": [{"filename": "film.webm"}]})
        await comfy.send(job, "execution_success")
        comfy.finish(job, None)
        await comfy.send(job, "executing", node=None)

    with pytest.raises(NoPictures):
        outcome_of(script)


# --- an engine that goes away, forgets or stalls ------------------------------------------------------------------


def test_an_engine_that_dies_while_a_job_runs_is_unreachable_within_bounds() -> None:
    async def script(comfy: FakeComfyUI, job: str) -> None:
        await comfy.start(job)
        comfy.later(comfy.die())

    began = time.monotonic()
    with pytest.raises(EngineUnreachable, match="while the job ran"):
        outcome_of(script, gone_s=0.5)
    assert 0.5 <= time.monotonic() - began < 5


def test_a_job_of_an_engine_that_was_restarted_is_lost_and_the_next_one_runs() -> None:
    async def script(comfy: FakeComfyUI, job: str) -> None:
        await comfy.start(job)
        if len(comfy.submitted) == 1:
            comfy.later(comfy.restart())
        else:
            await comfy.succeed(job)

    with FakeComfyUI(script) as comfy, engine_of(comfy, gone_s=5.0) as engine:
        with pytest.raises(JobLost):
            run(engine)
        assert run(engine).pictures


def test_an_engine_that_comes_back_in_time_with_its_history_ends_the_job_well() -> None:
    """As behind a proxy or a network that blinks."""

    async def script(comfy: FakeComfyUI, job: str) -> None:
        async def blink() -> None:
            await comfy.die()
            comfy.finish(job)
            await comfy.listen()

        await comfy.start(job)
        comfy.later(blink())

    assert outcome_of(script, gone_s=5.0).pictures


def test_a_running_job_that_stays_silent_is_a_stalled_engine() -> None:
    with FakeComfyUI(endless) as comfy, engine_of(comfy, stall_timeout_s=0.5) as engine:
        with pytest.raises(EngineStalled, match="silent"):
            run(engine)
        assert comfy.interrupted


def test_a_running_job_without_a_socket_is_not_called_silent() -> None:
    async def script(comfy: FakeComfyUI, job: str) -> None:
        await comfy.start(job)
        await comfy.drop_sockets()

    with (
        pytest.raises(JobTimedOut),
        FakeComfyUI(script) as comfy,
        engine_of(comfy, stall_timeout_s=0.2) as engine,
    ):
        run(engine, timeout_s=1.0)


def test_a_pending_job_while_nothing_runs_is_a_stalled_engine_and_is_taken_back() -> None:
    with FakeComfyUI(never_started) as comfy, engine_of(comfy, idle_s=0.4) as engine:
        with pytest.raises(EngineStalled, match="did not start"):
            run(engine)
        assert comfy.pending == []


def test_a_job_behind_one_that_stalled_is_told_so_soon() -> None:
    async def script(comfy: FakeComfyUI, job: str) -> None:
        if len(comfy.submitted) == 1:
            await comfy.start(job)

    with FakeComfyUI(script) as comfy, engine_of(comfy, stall_timeout_s=0.4, idle_s=0.4) as engine:
        comfy.deaf_to_interrupts = 1000
        for _ in range(2):
            with pytest.raises(EngineStalled):
                run(engine, timeout_s=10)


def test_a_pending_job_waits_as_long_as_others_run() -> None:
    async def script(comfy: FakeComfyUI, job: str) -> None:
        if len(comfy.submitted) == 1:
            await comfy.start(job)

    with FakeComfyUI(script) as comfy, engine_of(comfy, idle_s=0.2) as engine, ThreadPoolExecutor() as pool:
        ahead = pool.submit(run, engine, timeout_s=1.5)
        comfy.wait_for(lambda: comfy.running)
        with pytest.raises(JobTimedOut):
            run(engine, timeout_s=0.8)
        with pytest.raises(JobTimedOut):
            ahead.result()


# --- failures ---------------------------------------------------------------------------------------------------


def test_out_of_memory_has_its_own_name_and_the_job_is_not_interrupted() -> None:
    async def script(comfy: FakeComfyUI, job: str) -> None:
        await comfy.start(job)
        await comfy.send(
            job,
            "execution_error",
            node_id="save",
            node_type="SaveImage",
            exception_type="torch.OutOfMemoryError",
            exception_message="Allocation on device 0 would exceed allowed memory.",
            traceback=['File "/home/me/ComfyUI/execution.py"'],
            current_inputs={"text": ["a secret"]},
        )

    with FakeComfyUI(script) as comfy, engine_of(comfy) as engine:
        with pytest.raises(EngineOutOfMemory) as caught:
            run(engine)
        assert comfy.interrupted == []
    assert set(caught.value.details) == {"node", "class_type", "exception_type", "exception_message"}


# --- taking back ------------------------------------------------------------------------------------------------


def test_an_interrupt_that_has_no_effect_is_sent_again() -> None:
    with FakeComfyUI(endless) as comfy, engine_of(comfy) as engine:
        comfy.deaf_to_interrupts = 1
        with pytest.raises(JobTimedOut):
            run(engine, timeout_s=0.3)
        assert len(comfy.interrupted) == 2
        assert comfy.running == []


def test_an_engine_in_trouble_is_asked_again_until_the_job_is_taken_back() -> None:
    with FakeComfyUI(endless) as comfy, engine_of(comfy, poll_s=30.0) as engine:
        comfy.queue_troubles = 3
        with pytest.raises(JobTimedOut):
            run(engine, timeout_s=0.3)
        assert comfy.running == []


def test_a_job_that_starts_while_it_is_being_deleted_is_interrupted() -> None:
    async def script(comfy: FakeComfyUI, job: str) -> None:
        comfy.starts_when_deleted = job

    with FakeComfyUI(script) as comfy, engine_of(comfy) as engine:
        with pytest.raises(JobTimedOut):
            run(engine, timeout_s=0.2)
        assert comfy.interrupted
        assert comfy.running == []


def test_cancelled_is_asked_twice_a_second_while_nothing_happens() -> None:
    asked: list[float] = []

    def cancelled() -> bool:
        asked.append(time.monotonic())
        return len(asked) == 4

    with (
        FakeComfyUI(endless) as comfy,
        engine_of(comfy, poll_s=30.0) as engine,
        pytest.raises(RequestCancelled),
    ):
        run(engine, cancelled=cancelled)
    assert all(later - earlier < 1.0 for earlier, later in itertools.pairwise(asked))


def test_cancel_all_wakes_every_job_at_once() -> None:
    with FakeComfyUI(endless) as comfy, engine_of(comfy, poll_s=30.0) as engine, ThreadPoolExecutor() as pool:
        jobs = [pool.submit(run, engine) for _ in range(3)]
        comfy.wait_for(lambda: len(comfy.running) == 3)
        reason = ServerStopping("stopping")
        engine.cancel_all(reason)
        for job in jobs:
            assert job.exception(timeout=5) is reason
        assert comfy.running == []


# --- memory -----------------------------------------------------------------------------------------------------


def test_free_returns_when_memory_no_longer_comes_free() -> None:
    gigabyte = 2**30
    with FakeComfyUI() as comfy, engine_of(comfy) as engine:
        comfy.free_bytes = [0, gigabyte, 2 * gigabyte, 3 * gigabyte]
        engine.free()
        assert comfy.free_bytes == [3 * gigabyte]
