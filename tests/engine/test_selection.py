"""Which engine is used: the configured one, a ComfyUI on its default port, or the sketch engine until a ComfyUI was
seen."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from fake_comfyui import FakeComfyUI

from engine import EngineSelector
from errors import EngineUnreachable

SKETCH = "http://127.0.0.1:1"


class AnyServer:
    """Answers every request with this text and status."""

    def __init__(self, text: str, status: int = 200) -> None:
        body = text.encode()

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> AnyServer:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Installation:
    """A state directory, a ComfyUI on the probed port that can be stopped, and the sketch engine's address."""

    def __init__(self, state: Path, comfy: FakeComfyUI) -> None:
        self.state = state
        self.comfy = comfy
        self.clock = Clock()
        self.sketch: str | None = SKETCH
        self.desktop_url = "http://127.0.0.1:1"

    def selector(self, configured: str | None = None) -> EngineSelector:
        return EngineSelector(
            configured,
            sketch_url=lambda: self.sketch,
            state_dir=self.state,
            probe_urls=(self.comfy.url, self.desktop_url),
            clock=self.clock,
        )

    def start_comfyui(self) -> None:
        self.comfy.call(self.comfy.listen())

    def stop_comfyui(self) -> None:
        self.comfy.call(self.comfy.crash())


@pytest.fixture
def installation(tmp_path: Path) -> Iterator[Installation]:
    """No ComfyUI answers at first."""
    with FakeComfyUI() as comfy:
        installation = Installation(tmp_path / "var", comfy)
        installation.stop_comfyui()
        yield installation
        installation.start_comfyui()


def test_a_configured_engine_is_used_even_if_another_one_answers(installation: Installation) -> None:
    installation.start_comfyui()
    assert installation.selector("http://gpu.example:8188/").current().url == "http://gpu.example:8188"
    assert not installation.state.exists()
    installation.stop_comfyui()


def test_without_a_comfyui_the_sketch_engine_is_used_at_its_current_address(
    installation: Installation,
) -> None:
    selector = installation.selector()
    assert selector.current().url == SKETCH
    installation.sketch = "http://127.0.0.1:2"
    assert selector.current().url == "http://127.0.0.1:2"


def test_who_needs_a_comfyui_does_not_wait_for_the_sketch_engine(installation: Installation) -> None:
    def asked() -> str | None:
        raise AssertionError("the sketch engine was asked for")

    probe_urls = (installation.comfy.url, installation.desktop_url)
    selector = EngineSelector(None, sketch_url=asked, state_dir=installation.state, probe_urls=probe_urls)
    assert selector.comfyui() is None
    installation.start_comfyui()
    again = EngineSelector(None, sketch_url=asked, state_dir=installation.state, probe_urls=probe_urls)
    found = again.comfyui()
    assert found is not None
    assert found.url == installation.comfy.url
    installation.stop_comfyui()


def test_without_any_engine_it_raises_engine_unreachable(installation: Installation) -> None:
    installation.sketch = None
    with pytest.raises(EngineUnreachable, match="no engine is configured"):
        installation.selector().current()


def test_a_comfyui_that_answers_is_used_and_recorded(installation: Installation) -> None:
    installation.start_comfyui()
    assert installation.selector().current().url == installation.comfy.url
    assert json.loads((installation.state / "engine-seen.json").read_text()) == {
        "url": installation.comfy.url
    }
    installation.stop_comfyui()


def test_a_comfyui_that_starts_later_is_found_after_the_probe_interval(installation: Installation) -> None:
    selector = installation.selector()
    assert selector.current().url == SKETCH
    installation.start_comfyui()
    installation.clock.now += 4.9
    assert selector.current().url == SKETCH
    installation.clock.now += 0.2
    assert selector.current().url == installation.comfy.url
    installation.stop_comfyui()


def test_a_seen_comfyui_that_is_away_is_not_replaced_by_the_sketch_engine_and_is_used_once_it_is_back(
    installation: Installation,
) -> None:
    installation.start_comfyui()
    selector = installation.selector()
    selector.current()
    installation.stop_comfyui()
    installation.clock.now += 5.1
    for each in (selector, installation.selector()):
        with pytest.raises(EngineUnreachable, match="does not go back to the sketch engine"):
            each.current()
    installation.start_comfyui()
    assert selector.current().url == installation.comfy.url
    installation.stop_comfyui()


def test_a_comfyui_seen_by_another_process_counts_as_seen(installation: Installation) -> None:
    selector = installation.selector()
    assert selector.current().url == SKETCH
    installation.start_comfyui()
    assert installation.selector().current().url == installation.comfy.url
    installation.stop_comfyui()
    with pytest.raises(EngineUnreachable):
        selector.current()


def test_a_sketch_engine_on_the_probed_port_is_not_a_comfyui(installation: Installation) -> None:
    installation.comfy.sketch = True
    installation.start_comfyui()
    assert installation.selector().current().url == SKETCH
    installation.stop_comfyui()


def test_a_seen_engine_that_is_slow_to_answer_is_still_used(installation: Installation) -> None:
    installation.start_comfyui()
    selector = installation.selector()
    selector.current()
    installation.comfy.slow_stats = threading.Event()
    installation.clock.now += 5.1
    assert selector.current().url == installation.comfy.url
    installation.comfy.slow_stats.set()
    installation.stop_comfyui()


