"""Pictures of SaveImageWebsocket are lost with the socket: the job is submitted again, at last so that it saves them."""

from __future__ import annotations

import asyncio
import json
import threading
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from fake_comfyui import PICTURE, FakeComfyUI

import engine.job_runner
from engine import Engine, Outcome
from errors import EngineUnreachable, JobTimedOut, NodeFailed, NoPictures, RequestCancelled
from tests.waiting import wait_until

SAVING = {
    "source": {"class_type": "EmptyImage", "inputs": {}},
    "save": {"class_type": "SaveImage", "inputs": {"images": ["source", 0]}},
}
SENDING = {**SAVING, "save": {"class_type": "SaveImageWebsocket", "inputs": {"images": ["source", 0]}}}


@pytest.fixture
def comfy() -> Iterator[FakeComfyUI]:
    with FakeComfyUI() as comfy:
        yield comfy


@pytest.fixture
def engine_of_comfy(comfy: FakeComfyUI) -> Iterator[Engine]:
    engine = Engine(comfy.url, poll_interval_s=0.1, unreachable_timeout_s=1.0)
    yield engine
    engine.close()


def run(engine: Engine, saving_graph: Any = SAVING, **options: Any) -> Outcome:
    return engine.run(
        SENDING,
        prompt_id=str(uuid.uuid4()),
        timeout_s=options.pop("timeout_s", 20),
        output="save",
        saving_graph=saving_graph,
        **options,
    )


def picture_message(job: str, data: bytes) -> bytes:
    metadata = json.dumps({"node_id": "save", "prompt_id": job, "image_type": "image/png"}).encode()
    return (4).to_bytes(4, "big") + len(metadata).to_bytes(4, "big") + metadata + data


def frame_of(message: bytes) -> bytes:
    """A binary WebSocket frame of 126 to 65,535 bytes."""
    return bytes([0x82, 126]) + len(message).to_bytes(2, "big") + message


async def send_picture(comfy: FakeComfyUI, job: str, data: bytes = PICTURE) -> None:
    await comfy.send_raw(job, picture_message(job, data))


async def draw(comfy: FakeComfyUI, job: str) -> None:
    """As ComfyUI does with the graph that it got."""
    await comfy.start(job)
    if graphs(comfy)[-1] == SAVING:
        await comfy.succeed(job)
        return
    await send_picture(comfy, job)
    await comfy.send(job, "execution_success")
    comfy.finish(job, None)
    await comfy.send(job, "executing", node=None)


async def draw_and_lose(comfy: FakeComfyUI, job: str) -> None:
    await comfy.start(job)
    await comfy.drop_sockets()
    comfy.finish(job, None)


def graphs(comfy: FakeComfyUI) -> list[Any]:
    return [body["prompt"] for body in comfy.submitted]


