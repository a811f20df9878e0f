"""The whole server: two workers, their shared files, their sketch engine, starts and stops."""

from __future__ import annotations

import concurrent.futures
import contextlib
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import requests
from PIL import Image

from app import Container
from engine import Engine
from settings import load_settings
from sketch import SketchProcess
from tests.conftest import NODES, ROOT, SMALL_CATALOGUE
from tests.processes import is_alive
from tests.server.attacks import HEAD, address, attack, read_to_end
from tests.server.running import Server, running, started, stopped
from tests.waiting import wait_until

# --- the first start -------------------------------------------------------------------------------


def test_without_configuration_a_labelled_sketch_is_drawn_and_every_worker_serves_it(tmp_path: Path) -> None:
    with running(tmp_path / "state") as server:
        body = server.draw(prompt="a cat in a hat").json()
        assert body["_hal0"]["engine"] == "sketch"
        # Separate connections, so that both workers respond.
        responses = [requests.get(body["data"][0]["url"], timeout=60) for _ in range(12)]
        assert {response.status_code for response in responses} == {200}
        assert len({response.content for response in responses}) == 1
        assert len(server.workers()) == 2
        assert "sketch engine draws instead" in server.log


def test_many_clients_at_once_get_a_picture_each(tmp_path: Path) -> None:
    with running(tmp_path / "state") as server, concurrent.futures.ThreadPoolExecutor(24) as pool:
        responses = list(pool.map(lambda seed: server.draw(seed=seed, response_format="b64_json"), range(48)))
        assert [response.status_code for response in responses] == [200] * 48
        assert len({response.json()["data"][0]["b64_json"] for response in responses}) == 48


# --- the sketch engine is one child ----------------------------------------------------------------


def test_the_sketch_engine_is_started_again_when_it_is_killed_and_ends_with_the_server(
    tmp_path: Path,
) -> None:
    with running(tmp_path / "state") as server:
        assert server.draw().status_code == 200
        first = server.sketch()
        assert first is not None
        os.kill(first, signal.SIGKILL)
        wait_until(lambda: server.sketch() not in (None, first))
        wait_until(lambda: server.draw().status_code == 200)
        second = server.sketch()
    assert second is not None
    wait_until(lambda: not is_alive(second))


def test_the_sketch_engine_ends_when_the_server_is_killed(tmp_path: Path) -> None:
    with started(tmp_path / "state") as server:
        server.wait_for("sketch engine draws instead")
        sketch = server.sketch()
        assert sketch is not None
        server.process.kill()
        wait_until(lambda: not is_alive(sketch))


def test_no_sketch_engine_runs_beside_a_configured_one(tmp_path: Path, sketch_url: str) -> None:
    with running(tmp_path / "state", EASEL_ENGINE_URL=sketch_url) as server:
        assert server.draw().status_code == 200
        assert server.sketch() is None


# --- killed workers --------------------------------------------------------------------------------


def test_a_killed_worker_is_replaced_and_its_images_are_kept(tmp_path: Path) -> None:
    with running(tmp_path / "state") as server:
        urls = [server.draw(seed=seed).json()["data"][0]["url"] for seed in range(4)]
        before = server.workers()
        for pid in before:
            os.kill(pid, signal.SIGKILL)
        wait_until(lambda: len(server.workers()) == 2 and not set(server.workers()) & set(before))
        wait_until(lambda: server.draw().status_code == 200)
        assert [requests.get(url, timeout=60).status_code for url in urls] == [200] * 4


# --- the catalogue changes while it is served ------------------------------------------------------


def models(server: Server) -> set[str]:
    """The models that the workers list; a new connection may reach either of them."""
    return {
        entry["id"]
        for _ in range(8)
        for entry in requests.get(f"{server.url}/v1/models", timeout=60).json()["data"]
    }