def test_one_caller_probes_while_the_others_use_the_last_result(installation: Installation) -> None:
    selector = installation.selector()
    selector.current()
    installation.start_comfyui()
    installation.comfy.slow_stats = threading.Event()
    installation.clock.now += 5.1
    with ThreadPoolExecutor() as pool:
        prober = pool.submit(selector.current)
        installation.comfy.wait_for(lambda: installation.comfy.stats_requests)
        assert selector.current().url == SKETCH
        installation.comfy.slow_stats.set()
        prober.result()
    assert installation.comfy.stats_requests == 1
    installation.stop_comfyui()


def test_each_engine_is_created_once(installation: Installation) -> None:
    selector = installation.selector(SKETCH)
    with ThreadPoolExecutor(8) as pool:
        assert len({id(engine) for engine in pool.map(lambda _: selector.current(), range(64))}) == 1


# --- ComfyUI Desktop's port -----------------------------------------------------------------------------------------


@pytest.fixture
def desktop(installation: Installation) -> Iterator[FakeComfyUI]:
    """A ComfyUI on the second port."""
    with FakeComfyUI() as desktop:
        installation.desktop_url = desktop.url
        yield desktop


def test_comfyui_desktops_port_is_probed_after_the_first(
    installation: Installation, desktop: FakeComfyUI
) -> None:
    assert installation.selector().current().url == desktop.url
    assert json.loads((installation.state / "engine-seen.json").read_text()) == {"url": desktop.url}


def test_the_first_port_is_preferred_until_the_other_one_was_seen(
    installation: Installation, desktop: FakeComfyUI
) -> None:
    installation.start_comfyui()
    assert installation.selector().current().url == installation.comfy.url
    assert desktop.stats_requests == 0
    installation.stop_comfyui()


def test_the_one_that_was_seen_stays_and_is_replaced_only_when_it_is_gone(
    installation: Installation, desktop: FakeComfyUI
) -> None:
    selector = installation.selector()
    assert selector.current().url == desktop.url
    installation.start_comfyui()
    installation.clock.now += 10
    assert selector.current().url == desktop.url
    desktop.call(desktop.crash())
    installation.clock.now += 10
    assert selector.current().url == installation.comfy.url
    installation.stop_comfyui()
    desktop.call(desktop.listen())


SYSTEM_STATS = '{"system": {"comfyui_version": "0.33.0"}}'


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        *[
            (text, 200)
            for text in ('{"system": {}}', '{"system": "comfyui_version"}', "[]", "<html>", "[" * 100_000)
        ],
        ('{"system": {"comfyui_version": null}}', 200),
        (SYSTEM_STATS, 404),
        (SYSTEM_STATS, 503),
    ],
)
def test_another_server_on_the_second_port_does_not_count(
    installation: Installation, answer: str, status: int
) -> None:
    with AnyServer(answer, status) as other:
        installation.desktop_url = other.url
        assert installation.selector().current().url == SKETCH
    assert not (installation.state / "engine-seen.json").exists()


# --- the file that says which ComfyUI was seen ----------------------------------------------------------------------

DAMAGES = [b"", b"{half", b"[]", b'"x"', b"\xff", b"[" * 100_000, None]


def harm(seen: Path, damage: bytes | None) -> None:
    """Replace the file by these bytes; None: by a folder."""
    seen.unlink(missing_ok=True)
    seen.parent.mkdir(parents=True, exist_ok=True)
    if damage is None:
        seen.mkdir()
    else:
        seen.write_bytes(damage)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_moved_aside_if_nobody_knows_what_it_said(
    installation: Installation, damage: bytes | None
) -> None:
    harm(installation.state / "engine-seen.json", damage)
    assert installation.selector().current().url == SKETCH
    assert [path.suffix for path in installation.state.iterdir()] == [".corrupt"]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_written_again_by_a_process_that_knows_what_it_said(
    installation: Installation, damage: bytes | None
) -> None:
    installation.start_comfyui()
    selector = installation.selector()
    selector.current()
    installation.stop_comfyui()
    harm(installation.state / "engine-seen.json", damage)
    assert selector.current().url == installation.comfy.url
    installation.clock.now += 6
    for each in (selector, installation.selector()):
        with pytest.raises(EngineUnreachable, match="does not go back to the sketch engine"):
            each.current()


def test_after_the_file_was_deleted_a_comfyui_that_answers_is_seen_again_at_once(
    installation: Installation,
) -> None:
    installation.start_comfyui()
    selector = installation.selector()
    selector.current()
    (installation.state / "engine-seen.json").unlink()
    assert selector.current().url == installation.comfy.url
    assert (installation.state / "engine-seen.json").exists()
    installation.stop_comfyui()


def test_after_the_file_was_deleted_a_comfyui_that_is_slow_is_not_forgotten(
    installation: Installation,
) -> None:
    installation.start_comfyui()
    selector = installation.selector()
    selector.current()
    installation.comfy.slow_stats = threading.Event()
    (installation.state / "engine-seen.json").unlink()
    assert selector.current().url == installation.comfy.url
    assert (installation.state / "engine-seen.json").exists()
    installation.comfy.slow_stats.set()
    installation.stop_comfyui()


def test_after_the_file_was_deleted_and_the_comfyui_removed_the_sketch_engine_draws(
    installation: Installation,
) -> None:
    installation.start_comfyui()
    selector = installation.selector()
    selector.current()
    installation.stop_comfyui()
    (installation.state / "engine-seen.json").unlink()
    assert selector.current().url == SKETCH