def test_a_lost_picture_is_drawn_again_under_the_same_id_with_another_client(
    comfy: FakeComfyUI, engine_of_comfy: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    async def script(comfy: FakeComfyUI, job: str) -> None:
        await (draw_and_lose if len(comfy.submitted) == 1 else draw)(comfy, job)

    comfy.script, submitted = script, list[int]()
    outcome = run(engine_of_comfy, on_submitted=lambda: submitted.append(len(comfy.submitted)))
    assert [picture.data for picture in outcome.pictures] == [PICTURE]
    assert graphs(comfy) == [SENDING, SENDING]
    assert submitted == [1, 2]
    assert {body["prompt_id"] for body in comfy.submitted} == {outcome.prompt_id}
    assert len({body["client_id"] for body in comfy.submitted}) == 2
    assert comfy.forgotten == [outcome.prompt_id]
    assert f"job {outcome.prompt_id}: the pictures were lost with the socket" in caplog.text


def test_a_picture_that_is_lost_twice_is_saved_the_third_time(
    comfy: FakeComfyUI, engine_of_comfy: Engine
) -> None:
    async def script(comfy: FakeComfyUI, job: str) -> None:
        await (draw_and_lose if len(comfy.submitted) < 3 else draw)(comfy, job)

    comfy.script = script
    assert [picture.data for picture in run(engine_of_comfy).pictures] == [PICTURE]
    assert graphs(comfy) == [SENDING, SENDING, SAVING]


def test_a_picture_is_saved_if_the_socket_cannot_be_opened_again(
    comfy: FakeComfyUI, engine_of_comfy: Engine
) -> None:
    async def script(comfy: FakeComfyUI, job: str) -> None:
        comfy.opens_sockets = False
        await (draw_and_lose if len(comfy.submitted) == 1 else draw)(comfy, job)

    comfy.script = script
    assert [picture.data for picture in run(engine_of_comfy).pictures] == [PICTURE]
    assert graphs(comfy) == [SENDING, SAVING]
    with pytest.raises(EngineUnreachable):
        run(engine_of_comfy)


def test_without_a_graph_that_saves_it_gives_up(comfy: FakeComfyUI, engine_of_comfy: Engine) -> None:
    comfy.script = draw_and_lose
    with pytest.raises(NoPictures, match="lost 3 times"):
        run(engine_of_comfy, saving_graph=None)
    assert graphs(comfy) == [SENDING] * 3


def test_a_pending_job_is_submitted_again_at_once(comfy: FakeComfyUI, engine_of_comfy: Engine) -> None:
    """Its pictures would be sent to a socket that is gone."""

    async def script(comfy: FakeComfyUI, job: str) -> None:
        if len(comfy.submitted) == 1:
            await comfy.drop_sockets()
        else:
            await draw(comfy, job)

    comfy.script = script
    outcome = run(engine_of_comfy)
    assert comfy.deleted == [outcome.prompt_id]
    assert graphs(comfy) == [SENDING, SENDING]


def test_a_pending_job_that_starts_meanwhile_runs_to_its_end_first(
    comfy: FakeComfyUI, engine_of_comfy: Engine
) -> None:
    async def script(comfy: FakeComfyUI, job: str) -> None:
        if len(comfy.submitted) > 1:
            await draw(comfy, job)
            return
        comfy.starts_when_deleted = job
        await comfy.drop_sockets()
        while job not in comfy.deleted:
            await comfy.pause()
        comfy.finish(job, None)

    comfy.script = script
    assert run(engine_of_comfy).pictures
    assert graphs(comfy) == [SENDING, SENDING]


def test_pictures_that_come_later_than_the_history_are_awaited(
    comfy: FakeComfyUI, engine_of_comfy: Engine
) -> None:
    """ComfyUI encodes them one after another while it already answers that the job is done."""

    async def script(comfy: FakeComfyUI, job: str) -> None:
        await comfy.start(job)
        comfy.finish(job, None)
        while not comfy.history_requests:
            await comfy.pause()
        await send_picture(comfy, job, b"first")
        for _ in range(200):  # longer than the silence in which events are awaited that do not bring pictures
            await comfy.pause()
        await send_picture(comfy, job, b"second")
        await comfy.send(job, "execution_success")

    comfy.script = script
    assert [picture.data for picture in run(engine_of_comfy).pictures] == [b"first", b"second"]
    assert graphs(comfy) == [SENDING]


def test_a_socket_that_delivers_nothing_is_found_out_once(
    comfy: FakeComfyUI,
    engine_of_comfy: Engine,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """As behind a proxy that opens WebSockets and holds their messages back."""
    monkeypatch.setattr(engine.job_runner, "_FRAMES_TIMEOUT_S", 0.2)

    async def script(comfy: FakeComfyUI, job: str) -> None:
        comfy.pending.remove(job)
        comfy.finish(job, None if graphs(comfy)[-1] == SENDING else "picture.png")

    comfy.script = script
    for _ in range(2):
        assert [picture.data for picture in run(engine_of_comfy).pictures] == [PICTURE]
    assert graphs(comfy) == [SENDING, SAVING, SAVING]
    assert caplog.text.count("is open but delivers nothing") == 1


def test_a_picture_that_takes_long_over_a_slow_network_is_awaited(
    comfy: FakeComfyUI, engine_of_comfy: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No whole message comes for longer than the time after which a socket counts as silent, but parts of one do."""
    monkeypatch.setattr(engine.job_runner, "_FRAMES_TIMEOUT_S", 2.0)
    monkeypatch.setattr(engine.job_runner, "_DRAIN_TIMEOUT_S", 0.1)
    picture = b"x" * 60_000

    async def script(comfy: FakeComfyUI, job: str) -> None:
        await comfy.start(job)
        comfy.finish(job, None)
        transport = comfy.transport_of(job)
        message = frame_of(picture_message(job, picture))
        for part in range(0, len(message), 6000):  # 11 parts, 0.4 s apart
            transport.write(message[part : part + 6000])
            await asyncio.sleep(0.4)
        await comfy.send(job, "execution_success")

    comfy.script = script
    assert [picture.data for picture in run(engine_of_comfy).pictures] == [picture]
    assert graphs(comfy) == [SENDING]


def test_silence_before_the_job_ended_is_no_silence_of_the_socket(
    comfy: FakeComfyUI, engine_of_comfy: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node may run for a minute without an event. Its picture comes a moment after the history."""
    monkeypatch.setattr(engine.job_runner, "_FRAMES_TIMEOUT_S", 3.0)
    monkeypatch.setattr(engine.job_runner, "_DRAIN_TIMEOUT_S", 0.1)

    async def script(comfy: FakeComfyUI, job: str) -> None:
        await comfy.start(job)
        await asyncio.sleep(3.5)
        comfy.finish(job, None)
        before = comfy.history_requests
        while comfy.history_requests == before:
            await comfy.pause()
        await asyncio.sleep(0.5)
        await send_picture(comfy, job)
        await comfy.send(job, "execution_success")

    comfy.script = script
    assert run(engine_of_comfy).pictures
    assert graphs(comfy) == [SENDING]


def test_the_late_end_of_a_run_is_not_taken_for_the_end_of_the_next_one(
    comfy: FakeComfyUI, engine_of_comfy: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both have the same id, and the socket that was silent delivers what it held back."""
    monkeypatch.setattr(engine.job_runner, "_FRAMES_TIMEOUT_S", 0.2)
    monkeypatch.setattr(engine.job_runner, "_DRAIN_TIMEOUT_S", 0.1)
    shown: list[Any] = []

    async def script(comfy: FakeComfyUI, job: str) -> None:
        if len(comfy.submitted) == 1:
            comfy.pending.remove(job)
            comfy.finish(job, None)
            return
        await comfy.start(job)
        late = comfy.submitted[0]["client_id"]
        end = {"type": "execution_success", "data": {"prompt_id": job}}
        await comfy.sockets[late].send_bytes(picture_message(job, b"late"))
        await comfy.sockets[late].send_str(json.dumps(end))
        before = comfy.queue_requests
        while comfy.queue_requests < before + 2:  # the job is still followed
            await comfy.pause()
        await comfy.succeed(job)

    comfy.script = script
    outcome = run(engine_of_comfy, on_progress=shown.append)
    assert [picture.data for picture in outcome.pictures] == [PICTURE]
    assert graphs(comfy) == [SENDING, SAVING]
    assert shown == []


def test_pictures_come_over_the_socket_again_once_it_delivers_something(
    comfy: FakeComfyUI, engine_of_comfy: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine.job_runner, "_FRAMES_TIMEOUT_S", 0.2)

    async def script(comfy: FakeComfyUI, job: str) -> None:
        if len(comfy.submitted) > 3:
            await draw(comfy, job)
            return
        comfy.pending.remove(job)
        comfy.finish(job, None if graphs(comfy)[-1] == SENDING else "picture.png")
        if len(comfy.submitted) == 3:
            await comfy.send(job, "executing", node=None)

    comfy.script = script
    comfy.object_info = {"SaveImageWebsocket": {}}
    assert engine_of_comfy.sends_pictures
    run(engine_of_comfy)
    assert not engine_of_comfy.sends_pictures
    run(engine_of_comfy)
    assert engine_of_comfy.sends_pictures
    assert run(engine_of_comfy).pictures
    assert graphs(comfy) == [SENDING, SAVING, SAVING, SENDING]


def test_without_a_graph_that_saves_a_silent_socket_is_reported_at_once(
    comfy: FakeComfyUI, engine_of_comfy: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine.job_runner, "_FRAMES_TIMEOUT_S", 0.2)

    async def script(comfy: FakeComfyUI, job: str) -> None:
        comfy.pending.remove(job)
        comfy.finish(job, None)

    comfy.script = script
    with pytest.raises(NoPictures, match="Let the proxy"):
        run(engine_of_comfy, saving_graph=None)
    assert graphs(comfy) == [SENDING]


def test_a_request_whose_time_ends_while_pictures_are_awaited_timed_out(
    comfy: FakeComfyUI, engine_of_comfy: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    async def script(comfy: FakeComfyUI, job: str) -> None:
        comfy.pending.remove(job)
        comfy.finish(job, None)

    comfy.script = script
    with pytest.raises(JobTimedOut):
        run(engine_of_comfy, timeout_s=2)
    assert graphs(comfy) == [SENDING]
    assert "delivers nothing" not in caplog.text


def test_the_times_of_all_attempts_are_reported(comfy: FakeComfyUI, engine_of_comfy: Engine) -> None:
    first_ran = threading.Event()

    async def script(comfy: FakeComfyUI, job: str) -> None:
        if len(comfy.submitted) > 1:
            await draw(comfy, job)
            return
        await comfy.start(job)
        for _ in range(40):
            await comfy.pause()
        first_ran.set()
        await comfy.drop_sockets()
        comfy.finish(job, None)

    comfy.script = script
    outcome = run(engine_of_comfy)
    assert first_ran.is_set()
    assert outcome.run_s >= 40 * 0.005


def test_a_job_that_is_drawn_again_can_be_cancelled(comfy: FakeComfyUI, engine_of_comfy: Engine) -> None:
    async def script(comfy: FakeComfyUI, job: str) -> None:
        if len(comfy.submitted) == 1:
            await draw_and_lose(comfy, job)
        else:
            await comfy.start(job)

    comfy.script = script
    with pytest.raises(RequestCancelled):
        run(engine_of_comfy, cancelled=lambda: len(comfy.submitted) == 2)
    wait_until(lambda: not comfy.running)
    assert comfy.interrupted == [comfy.submitted[0]["prompt_id"]]


def test_a_node_that_fails_is_not_run_again(comfy: FakeComfyUI, engine_of_comfy: Engine) -> None:
    async def script(comfy: FakeComfyUI, job: str) -> None:
        await comfy.start(job)
        await comfy.drop_sockets()
        comfy.close_job(
            job, "error", [["execution_error", {"node_id": "save", "exception_message": "no"}]], {}
        )

    comfy.script = script
    with pytest.raises(NodeFailed):
        run(engine_of_comfy)
    assert len(comfy.submitted) == 1