def test_a_valid_edit_is_loaded_and_an_invalid_one_refused_even_by_workers_started_after_it(
    tmp_path: Path,
) -> None:
    text = (SMALL_CATALOGUE / "catalogue.yaml").read_text()
    catalogue = tmp_path / "catalogue.yaml"
    catalogue.write_text(text)
    with running(tmp_path / "state", EASEL_CATALOGUE=str(catalogue)) as server:
        valid = text.replace("  flux-schnell-fp8:\n", "  my-new-model:\n")
        catalogue.write_text(valid)
        wait_until(
            lambda: (
                models(server)
                == {
                    "sdxl-turbo",
                    "sd-1.5-pruned-emaonly",
                    "flux-schnell",
                    "my-new-model",
                    "sdxl-base-1.0",
                    "img",
                }
            )
        )
        assert server.draw(model="my-new-model").status_code == 200

        catalogue.write_text(valid.replace("min_vram_gb: 8", "min_vram_gb: eight"))
        server.wait_for(
            r"is not valid; the last good one stays in use: catalogue.yaml:\d+: models.sdxl-turbo.min_vram_gb"
        )
        assert "my-new-model" in models(server)
        before = server.workers()
        for pid in before:
            os.kill(pid, signal.SIGKILL)
        wait_until(lambda: len(server.workers()) == 2 and not set(server.workers()) & set(before))
        wait_until(lambda: server.draw(model="my-new-model").status_code == 200)
        assert "my-new-model" in models(server)
        wait_until(
            lambda: (
                "eight" in str(requests.get(f"{server.url}/ready", timeout=60).json()["catalogue"]["error"])
            )
        )

        catalogue.write_text(text)
        wait_until(lambda: "my-new-model" not in models(server))


def test_after_a_good_edit_that_one_worker_loaded_and_a_bad_one_both_workers_serve_the_good_edit(
    tmp_path: Path,
) -> None:
    text = (SMALL_CATALOGUE / "catalogue.yaml").read_text()
    catalogue = tmp_path / "catalogue.yaml"
    catalogue.write_text(text)
    with running(tmp_path / "state", EASEL_CATALOGUE=str(catalogue)) as server:
        wait_until(lambda: len(server.workers()) == 2 and server.sketch() is not None)
        first, second = server.workers()
        with stopped(first):
            assert "flux-schnell-fp8" in listing(server)
        valid = text.replace("  flux-schnell-fp8:\n", "  my-new-model:\n")
        with stopped(second):
            catalogue.write_text(valid)
            wait_until(lambda: "my-new-model" in listing(server))
            catalogue.write_text(valid.replace("min_vram_gb: 8", "min_vram_gb: eight"))
            wait_until(lambda: "my-new-model" in listing(server) and "stays in use" in server.log)
        with stopped(first):
            wait_until(lambda: server.log.count("stays in use") == 2)
            wait_until(lambda: "my-new-model" in listing(server))
        with stopped(second):
            assert "my-new-model" in listing(server)


def test_nodes_learned_while_sketches_are_served_are_drawn_at_the_next_request(tmp_path: Path) -> None:
    state, templates = tmp_path / "state", tmp_path / "templates_wf"
    shutil.copytree(SMALL_CATALOGUE / "templates_wf", templates)
    variables = {
        "EASEL_CATALOGUE": str(SMALL_CATALOGUE / "catalogue.yaml"),
        "EASEL_TEMPLATES": str(templates),
        "EASEL_STATE_DIR": str(state),
    }
    tile = ["INT", {"default": 512, "min": 64, "max": 4096}]
    entry = {
        "input": {"required": {"samples": ["LATENT"], "vae": ["VAE"], "tile": tile}},
        "output": ["IMAGE"],
        "output_node": False,
    }
    info = tmp_path / "object_info.json"
    info.write_text(json.dumps({"Tiled (custom)": entry}))
    with running(state, **variables) as server:
        assert server.draw(model="sd-1.5").status_code == 200
        template = templates / "sd15_simple.json.j2"
        text = template.read_text().replace('"class_type": "VAEDecode"', '"class_type": "Tiled (custom)"')
        template.write_text(text.replace('"vae": {{ at.vae }}', '"vae": {{ at.vae }}, "tile": 512'))
        wait_until(lambda: "unknown node class" in server.log)
        done = subprocess.run(
            [sys.executable, "-m", "flask", "--app", "wsgi", "snapshot-nodes", str(info), "--version", "0.99.0"],
            cwd=ROOT, env={**os.environ, **variables}, capture_output=True, text=True, timeout=180, check=False,
        )  # fmt: skip
        assert (done.returncode, "new      Tiled (custom)" in done.stdout) == (0, True), done.stderr
        wait_until(
            lambda: requests.get(f"{server.url}/ready", timeout=60).json()["catalogue"]["not_drawable"] == []
        )
        responses = [server.draw(model="sd-1.5", seed=seed) for seed in range(8)]
        assert [response.status_code for response in responses] == [200] * 8


