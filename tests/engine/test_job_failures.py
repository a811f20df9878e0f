"""How a job ends when ComfyUI crashes, loses it, stalls or sends wrong data: what a real one cannot be made to do on
demand."""

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
from typing import Any, cast

import pytest
from fake_comfyui import PICTURE, FakeComfyUI, Script

from engine import Engine, Outcome, Picture, Preview, Progress, QueueState
from engine.http import ComfyuiHttp
from engine.inbox import Inbox
from engine.job import Job
from engine.job_runner import JobRunner
from engine.queue_looks import QueueLooks
from engine.watchdog import Limits
from errors import (
    EngineAccessDenied,
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
from tests.waiting import TIMEOUT_S, wait_until

GRAPH = {
    "source": {"class_type": "EmptyImage", "inputs": {}},
    "save": {"class_type": "SaveImage", "inputs": {"images": ["source", 0]}},
}
SOCKET_GRAPH = {**GRAPH, "save": {"class_type": "SaveImageWebsocket", "inputs": {"images": ["source", 0]}}}


@contextmanager
def engine_of(comfy: FakeComfyUI, **options: Any) -> Iterator[Engine]:
    engine = Engine(comfy.url, **{"poll_interval_s": 0.1, **options})
    try:
        yield engine
    finally:
        engine.close()


def run(engine: Engine, graph: Any = GRAPH, **options: Any) -> Outcome:
    return engine.run(graph, prompt_id=str(uuid.uuid4()), timeout_s=options.pop("timeout_s", 20), **options)


def outcome_of(
    script: Script, graph: Any = GRAPH, on_progress: Callable[[Any], None] = lambda _: None, **options: Any
) -> Outcome:
    with FakeComfyUI(script) as comfy, engine_of(comfy, **options) as engine:
        return run(engine, graph, on_progress=on_progress)


async def happy(comfy: FakeComfyUI, job: str) -> None:
    await comfy.start(job)
    await comfy.succeed(job)


async def endless(comfy: FakeComfyUI, job: str) -> None:
    await comfy.start(job)


async def never_started(comfy: FakeComfyUI, job: str) -> None:
    pass


def with_metadata(job: str, node: str, data: bytes, mime: str = "image/png") -> bytes:
    metadata = json.dumps({"node_id": node, "prompt_id": job, "image_type": mime}).encode()
    return (4).to_bytes(4, "big") + len(metadata).to_bytes(4, "big") + metadata + data


def plain(data: bytes, image_format: int = 1) -> bytes:
    return (1).to_bytes(4, "big") + image_format.to_bytes(4, "big") + data


# --- what is sent -----------------------------------------------------------------------------------------------


def test_a_submission_has_only_the_safe_fields() -> None:
    with FakeComfyUI(happy) as comfy, engine_of(comfy) as engine:
        outcome = run(engine)
        (body,) = comfy.submitted
    assert set(body) == {"prompt", "prompt_id", "client_id", "extra_data"}
    assert (body["prompt"], body["prompt_id"]) == (GRAPH, outcome.prompt_id)
    assert body["extra_data"] == {"preview_method": "none"}
    assert isinstance(body["client_id"], str)
    assert body["client_id"]


def test_a_large_seed_is_sent_exactly() -> None:
    graph = {**GRAPH, "noise": {"class_type": "RandomNoise", "inputs": {"noise_seed": 2**64 - 1}}}
    with FakeComfyUI(happy) as comfy, engine_of(comfy) as engine:
        run(engine, graph)
        assert comfy.submitted[0]["prompt"]["noise"]["inputs"]["noise_seed"] == 2**64 - 1


def test_the_first_socket_message_asks_for_previews_with_ids_and_no_origin_or_compression_is_offered() -> (
    None
):
    with FakeComfyUI(happy) as comfy, engine_of(comfy) as engine:
        run(engine)
        assert comfy.socket_messages[0] == {
            "type": "feature_flags",
            "data": {"supports_preview_metadata": True},
        }
        for headers in comfy.headers:
            assert "Origin" not in headers
            assert "Sec-WebSocket-Extensions" not in headers


def test_proxies_in_the_environment_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert outcome_of(happy).pictures


def test_a_prompt_id_that_is_not_a_canonical_uuid_raises_before_anything_is_sent() -> None:
    with pytest.raises(ValueError, match="UUID"):
        Engine("http://127.0.0.1:9").run(GRAPH, prompt_id=str(uuid.uuid4()).upper(), timeout_s=1)


def test_one_socket_serves_all_jobs() -> None:
    with FakeComfyUI(happy) as comfy, engine_of(comfy) as engine:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda _: run(engine), range(24)))
        assert len({body["client_id"] for body in comfy.submitted}) == 1


