"""What runs on a machine: recognized by values, by servers that answer as the real ones do, and from /proc."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from detection import (
    Answer,
    Process,
    Service,
    check_address,
    comfyui_place,
    find_services,
    free_port,
    gpus,
    identify,
    listening_processes,
    memory_bytes,
    ollama_url,
    place_of_folder,
    usual_folders,
)
from errors import SettingsInvalid
from tests.processes import free_port as unused_port
from tests.raw_server import SLOW_ANSWERS, raw_server
from tests.stand_in_servers import (
    LLAMA_ROUTER,
    LLAMA_SINGLE,
    OLLAMA,
    OPEN_WEBUI,
    VLLM,
    comfyui,
    stand_in,
)

LMSTUDIO_OLD: Mapping[str, Any] = {
    "/v1/models": {"data": [{"id": "q", "owned_by": "organization_owner"}]},
    "/api/v0/models": {"data": [{"id": "q", "compatibility_type": "gguf"}]},
}
LMSTUDIO: Mapping[str, Any] = {**LMSTUDIO_OLD, "/api/v1/models": {"models": [{"key": "q"}]}}
LLAMA_SWAP: Mapping[str, Any] = {
    "/v1/models": {"data": [{"id": "q", "owned_by": "llama-swap"}]},
    "/running": {"running": []},
}


def identified(answers: Mapping[str, Any], server: str = "") -> Service | None:
    """By answers of status 200 for these paths, and 404 for all others."""

    def ask(path: str) -> Answer:
        answer = answers.get(path)
        text = answer if isinstance(answer, str) else ""
        return Answer(200 if answer is not None else 404, server, answer, text)

    return identify("http://127.0.0.1:1", ask)


@pytest.mark.parametrize(
    ("answers", "server", "title", "can_unload"),
    [
        (comfyui(), "", "ComfyUI 0.33.0", False),
        (OLLAMA, "", "Ollama 0.12.3", True),
        (LLAMA_ROUTER, "llama.cpp", "llama-server b1", True),
        (LLAMA_SINGLE, "llama.cpp", "llama-server b1", False),
        (LLAMA_SWAP, "", "llama-swap", True),
        (LMSTUDIO, "", "LM Studio", True),
        (LMSTUDIO_OLD, "", "LM Studio", False),
        (VLLM, "uvicorn", "vLLM 0.33.0", True),
        ({**VLLM, "/is_sleeping": None}, "uvicorn", "vLLM 0.33.0", False),
        ({"/openapi.json": {"info": {"title": "Easel", "version": "0.1.0"}}}, "", "Easel 0.1.0", False),
    ],
)
def test_a_server_is_known_by_its_answers(
    answers: Mapping[str, Any], server: str, title: str, can_unload: bool
) -> None:
    service = identified(answers, server)
    assert service is not None
    assert (service.title, service.can_unload, service.kind != "unknown") == (title, can_unload, True)
    assert bool(service.why_not) == (service.is_llm and not can_unload)


@pytest.mark.parametrize(
    ("answers", "server", "title"),
    [
        ({}, "nginx/1.22.1", "another server (nginx/1.22.1)"),
        (OPEN_WEBUI, "", "another server"),  # it answers the path by which others take it for Ollama
        (
            {"/v1/models": {"data": [{"id": "m", "owned_by": "somebody"}]}},
            "",
            "another server (with OpenAI's API, of somebody)",
        ),
        ({"/system_stats": {"system": "x", "devices": 3}}, "", "another server"),
        (
            {"/system_stats": [], "/v1/models": {"data": 7}, "/api/version": "x", "/": []},
            "",
            "another server",
        ),
        (
            {"/v1/models": {"data": [3, {"owned_by": ["x"]}]}},
            "",
            "another server (with OpenAI's API, of ['x'])",
        ),
        ({}, "a\x1b[31m\nb" + "c" * 99, "another server (a[31mb" + "c" * 34 + ")"),
    ],
)
def test_what_is_not_known_is_another_server_and_never_an_llm_server(
    answers: Mapping[str, Any], server: str, title: str
) -> None:
    service = identified(answers, server)
    assert service is not None
    assert (service.kind, service.is_llm, service.title) == ("unknown", False, title)


def test_a_server_that_answers_200_to_every_path_is_not_taken_for_anything() -> None:
    with stand_in({}, unknown={"error": "Unexpected endpoint or method. Returning 200 anyway"}) as url:
        service = find_services([url])[url]
    assert service is not None
    assert service.kind == "unknown"


def test_servers_that_want_a_key_are_named_and_not_asked_further() -> None:
    def locked(server: str, *, has_version: bool = False) -> Service | None:
        open_paths: Mapping[str, Any] = {
            "/version": {"version": "0.33.0"},
            "/openapi.json": {"info": {"title": "vLLM API"}},
        }

        def ask(path: str) -> Answer:
            if has_version and path in open_paths:
                return Answer(200, server, open_paths[path])
            return Answer(401, server)

        return identify("http://127.0.0.1:1", ask)

    answers = {
        "/v1/models": Answer(200, "llama.cpp", LLAMA_SINGLE["/v1/models"]),
        "/props": Answer(401, "llama.cpp"),
    }
    listing = identify("http://127.0.0.1:1", lambda path: answers.get(path, Answer(404, "llama.cpp")))
    assert listing is not None
    assert (listing.kind, listing.needs_key, listing.can_unload) == ("llama-server", True, False)
    llama, vllm, other = locked("llama.cpp"), locked("uvicorn", has_version=True), locked("nginx")
    assert llama is not None
    assert vllm is not None
    assert other is not None
    assert (llama.kind, llama.needs_key, llama.can_unload) == ("llama-server", True, False)
    assert (vllm.kind, vllm.needs_key) == ("vllm", True)
    assert other.title == "a server that wants a login (nginx)"


def test_what_comfyui_says_of_gpu_arguments_and_folders_is_kept() -> None:
    with stand_in(comfyui("/srv/models")) as url:
        service = find_services([url])[url]
    assert service is not None
    assert service.comfyui is not None
    assert (service.comfyui.gpu, service.comfyui.gpu_bytes) == ("NVIDIA GeForce RTX 4090", 24 * 10**9)
    assert service.comfyui.arguments == ("main.py",)
    assert service.comfyui.folders["checkpoints"] == ("/srv/models/checkpoints",)
    cpu = identified(comfyui(device={"name": "cpu", "type": "cpu", "vram_total": 10**9}))
    assert cpu is not None
    assert cpu.comfyui is not None
    assert (cpu.comfyui.gpu, cpu.comfyui.gpu_bytes) == (None, None)


@pytest.mark.parametrize("answer", list(SLOW_ANSWERS))
def test_servers_that_do_not_finish_are_named_in_time_and_do_not_delay_others(answer: str) -> None:
    with raw_server(SLOW_ANSWERS[answer]) as port, stand_in(OLLAMA) as ollama:
        began_at = time.monotonic()
        slow, silent = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{unused_port()}"
        found = find_services([slow, ollama, silent], limit_s=1.0)
        assert time.monotonic() - began_at < 6
    assert found[silent] is None
    assert [service.title if service else None for service in (found[slow], found[ollama])] == [
        "another server (no answer)",
        "Ollama 0.12.3",
    ]


def test_names_that_cannot_be_resolved_are_nobody() -> None:
    url = "http://no-such-host.invalid:8188"
    assert find_services([url], limit_s=2.0) == {url: None}


@pytest.mark.parametrize(
    ("value", "url"),
    [
        ("", None),
        ("0.0.0.0", "http://127.0.0.1:11434"),
        ("0.0.0.0:9999", "http://127.0.0.1:9999"),
        (":9999", "http://127.0.0.1:9999"),
        ("box", "http://box:11434"),
        ("http://box", "http://box:80"),
        ("https://box", "https://box:443"),
        ("[::1]:5", "http://[::1]:5"),
        ('"127.0.0.1:7"', "http://127.0.0.1:7"),
        ("127.0.0.1:99999999", None),
        ("http://[::1", None),
    ],
)
def test_ollamas_variable_in_each_of_its_spellings(value: str, url: str | None) -> None:
    assert ollama_url({"OLLAMA_HOST": value}) == url


# --- processes --------------------------------------------------------------------------------------------


def process(
    proc: Path, number: int, parent: int, arguments: list[str], socket_number: int, folder: str = "/srv"
) -> None:
    """A process as /proc shows it."""
    place = proc / str(number)
    (place / "fd").mkdir(parents=True)
    (place / "cmdline").write_bytes(b"".join(argument.encode() + b"\0" for argument in arguments))
    (place / "stat").write_text(f"{number} (a) b) S {parent} 1 1")
    os.symlink(folder, place / "cwd")
    os.symlink(f"socket:[{socket_number}]", place / "fd/3")
    os.symlink("/dev/null", place / "fd/4")


def test_programs_that_listen_are_found_without_the_workers_that_they_start(tmp_path: Path) -> None:
    (tmp_path / "net").mkdir()
    line = "   0: 0100007F:{port:04X} 00000000:0000 {state} 00000000:00000000 00:00000000 00000000 0 0 {number} 1"
    rows = [(8188, "0A", 11), (8080, "0A", 12), (40000, "0A", 13), (5000, "01", 14)]
    lines = [line.format(port=port, state=state, number=number) for port, state, number in rows]
    (tmp_path / "net/tcp").write_text(
        "  sl  local_address rem_address   st\n" + "\n".join(lines) + "\ngarbage\n"
    )
    process(
        tmp_path, 1, 0, ["/usr/bin/python3.12", "-s", "main.py", "--port", "8188"], 11, "/home/me/ComfyUI"
    )
    process(tmp_path, 2, 0, ["/opt/llama-server", "--port", "8080"], 12)
    process(tmp_path, 3, 2, ["/opt/llama-server", "--port", "40000"], 13)
    process(tmp_path, 4, 0, ["client"], 14)
    (tmp_path / "5").mkdir()  # one that ended meanwhile
    found = {each.id: each for each in listening_processes(tmp_path)}
    assert {number: (each.program, set(each.ports)) for number, each in found.items()} == {
        1: ("main.py", {8188}),
        2: ("llama-server", {8080}),
    }
    assert found[1].folder == Path("/home/me/ComfyUI")


def test_a_real_process_that_listens_is_found() -> None:
    if not Path("/proc/net/tcp").exists():
        pytest.skip("this system has no /proc")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        [mine] = [each for each in listening_processes() if port in each.ports]
    assert mine.id == os.getpid()
    assert mine.folder == Path.cwd()


def test_the_text_of_a_program_is_not_its_name() -> None:
    def program(*arguments: str) -> str:
        return Process(1, 0, arguments, None, frozenset()).program

    assert program("python3", "-c", "key = 'secret'") == "python3"
    assert program("node", "-e", "listen()") == "node"
    assert program("python3", "-m", "gunicorn", "-c", "x.py") == "gunicorn"
    assert program("/usr/bin/python3.11", "-u", "/srv/main.py") == "main.py"


def test_without_proc_there_are_no_processes(tmp_path: Path) -> None:
    assert listening_processes(tmp_path) == ()


# --- folders ----------------------------------------------------------------------------------------------


def models_folder(base: Path) -> Path:
    (base / "models/checkpoints").mkdir(parents=True)
    return base / "models"


def test_the_folder_that_most_of_the_named_ones_are_in_is_that_of_the_models(tmp_path: Path) -> None:
    own, extra = models_folder(tmp_path / "own"), models_folder(tmp_path / "extra")
    folders = {
        "checkpoints": [f"{extra}/checkpoints", f"{own}/checkpoints"],
        "loras": [f"{own}/loras", f"{extra}/loras"],
        "vae": [f"{own}/vae"],
        "custom_nodes": [f"{tmp_path}/own/custom_nodes"],
    }
    place = comfyui_place(folders, (), None)
    assert place is not None
    assert (place.models_dir, place.extra_model_paths) == (own, None)
    elsewhere = {"checkpoints": ["/app/of/a/container/models/checkpoints"]}
    assert comfyui_place(elsewhere, (), None) is None


def test_an_old_comfyui_has_its_models_where_its_command_line_says(tmp_path: Path) -> None:
    models = models_folder(tmp_path / "ComfyUI")
    (tmp_path / "ComfyUI/paths.yaml").write_text("")
    arguments = ("python", "main.py", "--extra-model-paths-config", "paths.yaml")
    place = comfyui_place({}, arguments, tmp_path / "ComfyUI")
    assert place is not None
    assert (place.models_dir, place.extra_model_paths) == (models, tmp_path / "ComfyUI/paths.yaml")
    moved = models_folder(tmp_path / "base")
    place = comfyui_place({}, ("main.py", f"--base-directory={tmp_path}/base"), tmp_path / "ComfyUI")
    assert place is not None
    assert place.models_dir == moved
    assert comfyui_place({}, ("main.py",), None) is None
    assert comfyui_place({}, ("main.py", "--base-directory"), None) is None


def test_paths_that_are_none_and_relative_ones_are_not_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models/checkpoints").mkdir(parents=True)
    for strange in ("x" * 5000, "a\0b"):
        arguments = ("main.py", "--extra-model-paths-config", strange, "--base-directory", strange)
        assert comfyui_place({"checkpoints": (f"/{strange}/checkpoints",)}, arguments, tmp_path / "w") is None
    assert comfyui_place({"checkpoints": ("models/checkpoints",)}, (), None) is None
    assert comfyui_place({}, ("main.py", "--base-directory", "."), None) is None


@pytest.mark.parametrize("claimed", [10**400, -1, "much", 1.5])
def test_a_memory_that_no_gpu_has_is_not_believed(claimed: object) -> None:
    stats = {
        "system": {"comfyui_version": "0.33.0"},
        "devices": [{"name": "cuda:0 A", "type": "cuda", "vram_total": claimed}],
    }
    service = identified({"/system_stats": stats})
    assert service is not None
    assert service.comfyui is not None
    assert (service.comfyui.gpu, service.comfyui.gpu_bytes) == ("A", None)


def test_a_comfyui_that_does_not_run_is_found_in_the_usual_places(tmp_path: Path) -> None:
    assert not any(
        place_of_folder(folder) for folder in usual_folders(tmp_path) if tmp_path in folder.parents
    )
    models = models_folder(tmp_path / "Documents/ComfyUI")
    found = [place for folder in usual_folders(tmp_path) if (place := place_of_folder(folder))]
    assert found[0].models_dir == models


# --- ports and hardware -----------------------------------------------------------------------------------


def test_a_taken_port_is_refused_and_a_free_one_after_it_found() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(SettingsInvalid, match=f"Port {port} of 127.0.0.1 is in use"):
            check_address("127.0.0.1", port)
        free = free_port("127.0.0.1", port)
        assert free is not None
        assert free > port
        check_address("127.0.0.1", free)
    assert free_port("127.0.0.1", 65_535) is None


def test_amds_gpus_are_read_from_the_files_of_their_driver(tmp_path: Path) -> None:
    for number, name in ((0, "Radeon RX 7900 XTX\n"), (1, None)):
        device = tmp_path / f"card{number}/device"
        device.mkdir(parents=True)
        (device / "mem_info_vram_total").write_text("25753026560\n")
        if name:
            (device / "product_name").write_text(name)
    found = gpus(tmp_path)[-2:]
    assert [(gpu.name, gpu.bytes) for gpu in found] == [
        ("Radeon RX 7900 XTX", 25_753_026_560),
        ("AMD GPU", 25_753_026_560),
    ]


def test_the_memory_of_this_machine_is_known() -> None:
    assert (memory_bytes() or 0) > 10**8


def test_looking_imports_neither_flask_nor_requests() -> None:
    code = "import sys; import detection; print({'flask', 'requests', 'pynvml'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "set()"