def listing(server: Server) -> str:
    """The response of a worker that is running; a stopped one may have accepted the connection."""
    while True:
        try:
            return requests.get(f"{server.url}/v1/models", timeout=2).text
        except requests.Timeout:
            pass


def test_an_edit_is_loaded_by_each_worker_without_a_request(tmp_path: Path) -> None:
    text = (SMALL_CATALOGUE / "catalogue.yaml").read_text()
    catalogue = tmp_path / "catalogue.yaml"
    catalogue.write_text(text)
    with running(tmp_path / "state", EASEL_CATALOGUE=str(catalogue)) as server:
        models(server)
        fresh = tmp_path / "fresh.yaml"
        fresh.write_text(text.replace("  flux-schnell-fp8:\n", "  my-new-model:\n"))
        os.utime(fresh, (time.time() - 60, time.time() - 60))
        fresh.replace(catalogue)
        wait_until(lambda: server.log.count("catalogue reloaded") == 2)
        listings = [requests.get(f"{server.url}/v1/models", timeout=60).text for _ in range(12)]
        assert all("my-new-model" in listing for listing in listings)


# --- clients that disconnect, servers that stop ----------------------------------------------------


@pytest.fixture
def slow_sketch(catalogue_files: dict[str, list[str]]) -> object:
    """A sketch engine that takes 20 s for a picture."""
    with SketchProcess(nodes=NODES, files=catalogue_files, render_ms=20_000) as sketch:
        yield sketch


def send_request(server: Server) -> socket.socket:
    """Sends a request on its own connection and does not wait for the response."""
    body = json.dumps({"prompt": "a cat", "size": "256x256", "model": "sd-1.5"}).encode()
    connection = socket.create_connection(address(server))
    head = f"POST /v1/images/generations HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    connection.sendall(head.encode() + body)
    return connection


def test_the_job_of_a_client_that_disconnects_is_cancelled(
    tmp_path: Path, slow_sketch: SketchProcess
) -> None:
    engine = Engine(slow_sketch.url)
    with running(tmp_path / "state", EASEL_ENGINE_URL=slow_sketch.url) as server:
        running_one, waiting_one = send_request(server), send_request(server)
        wait_until(lambda: (len(engine.queue().running), len(engine.queue().pending)) == (1, 1))
        running_one.close()
        waiting_one.close()
        wait_until(lambda: engine.queue().running == engine.queue().pending == ())
        server.wait_for("POST /v1/images/generations 499")
    engine.close()


def test_a_timeout_cancels_the_job_and_is_504(tmp_path: Path, slow_sketch: SketchProcess) -> None:
    engine = Engine(slow_sketch.url)
    with running(tmp_path / "state", EASEL_ENGINE_URL=slow_sketch.url, EASEL_REQUEST_TIMEOUT_S="1") as server:
        response = server.draw(model="sd-1.5")
        assert (response.status_code, response.json()["error"]["code"]) == (504, "engine.timeout")
        assert response.headers["x-should-retry"] == "false"
        wait_until(lambda: engine.queue().running == ())
    engine.close()