# --- responses to the submission --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("response", "error"),
    [
        ((500, "500 Internal Server Error\n\nServer got itself in trouble"), EngineRejected),
        ((413, "Maximum request body size 104857600 exceeded."), EngineRejected),
        ((401, "<html>log in</html>"), EngineAccessDenied),
        ((403, ""), EngineAccessDenied),
        ((404, "not here"), EngineUnreachable),
        ((502, "<html>bad gateway</html>"), EngineUnreachable),
        ((200, "not JSON"), EngineRejected),
        ((400, {"error": "only text", "node_errors": []}), EngineRejected),
        ((400, {"error": {"type": "x"}, "node_errors": {"save": None}}), EngineRejected),
        ((400, {"error": {}, "node_errors": {"save": {"errors": ["text"]}}}), EngineRejected),
    ],
)
def test_every_bad_response_to_a_submission_raises_a_named_error(
    response: tuple[int, Any], error: type[Exception]
) -> None:
    with (
        FakeComfyUI(submit_response=response) as comfy,
        engine_of(comfy) as engine,
        pytest.raises(error) as caught,
    ):
        run(engine)
    if error is EngineRejected:
        (rejected,) = caught.value.details["errors"]  # type: ignore[attr-defined]
        assert set(rejected) == {"node", "class_type", "input", "type", "message"}


def test_a_port_without_a_server_is_unreachable_at_once() -> None:
    with FakeComfyUI() as comfy:
        url = comfy.url
    started_at = time.monotonic()
    with pytest.raises(EngineUnreachable):
        run(Engine(url))
    assert time.monotonic() - started_at < 2


def test_threads_that_connect_at_the_same_time_share_one_connect_timeout() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent_server, ThreadPoolExecutor(8) as pool:
        engine = Engine(f"http://127.0.0.1:{silent_server.getsockname()[1]}", connect_timeout_s=0.5)
        started_at = time.monotonic()
        for job in [pool.submit(run, engine) for _ in range(8)]:
            assert isinstance(job.exception(), EngineUnreachable)
        assert time.monotonic() - started_at < 2


def test_an_engine_that_was_closed_can_be_used_again() -> None:
    with FakeComfyUI(happy) as comfy, engine_of(comfy) as engine:
        run(engine)
        engine.close()
        assert run(engine).pictures


@pytest.mark.parametrize("break_at", ["before", "after"])
def test_a_connection_that_closes_during_the_submission_neither_loses_nor_repeats_the_job(
    break_at: str,
) -> None:
    with FakeComfyUI(happy) as comfy, engine_of(comfy) as engine:
        comfy.break_next_submission = break_at
        outcome = run(engine)
        assert [picture.data for picture in outcome.pictures] == [PICTURE]
        assert len(comfy.clients) == 1
        assert len(comfy.submitted) == (2 if break_at == "before" else 1)


class UnansweredHttp:
    """ComfyUI's HTTP where the response to a submission does not come in time and the queue does not show the job yet."""

    def __init__(self) -> None:
        self.submissions = 0

    def submit(self, body: bytes) -> tuple[int, Any]:
        self.submissions += 1
        raise EngineUnreachable("ComfyUI does not answer: it took too long.", slow=True)

    def queue(self) -> QueueState:
        return QueueState((), ())

    def history(self, prompt_id: str) -> None:
        return None


def test_a_submission_that_was_not_answered_in_time_is_not_sent_again() -> None:
    """ComfyUI may still be reading the first one, and would run the job twice."""
    http = UnansweredHttp()
    prompt_id = str(uuid.uuid4())
    runner = JobRunner(
        cast("ComfyuiHttp", http),
        Job(prompt_id, GRAPH, lambda _: None, time.monotonic),
        Inbox(),
        queue_looks=QueueLooks(http.queue),
        limits=Limits(stall_timeout_s=5, idle_timeout_s=5, unreachable_timeout_s=5),
        poll_interval_s=0.1,
        timeout_s=5,
        on_queued=lambda before: None,
        cancelled=lambda: False,
        clock=time.monotonic,
        stuck=set(),
    )
    with pytest.raises(EngineUnreachable):
        runner.run(GRAPH, "client")
    assert http.submissions == 1


# --- events that are lost, late or invalid -----------------------------------------------------------------------


def test_a_job_whose_socket_is_lost_ends_by_its_history() -> None:
    async def script(comfy: FakeComfyUI, job: str) -> None:
        await comfy.start(job)
        await comfy.drop_sockets()
        comfy.finish(job)

    assert outcome_of(script).pictures == (Picture(PICTURE, "save", "image/png"),)


def test_a_failure_that_only_history_reports_raises_node_failed() -> None:
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


def test_an_interruption_that_only_history_reports_raises_job_interrupted() -> None:
    async def script(comfy: FakeComfyUI, job: str) -> None:
        await comfy.start(job)
        await comfy.drop_sockets()
        comfy.close_job(job, "error", [["execution_interrupted", {"prompt_id": job}]], {})

    with pytest.raises(JobInterrupted):
        outcome_of(script)


def test_after_a_lost_socket_the_next_job_gets_a_new_socket_with_a_new_client_id() -> None:
    async def script(comfy: FakeComfyUI, job: str) -> None:
        await comfy.start(job)
        if len(comfy.submitted) == 1:
            await comfy.drop_sockets()
            comfy.finish(job)
        else:
            await comfy.succeed(job)

    with FakeComfyUI(script) as comfy, engine_of(comfy) as engine:
        run(engine)
        run(engine)
        first, second = (body["client_id"] for body in comfy.submitted)
    assert first != second


def test_a_connection_that_clears_the_signatures_meanwhile_loses_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = Engine("http://127.0.0.1:9")

    class ClearedAtOnce(dict[str, Any]):
        """As if another thread connected again right after each entry was stored."""

        def __setitem__(self, name: str, entry: Any) -> None:
            super().__setitem__(name, entry)
            self.clear()

    monkeypatch.setattr(engine, "_signatures", ClearedAtOnce())
    monkeypatch.setattr(engine._http, "signature", lambda name: {"name": name})
    assert engine.signatures(["KSampler"]) == {"KSampler": {"name": "KSampler"}}
    engine.close()


def test_node_signatures_are_remembered_until_the_engine_is_connected_to_again() -> None:
    """After a reconnect it may be a newer ComfyUI, or have other nodes."""
    old, new = {"input": {"required": {}}}, {"input": {"required": {"steps": ["INT", {}]}}}
    with FakeComfyUI(happy) as comfy, engine_of(comfy) as engine:
        run(engine)
        comfy.object_info = {"KSampler": old}
        assert engine.signatures(["KSampler"]) == {"KSampler": old}
        comfy.object_info = {"KSampler": new}
        run(engine)
        assert engine.signatures(["KSampler"]) == {"KSampler": old}
        comfy.call(comfy.restart())
        before = comfy.submitted[-1]["client_id"]
        while (
            comfy.submitted[-1]["client_id"] == before
        ):  # the reader thread may not have noticed the restart yet
            run(engine)
        assert engine.signatures(["KSampler"]) == {"KSampler": new}


def test_a_job_without_any_event_ends_by_its_history() -> None:
    """Another client may block ComfyUI's event loop meanwhile."""

    async def script(comfy: FakeComfyUI, job: str) -> None:
        comfy.finish(job)

    assert outcome_of(script).pictures


def test_a_job_that_left_the_engine_and_has_no_history_is_lost() -> None:
    """Another client may have cleared the history."""

    async def script(comfy: FakeComfyUI, job: str) -> None:
        await comfy.start(job)
        comfy.running.remove(job)
        await comfy.send(job, "executing", node=None)

    with pytest.raises(JobLost):
        outcome_of(script)


def test_a_success_without_file_names_waits_for_its_history() -> None:
    async def script(comfy: FakeComfyUI, job: str) -> None:
        await comfy.start(job)
        await comfy.send(job, "execution_success")
        while comfy.history_requests < 2:
            await comfy.pause()
        comfy.finish(job)
        await comfy.send(job, "executing", node=None)

    assert outcome_of(script).pictures


def test_a_success_with_file_names_does_not_read_history() -> None:
    async def script(comfy: FakeComfyUI, job: str) -> None:
        await comfy.start(job)
        await comfy.executed(job)
        await comfy.send(job, "execution_success")

    with FakeComfyUI(script) as comfy, engine_of(comfy, poll_interval_s=10.0) as engine:
        assert run(engine).pictures
        assert comfy.history_requests == 0