def test_sigint_cancels_running_jobs_and_their_clients_get_an_error(
    tmp_path: Path, slow_sketch: SketchProcess
) -> None:
    engine = Engine(slow_sketch.url)
    with running(tmp_path / "state", EASEL_ENGINE_URL=slow_sketch.url) as server:
        with send_request(server) as connection:
            wait_until(lambda: len(engine.queue().running) == 1)
            server.process.send_signal(signal.SIGINT)
            assert b"server.stopping" in read_to_end(connection)
        wait_until(lambda: engine.queue().running == ())
    assert server.process.returncode == 0
    engine.close()


def test_sigterm_lets_a_running_picture_finish(tmp_path: Path, catalogue_files: dict[str, list[str]]) -> None:
    with SketchProcess(nodes=NODES, files=catalogue_files, render_ms=1500) as sketch:
        engine = Engine(sketch.url)
        with (
            running(tmp_path / "state", EASEL_ENGINE_URL=sketch.url) as server,
            send_request(server) as connection,
        ):
            wait_until(lambda: len(engine.queue().running) == 1)
            server.process.send_signal(signal.SIGTERM)
            response = read_to_end(connection)
        assert response.startswith(b"HTTP/1.1 200")
        engine.close()


# --- starts that are refused -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"EASEL_HOST": "0.0.0.0"}, "EASEL_API_KEYS"),
        ({"EASEL_HOST": "::"}, "EASEL_API_KEYS"),
        ({"EASEL_PRT": "80"}, "EASEL_PRT: unknown setting"),
        ({"EASEL_PORT": "eighty"}, "EASEL_PORT: 'eighty' is not allowed"),
        ({"EASEL_CATALOGUE": "/nope.yaml"}, "nope.yaml cannot be read"),
        ({"EASEL_IMAGES_DEFAULT_MODEL": "nope"}, "nope is not in the catalogue"),
        ({"EASEL_STATE_DIR": "/dev/null/x"}, "state_dir cannot be used: .*Set EASEL_STATE_DIR"),
    ],
)
def test_a_start_with_invalid_settings_fails_with_one_sentence(
    tmp_path: Path, variables: dict[str, str], message: str
) -> None:
    with started(tmp_path / "state", **variables) as server:
        assert server.process.wait(60) != 0
        server.wait_for(message.replace("(", r"\("))
        assert "Traceback" not in server.log


def test_a_port_in_use_is_reported_at_once_with_the_setting(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        with started(tmp_path / "state", EASEL_PORT=str(port)) as server:
            assert server.process.wait(60) != 0
            server.wait_for(f"Port {port} of 127.0.0.1 is in use.* set EASEL_PORT")
            assert "Connection in use" not in server.log


def test_the_default_catalogue_is_found_from_a_configuration_file_in_another_folder(tmp_path: Path) -> None:
    config = tmp_path / "etc" / "easel.yaml"
    config.parent.mkdir()
    config.write_text("threads: 64\nmax_waiting: 32\n")
    with running(tmp_path / "state", EASEL_CONFIG=str(config)) as server:
        assert "sdxl-turbo" in models(server)


def test_an_ipv6_address_is_told_as_a_url_that_works(tmp_path: Path) -> None:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        pytest.skip("this machine has no IPv6, so it was NOT tested")
    with started(tmp_path / "state", EASEL_HOST="::1", EASEL_WORKERS="1") as server:
        url = server.wait_for(r"Easel is at (\S+)")[1]
        assert url.startswith("http://[::1]:")
        assert requests.get(f"{url}/health", timeout=60).status_code == 200


def test_a_unix_socket_is_served_and_is_no_address_for_commands(tmp_path: Path, sketch_url: str) -> None:
    path = tmp_path / "easel.sock"
    variables = {
        "EASEL_ENGINE_URL": sketch_url,
        "GUNICORN_CMD_ARGS": f"--bind unix:{path}",
        "EASEL_WORKERS": "1",
        "EASEL_MAX_CLIENT_CONNECTIONS": "1",
    }
    with started(tmp_path / "state", **variables) as server:
        assert server.wait_for(r"Easel is at (\S+)")[1] == f"unix:{path}"
        # The clients behind such a socket cannot be told apart: the limit of connections is not for them.
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(socket.socket(socket.AF_UNIX)) for _ in range(3)]
            for client in clients:
                client.settimeout(60)
                client.connect(str(path))
                client.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert all(client.recv(65536).startswith(b"HTTP/1.1 200") for client in clients)
        assert not (tmp_path / "state" / "server-url").exists()


@pytest.mark.parametrize("stored", [b"https://127.0.0.1:9000", b"http:///:t", b"\xff\x00", None])
def test_the_stored_address_is_used_only_if_it_is_one(tmp_path: Path, stored: bytes | None) -> None:
    container = Container(load_settings({"EASEL_STATE_DIR": str(tmp_path), "EASEL_PORT": "8099"}))
    path = tmp_path / "server-url"
    if stored is None:
        os.mkfifo(path)
    else:
        path.write_bytes(stored)
    url, _ = container.server_address()
    assert url == (
        "https://127.0.0.1:9000" if stored == b"https://127.0.0.1:9000" else "http://127.0.0.1:8099"
    )
    kept = container.address_file(("0.0.0.0", 8098), "https")
    assert kept is not None
    assert kept.restore()
    assert container.server_address()[0] == "https://127.0.0.1:8098"


def test_a_folder_in_place_of_the_lock_file_is_moved_aside(tmp_path: Path, sketch_url: str) -> None:
    (tmp_path / "server.lock" / "x").mkdir(parents=True)
    with running(tmp_path, EASEL_ENGINE_URL=sketch_url, EASEL_WORKERS="1"):
        assert (tmp_path / "server.lock").is_file()


@pytest.mark.parametrize("app", ["wsgi", "app"])
def test_flask_run_is_refused_with_the_right_command(tmp_path: Path, app: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "flask", "--app", app, "run"],
        cwd=ROOT, env={**os.environ, "EASEL_STATE_DIR": str(tmp_path)}, capture_output=True, text=True, timeout=180,
        check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "make run" in done.stderr
    assert "easel run" in done.stderr


def test_a_public_address_needs_keys_or_allow_open(tmp_path: Path) -> None:
    for variables in ({"EASEL_API_KEYS": "k"}, {"EASEL_ALLOW_OPEN": "1"}):
        with running(tmp_path / "state", EASEL_HOST="0.0.0.0", **variables) as server:
            response = requests.get(f"{server.url}/v1/models", timeout=60)
            assert response.status_code == (401 if "EASEL_API_KEYS" in variables else 200)


def test_a_stop_while_a_worker_starts_is_not_lost(tmp_path: Path) -> None:
    """Until a worker has its own signal handlers it has those of the master, which would ignore the signal; gunicorn
    would kill the worker after 30 s. Here that window is two seconds wide."""
    config = tmp_path / "slow_start.conf.py"
    config.write_text(
        f"exec(open({str(ROOT / 'gunicorn.conf.py')!r}).read())\n"
        "import time\n"
        "post_fork = lambda server, worker: time.sleep(2)\n"
    )
    variables = {"EASEL_ENGINE_URL": "http://127.0.0.1:9", "GUNICORN_CMD_ARGS": f"--config {config}"}
    with started(tmp_path / "state", **variables) as server:
        server.wait_for("Booting worker")
        server.process.send_signal(signal.SIGTERM)
        sent_at = time.monotonic()
        server.process.wait(60)
        assert time.monotonic() - sent_at < 25