def test_invalid_socket_messages_are_ignored() -> None:
    invalid_messages: list[str | bytes] = [
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
        for message in invalid_messages:
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


def test_events_of_other_jobs_are_ignored() -> None:
    async def script(comfy: FakeComfyUI, job: str) -> None:
        await comfy.start(job)
        other = json.dumps({"type": "execution_error", "data": {"prompt_id": str(uuid.uuid4())}})
        await comfy.send_raw(job, other)
        await comfy.succeed(job)

    assert outcome_of(script).pictures


def test_a_slow_progress_callback_delays_only_its_own_job() -> None:
    released = threading.Event()

    async def script(comfy: FakeComfyUI, job: str) -> None:
        await comfy.start(job)
        await comfy.send(job, "progress", node="source", value=1, max=1)
        await comfy.succeed(job)

    with FakeComfyUI(script) as comfy, engine_of(comfy) as engine, ThreadPoolExecutor() as pool:
        slow = pool.submit(run, engine, on_progress=lambda _: released.wait(20))
        assert run(engine).pictures
        assert not slow.done()
        released.set()
        assert slow.result().pictures


# --- previews and pictures by socket ------------------------------------------------------------------------------


def test_previews_with_and_without_ids_reach_the_progress_callback() -> None:
    async def script(comfy: FakeComfyUI, job: str) -> None:
        await comfy.start(job)
        await comfy.send(job, "executing", node="source")
        await comfy.send_raw(job, with_metadata(job, "source", b"with ids", "image/jpeg"))
        await comfy.send_raw(job, plain(b"without ids"))
        await comfy.send(job, "progress", node="source", value=1, max=4)
        await comfy.succeed(job)

    events: list[Any] = []
    job = outcome_of(script, on_progress=events.append).prompt_id
    assert events == [
        Preview(job, "source", "image/jpeg", b"with ids"),
        Preview(job, "source", "image/jpeg", b"without ids"),
        Progress(job, "source", 1, 4),
    ]


def test_a_frame_without_ids_is_dropped_while_no_job_of_this_client_executes() -> None:
    async def script(comfy: FakeComfyUI, job: str) -> None:
        await comfy.send_raw(job, plain(b"of another client"))
        await comfy.start(job)
        await comfy.succeed(job)

    events: list[Any] = []
    outcome_of(script, on_progress=events.append)
    assert events == []


@pytest.mark.parametrize("has_ids", [True, False])
def test_pictures_of_a_websocket_node_are_in_the_order_of_their_frames(has_ids: bool) -> None:
    async def script(comfy: FakeComfyUI, job: str) -> None:
        await comfy.start(job)
        for data in (b"first", b"second"):
            await comfy.send_raw(
                job, with_metadata(job, "save", data) if has_ids else plain(data, image_format=2)
            )
            await comfy.send(job, "progress", node="save", value=0, max=2)
        await comfy.send(job, "execution_success")

    events: list[Any] = []
    pictures = outcome_of(script, SOCKET_GRAPH, events.append).pictures
    assert pictures == (Picture(b"first", "save", "image/png"), Picture(b"second", "save", "image/png"))
    assert events == []


# --- successes without pictures -----------------------------------------------------------------------------------


def test_a_picture_file_that_was_deleted_raises_no_pictures() -> None:
    """A fully cached job reports the file of the previous job, which may have been deleted."""

    async def script(comfy: FakeComfyUI, job: str) -> None:
        await comfy.start(job)
        await comfy.succeed(job, "deleted.png")

    with pytest.raises(NoPictures, match=r"404 for its picture deleted\.png"):
        outcome_of(script)


def test_a_success_without_a_picture_raises_no_pictures() -> None:
    async def script(comfy: FakeComfyUI, job: str) -> None:
        await comfy.start(job)
        await comfy.send(job, "executed", node="save", output={"text": ["hi"]})
        await comfy.send(job, "executed", node="source", output={"images": [{"filename": "film.webm"}]})
        await comfy.send(job, "execution_success")
        comfy.finish(job, None)
        await comfy.send(job, "executing", node=None)

    with pytest.raises(NoPictures):
        outcome_of(script)


# --- an engine that crashes, loses a job or stalls -----------------------------------------------------------------


def test_an_engine_that_crashes_while_a_job_runs_is_unreachable_after_the_timeout() -> None:
    async def script(comfy: FakeComfyUI, job: str) -> None:
        await comfy.start(job)
        comfy.run_later(comfy.crash())

    started_at = time.monotonic()
    with pytest.raises(EngineUnreachable, match="while the job ran"):
        outcome_of(script, unreachable_timeout_s=0.5)
    assert 0.5 <= time.monotonic() - started_at < 5


def test_a_job_is_lost_when_the_engine_restarts_and_the_next_one_runs() -> None:
    async def script(comfy: FakeComfyUI, job: str) -> None:
        await comfy.start(job)
        if len(comfy.submitted) == 1:
            comfy.run_later(comfy.restart())
        else:
            await comfy.succeed(job)

    with FakeComfyUI(script) as comfy, engine_of(comfy, unreachable_timeout_s=5.0) as engine:
        with pytest.raises(JobLost):
            run(engine)
        assert run(engine).pictures


def test_a_job_succeeds_if_the_engine_is_back_in_time_with_its_history() -> None:
    """As after a short outage of a proxy or a network."""

    async def script(comfy: FakeComfyUI, job: str) -> None:
        async def short_outage() -> None:
            await comfy.crash()
            comfy.finish(job)
            await comfy.listen()

        await comfy.start(job)
        comfy.run_later(short_outage())

    assert outcome_of(script, unreachable_timeout_s=5.0).pictures


def test_a_running_job_without_events_raises_engine_stalled() -> None:
    with FakeComfyUI(endless) as comfy, engine_of(comfy, stall_timeout_s=0.5) as engine:
        with pytest.raises(EngineStalled, match="no event"):
            run(engine)
        assert comfy.interrupted


def test_a_running_job_whose_socket_is_lost_does_not_stall() -> None:
    async def script(comfy: FakeComfyUI, job: str) -> None:
        await comfy.start(job)
        await comfy.drop_sockets()

    with (
        pytest.raises(JobTimedOut),
        FakeComfyUI(script) as comfy,
        engine_of(comfy, stall_timeout_s=0.2) as engine,
    ):
        run(engine, timeout_s=1.0)


def test_a_pending_job_while_nothing_runs_raises_engine_stalled_and_is_cancelled() -> None:
    with FakeComfyUI(never_started) as comfy, engine_of(comfy, idle_timeout_s=0.4) as engine:
        with pytest.raises(EngineStalled, match="did not start"):
            run(engine)
        assert comfy.pending == []


def test_a_job_queued_behind_a_stalled_one_fails_soon_too() -> None:
    async def script(comfy: FakeComfyUI, job: str) -> None:
        if len(comfy.submitted) == 1:
            await comfy.start(job)

    with FakeComfyUI(script) as comfy, engine_of(comfy, stall_timeout_s=0.4, idle_timeout_s=0.4) as engine:
        comfy.ignored_interrupts = 1000
        for _ in range(2):
            with pytest.raises(EngineStalled):
                run(engine, timeout_s=10)


def test_a_pending_job_waits_as_long_as_others_run() -> None:
    async def script(comfy: FakeComfyUI, job: str) -> None:
        if len(comfy.submitted) == 1:
            await comfy.start(job)

    with (
        FakeComfyUI(script) as comfy,
        engine_of(comfy, idle_timeout_s=0.2) as engine,
        ThreadPoolExecutor() as pool,
    ):
        running_job = pool.submit(run, engine, timeout_s=1.5)
        comfy.wait_for(lambda: comfy.running)
        with pytest.raises(JobTimedOut):
            run(engine, timeout_s=0.8)
        with pytest.raises(JobTimedOut):
            running_job.result()


# --- failures ---------------------------------------------------------------------------------------------------


def test_out_of_memory_has_its_own_error_and_the_job_is_not_interrupted() -> None:
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


# --- cancelling -------------------------------------------------------------------------------------------------


def test_an_interrupt_that_has_no_effect_is_sent_again() -> None:
    with FakeComfyUI(endless) as comfy, engine_of(comfy) as engine:
        comfy.ignored_interrupts = 1
        with pytest.raises(RequestCancelled):
            run(engine, cancelled=lambda: bool(comfy.running))
        assert len(comfy.interrupted) == 2
        assert comfy.running == []


def test_a_job_whose_time_has_ended_is_cancelled_in_the_background_and_keeps_its_lease_meanwhile() -> None:
    kept, released = threading.Event(), threading.Event()

    def keep_lease() -> Callable[[], None]:
        kept.set()
        return released.set

    with FakeComfyUI(endless) as comfy, engine_of(comfy) as engine:
        comfy.ignored_interrupts = 1
        with pytest.raises(JobTimedOut):
            run(engine, timeout_s=0.3, keep_lease=keep_lease)
        assert kept.is_set()
        assert released.wait(TIMEOUT_S)
        assert comfy.running == []


def test_a_submission_that_is_read_after_its_request_has_ended_is_cancelled() -> None:
    """Takes over 3 s: the job is looked for a second time after that."""
    kept, released = threading.Event(), threading.Event()

    def keep_lease() -> Callable[[], None]:
        kept.set()
        return released.set

    with FakeComfyUI(endless) as comfy, engine_of(comfy) as engine:
        comfy.late_submission = threading.Event()
        with pytest.raises(EngineUnreachable):
            run(engine, timeout_s=0.5, keep_lease=keep_lease)
        assert kept.is_set()
        # Asked by the request and after it: the job is in no queue yet.
        comfy.wait_for(lambda: comfy.queue_requests >= 2)
        comfy.late_submission.set()
        comfy.wait_for(lambda: comfy.interrupted or comfy.deleted)
        assert released.wait(TIMEOUT_S)
        assert (comfy.running, comfy.pending) == ([], [])


def test_a_job_that_was_never_submitted_keeps_no_lease() -> None:
    kept = threading.Event()

    def keep_lease() -> Callable[[], None]:
        kept.set()
        return lambda: None

    with FakeComfyUI(endless) as comfy, engine_of(comfy) as engine:
        with pytest.raises(RequestCancelled):
            run(engine, cancelled=lambda: True, keep_lease=keep_lease)
        assert (comfy.submitted, kept.is_set()) == ([], False)


def test_a_pending_job_that_does_not_go_is_not_asked_to_in_a_tight_loop() -> None:
    with FakeComfyUI() as comfy, engine_of(comfy) as engine:
        comfy.ignored_deletes = 6
        started_at = time.monotonic()
        with pytest.raises(RequestCancelled):
            run(engine, cancelled=lambda: bool(comfy.pending))
        assert (comfy.pending, len(comfy.deleted)) == ([], 7)
        assert time.monotonic() - started_at > 0.9


def test_newer_engines_are_asked_to_cancel_by_their_atomic_route() -> None:
    with FakeComfyUI(endless) as comfy, engine_of(comfy) as engine:
        comfy.has_cancel_route, comfy.ignored_interrupts = True, 1
        for _ in range(2):
            with pytest.raises(RequestCancelled):
                run(engine, cancelled=lambda: bool(comfy.running))
        assert len(set(comfy.cancelled)) == 2
        assert (comfy.interrupted, comfy.deleted, comfy.running) == ([], [], [])


def test_an_older_engine_is_asked_only_once_whether_it_has_that_route() -> None:
    with FakeComfyUI(endless) as comfy, engine_of(comfy) as engine:
        for _ in range(2):
            with pytest.raises(RequestCancelled):
                run(engine, cancelled=lambda: bool(comfy.running))
        assert comfy.cancel_requests == 1
        assert len(comfy.interrupted) == 2


def test_an_engine_that_restarts_with_another_version_is_cancelled_by_the_route_that_it_has() -> None:
    with FakeComfyUI(endless) as comfy, engine_of(comfy) as engine:
        for has_route in (True, False, True):
            comfy.has_cancel_route = has_route
            comfy.cancelled, comfy.interrupted = [], []
            with pytest.raises(RequestCancelled):
                run(engine, cancelled=lambda: bool(comfy.running))
            assert (len(comfy.cancelled), len(comfy.interrupted)) == (int(has_route), int(not has_route))
            comfy.call(comfy.restart())
            engine.close()  # as the reader of the socket does when it sees that the engine is gone


@pytest.mark.parametrize("status", [200, 401, 403, 404, 405, 500, 501])
def test_an_engine_or_a_proxy_that_refuses_that_route_is_asked_by_the_older_ones(status: int) -> None:
    with FakeComfyUI(endless) as comfy, engine_of(comfy) as engine:
        comfy.cancel_status = status
        with pytest.raises(RequestCancelled):
            run(engine, cancelled=lambda: bool(comfy.running))
        assert (len(comfy.interrupted), comfy.running) == (1, [])


@pytest.mark.parametrize("has_cancel_route", [True, False])
def test_cancel_jobs_tells_when_the_jobs_are_gone_and_loses_none(has_cancel_route: bool) -> None:
    with FakeComfyUI() as comfy, engine_of(comfy) as engine:
        comfy.has_cancel_route, comfy.ignored_interrupts = has_cancel_route, 1
        comfy.clients = {"runs": "", "waits": ""}
        comfy.running, comfy.pending = ["runs"], ["waits", "another"]
        assert not engine.cancel_jobs(["runs", "waits"])
        assert comfy.pending == ["another"]
        wait_until(lambda: engine.cancel_jobs(["runs", "waits"]))
        assert comfy.running == []
        assert comfy.interrupted.count("runs") + comfy.cancelled.count("runs") == 2
        assert not engine.cancel_jobs(None)
        assert engine.cancel_jobs(None)


def test_a_step_that_is_told_twice_is_reported_once() -> None:
    async def script(comfy: FakeComfyUI, job: str) -> None:
        await comfy.start(job)
        for value in (1, 1, 3, 4, 4):
            await comfy.send(job, "progress", node="source", value=value, max=4)
        await comfy.succeed(job)

    events: list[Any] = []
    with FakeComfyUI(script) as comfy, engine_of(comfy) as engine:
        run(engine, on_progress=events.append)
    assert [event.value for event in events] == [1, 3, 4]


def test_the_log_has_the_path_of_damaged_weights(caplog: pytest.LogCaptureFixture) -> None:
    path = "/data/ComfyUI/models/vae/ae.safetensors"

    async def script(comfy: FakeComfyUI, job: str) -> None:
        await comfy.start(job)
        await comfy.send(
            job, "execution_error", exception_type="SafetensorError", exception_message=f"File path: {path}"
        )

    with FakeComfyUI(script) as comfy, engine_of(comfy) as engine, pytest.raises(NodeFailed) as caught:
        run(engine)
    assert "ae.safetensors" in caught.value.message
    assert path not in caught.value.message
    assert path in caplog.text


def test_a_cancel_is_repeated_while_the_engine_answers_with_errors() -> None:
    with FakeComfyUI(endless) as comfy, engine_of(comfy, poll_interval_s=30.0) as engine:
        comfy.queue_errors = 3
        with pytest.raises(JobTimedOut):
            run(engine, timeout_s=0.3)
        comfy.wait_for(lambda: comfy.running == [])


def test_a_job_that_starts_while_it_is_being_deleted_is_interrupted() -> None:
    async def script(comfy: FakeComfyUI, job: str) -> None:
        comfy.starts_when_deleted = job

    with FakeComfyUI(script) as comfy, engine_of(comfy) as engine:
        with pytest.raises(JobTimedOut):
            run(engine, timeout_s=0.2)
        assert comfy.interrupted
        assert comfy.running == []


def test_cancelled_is_called_twice_a_second_while_nothing_happens() -> None:
    called_at: list[float] = []

    def cancelled() -> bool:
        called_at.append(time.monotonic())
        return len(called_at) == 4

    with (
        FakeComfyUI(endless) as comfy,
        engine_of(comfy, poll_interval_s=30.0) as engine,
        pytest.raises(RequestCancelled),
    ):
        run(engine, cancelled=cancelled)
    assert all(second - first < 1.0 for first, second in itertools.pairwise(called_at))


def test_cancel_all_ends_every_job_at_once() -> None:
    with (
        FakeComfyUI(endless) as comfy,
        engine_of(comfy, poll_interval_s=30.0) as engine,
        ThreadPoolExecutor() as pool,
    ):
        jobs = [pool.submit(run, engine) for _ in range(3)]
        comfy.wait_for(lambda: len(comfy.running) == 3)
        reason = ServerStopping("stopping")
        engine.cancel_all(reason)
        for job in jobs:
            assert job.exception(timeout=5) is reason
        assert comfy.running == []


# --- memory -----------------------------------------------------------------------------------------------------


def test_free_returns_when_free_memory_no_longer_grows() -> None:
    gigabyte = 2**30
    with FakeComfyUI() as comfy, engine_of(comfy) as engine:
        comfy.free_bytes = [0, gigabyte, 2 * gigabyte, 3 * gigabyte]
        engine.free()
        assert comfy.free_bytes == [3 * gigabyte]