def test_two_servers_do_not_share_a_state_directory(tmp_path: Path) -> None:
    with running(tmp_path / "state") as first, started(tmp_path / "state") as second:
        assert second.process.wait(90) != 0
        second.wait_for("Another Easel already uses the state directory")
        second.wait_for(f", at {first.url}. Stop it")


# --- malformed requests ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [b"nonsense\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"GET / HTTP/1.1\r\nHost: a\r\nBad Header\r\n\r\n"],
)
def test_a_request_that_is_not_valid_http_gets_the_json_envelope(
    tmp_path: Path, data: bytes, server: Server
) -> None:
    with socket.create_connection(address(server)) as connection:
        connection.sendall(data)
        head, _, body = read_to_end(connection).partition(b"\r\n\r\n")
    assert b"application/json" in head
    assert json.loads(body)["error"]["code"] == "request.malformed"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, sketch_url: str) -> object:
    with running(tmp_path_factory.mktemp("server"), EASEL_ENGINE_URL=sketch_url) as one:
        yield one


@pytest.mark.parametrize("body", [b"ZZ\r\n{}\r\n", b"5\r\n{}\r\n0\r\n\r\n"])
def test_a_malformed_chunked_body_is_a_client_error(server: Server, body: bytes) -> None:
    head = b"POST /v1/images/generations HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    with socket.create_connection(address(server)) as connection:
        connection.sendall(head + body)
        connection.shutdown(socket.SHUT_WR)
        response = read_to_end(connection)
    assert response.startswith(b"HTTP/1.1 400")
    assert b'"request.malformed"' in response
    assert "Traceback" not in server.log


def test_a_body_that_is_too_large_is_refused_while_it_is_still_being_sent(
    tmp_path: Path, sketch_url: str
) -> None:
    with running(tmp_path / "state", EASEL_ENGINE_URL=sketch_url, EASEL_MAX_REQUEST_MB="1") as server:
        response = server.draw(prompt="x" * 20_000_000)
        assert (response.status_code, response.json()["error"]["code"]) == (413, "request.too_large")


def test_a_body_of_twenty_times_the_limit_of_other_routes_is_read(server: Server) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (256, 256)).save(buffer, "PNG")
    files = {"image": ("a.png", buffer.getvalue() + bytes(20_000_000))}
    response = requests.post(
        f"{server.url}/v1/images/edits", files=files, data={"prompt": "a cat"}, timeout=60
    )
    assert response.status_code == 200, response.text[:500]


def test_unfinished_bodies_do_not_count_as_waiting_requests(tmp_path: Path, sketch_url: str) -> None:
    variables = {
        "EASEL_WORKERS": "1",
        "EASEL_THREADS": "8",
        "EASEL_MAX_WAITING": "4",
        "EASEL_ENGINE_URL": sketch_url,
    }
    with (
        running(tmp_path / "state", **variables) as server,
        attack(server, HEAD + b"Content-Length: 100\r\n\r\n{", 20) as connections,
    ):
        assert server.draw().status_code == 200
        for connection in connections:
            connection.sendall(b" " * 98 + b"}")
        answers = [connection.recv(12) for connection in connections]
        assert set(answers) <= {b"HTTP/1.1 422", b"HTTP/1.1 429"}


def test_a_chunked_body_without_a_length_is_read(server: Server) -> None:
    body = (part for part in [b'{"prompt": "a cat", ', b'"size": "256x256"}'])
    headers = {"Content-Type": "application/json"}
    response = requests.post(f"{server.url}/v1/images/generations", data=body, headers=headers, timeout=60)
    assert response.status_code == 200


def test_a_spoofed_forwarded_header_is_ignored(server: Server) -> None:
    headers = {"X-Forwarded-Host": "evil.example", "X-Forwarded-Proto": "https"}
    body = {"prompt": "a cat", "size": "256x256"}
    response = requests.post(f"{server.url}/v1/images/generations", json=body, headers=headers, timeout=60)
    assert response.json()["data"][0]["url"].startswith(server.url)
