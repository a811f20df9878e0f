"""`easel setup`: what it proposes, the file that it writes, and what it never does."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import pytest

from commands.machine import Machine, same_place
from commands.run_setup import (
    asked_comfyui,
    check_text,
    config_file,
    free_port_for,
    models_place,
    ready_models,
    server_url,
)
from commands.setup_plan import (
    Plan,
    differences,
    entries,
    file_text,
    found_comfyuis,
    llm_plans,
    needed_url,
    shares_gpu,
)
from compiler import Catalogue
from detection import Comfyui, ComfyuiPlace, Gpu, Service
from model_files import ModelFolders
from settings import SETTINGS_BY_NAME, load_settings
from tests.conftest import ROOT
from tests.processes import free_port
from tests.stand_in_servers import LLAMA_ROUTER, OLLAMA, comfyui, stand_in

CARD = Gpu("NVIDIA GeForce RTX 4090", 24 * 10**9)
COMFYUI = Service(
    "http://127.0.0.1:8188", "comfyui", "0.33.0", comfyui=Comfyui("cuda:0 RTX 4090", 24 * 10**9)
)
ON_CPU = Service("http://127.0.0.1:8188", "comfyui", "0.33.0", comfyui=Comfyui())
OLLAMA_HERE = Service("http://127.0.0.1:11434", "ollama", "0.12.3", can_unload=True)
SINGLE = Service("http://127.0.0.1:8081", "llama-server", "b1", why_not="it has one model")
LOCKED = Service("http://127.0.0.1:8082", "llama-server", needs_key=True, why_not="it wants a key")
NGINX = Service("http://127.0.0.1:8000", "unknown", name="nginx")


def machine(*services: Service, gpus: Sequence[Gpu] = (CARD,)) -> Machine:
    return Machine(services, (), tuple(gpus), 64 * 10**9)


def plan_of(found: Machine, **fields: Any) -> Plan:
    chosen = next(iter(found_comfyuis(found)), None)
    return Plan(comfyui=chosen, engine_url=needed_url(chosen), llms=llm_plans(found, chosen), **fields)


def text_of(plan: Plan) -> str:
    return file_text(plan, date="2026-11-27", example="/opt/easel.example.yaml")


def loaded(text: str, folder: Path) -> Mapping[str, Any]:
    (folder / "easel.yaml").write_text(text, "utf-8")
    return load_settings({"EASEL_CONFIG": str(folder / "easel.yaml")}).values


# --- what is proposed -------------------------------------------------------------------------------------


def test_an_llm_server_on_the_gpu_of_comfyui_shares_it_and_others_are_forwarded_to() -> None:
    uses = {
        llm.service.kind + str(llm.service.needs_key): llm.use
        for llm in llm_plans(machine(COMFYUI, OLLAMA_HERE, SINGLE, LOCKED, NGINX), COMFYUI)
    }
    assert uses == {"ollamaFalse": "share", "llama-serverFalse": "forward", "llama-serverTrue": "skip"}
    far = Service("http://box:11434", "ollama", can_unload=True)
    assert [llm.use for llm in llm_plans(machine(COMFYUI, far), COMFYUI)] == ["forward"]
    assert [llm.use for llm in llm_plans(machine(ON_CPU, OLLAMA_HERE), ON_CPU)] == ["forward"]
    two = machine(COMFYUI, OLLAMA_HERE, gpus=(CARD, CARD))
    assert llm_plans(two, COMFYUI)[0].reason.startswith("may use ComfyUI's GPU (there are 2)")


def test_whether_a_gpu_is_shared_follows_comfyui_or_the_machine() -> None:
    elsewhere = Service("http://box:8188", "comfyui", comfyui=COMFYUI.comfyui)
    assert shares_gpu(machine(), COMFYUI)
    assert not shares_gpu(machine(), ON_CPU)
    assert not shares_gpu(machine(), elsewhere)
    assert shares_gpu(machine(), None)
    assert not shares_gpu(machine(gpus=()), None)


def test_an_address_is_written_only_where_easel_would_not_look() -> None:
    odd = Service("http://127.0.0.1:8189", "comfyui", "0.33.0", comfyui=Comfyui())
    fast = Service("http://127.0.0.1:8190", "comfyui", "0.33.0", comfyui=COMFYUI.comfyui)
    assert found_comfyuis(machine(odd, fast)) == (fast, odd)
    assert needed_url(COMFYUI) == ""
    assert needed_url(odd) == "http://127.0.0.1:8189"
    assert needed_url(None, "http://box:8188") == "http://box:8188"
    assert needed_url(COMFYUI, "http://box:8188") == "http://127.0.0.1:8188"
    assert found_comfyuis(machine(odd, COMFYUI))[0] is COMFYUI
    assert found_comfyuis(machine(COMFYUI, odd), "http://localhost:8189/")[0] is odd


def test_the_address_of_easel_is_one_that_a_browser_takes() -> None:
    assert server_url("127.0.0.1", 8080) == "http://127.0.0.1:8080"
    assert server_url("0.0.0.0", 8081) == "http://127.0.0.1:8081"
    assert (server_url("::", 1), server_url("fe80::1", 1)) == ("http://[::1]:1", "http://[fe80::1]:1")


def test_localhost_is_the_same_place_as_its_number() -> None:
    assert same_place("http://localhost:11434", "http://127.0.0.1:11434/")
    assert not same_place("http://localhost:11434", "http://127.0.0.1:11435")
    assert not same_place("http://box:80", "http://127.0.0.1:80")
    assert not same_place("http://[::1", "http://127.0.0.1:80")


def test_the_folders_of_a_comfyui_in_a_container_or_elsewhere_are_not_guessed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "ComfyUI/models/checkpoints").mkdir(parents=True)
    contained = Service(
        "http://127.0.0.1:8188",
        "comfyui",
        comfyui=Comfyui(folders={"checkpoints": ("/app/models/checkpoints",)}),
    )
    elsewhere = Service(
        "http://box:8188",
        "comfyui",
        comfyui=Comfyui(folders={"checkpoints": (f"{tmp_path}/ComfyUI/models/checkpoints",)}),
    )
    assert models_place(machine(contained), contained) is None
    assert models_place(machine(elsewhere), elsewhere) is None
    for too_old_or_none in (ON_CPU, None):
        place = models_place(machine(), too_old_or_none)
        assert place is not None
        assert place.models_dir == tmp_path / "ComfyUI/models"


def test_the_models_that_are_complete_on_disk_are_known(shipped_catalogue: Catalogue, tmp_path: Path) -> None:
    model = shipped_catalogue.models["sd-1.5-fp16"]
    for file in model.files.values():
        path = tmp_path / file.folder / file.name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as empty:
            empty.truncate(file.size or 1)
    assert "sd-1.5-fp16" in ready_models(shipped_catalogue, ModelFolders(tmp_path))
    path.write_bytes(b"half of it")
    assert ready_models(shipped_catalogue, ModelFolders(tmp_path)) == ()


# --- the file ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "services",
    [(), (COMFYUI,), (COMFYUI, OLLAMA_HERE, SINGLE, LOCKED, NGINX), (ON_CPU, OLLAMA_HERE), (SINGLE, LOCKED)],
    ids=["nothing", "comfyui", "everything", "cpu", "llms"],
)
def test_the_file_says_what_the_plan_says_and_each_setting_has_its_reason(
    services: tuple[Service, ...], tmp_path: Path
) -> None:
    place = ComfyuiPlace(tmp_path / 'models "x" ü #1', "as ComfyUI says", tmp_path / "extra: paths.yaml")
    plan = plan_of(machine(*services), place=place, port=8081, port_reason="llama-server has port 8080.")
    text = text_of(plan)
    check_text(text, plan)
    values = loaded(text, tmp_path)
    assert values["port"] == 8081
    assert values["engine.models_dir"] == str(place.models_dir)
    assert values["engine.extra_model_paths"] == str(place.extra_model_paths)
    changed = {name for name, value in values.items() if value != SETTINGS_BY_NAME[name].default}
    assert changed == {entry.name for entry in entries(plan)}
    for entry in entries(plan):
        assert f"# {entry.reason}\n" in text
    assert max(map(len, text.splitlines())) < 160


def test_servers_of_one_kind_get_different_names_and_one_with_a_key_only_a_comment(tmp_path: Path) -> None:
    second = Service("http://127.0.0.1:8083", "llama-server", "b2", can_unload=True)
    plan = plan_of(machine(COMFYUI, SINGLE, second, LOCKED))
    text = text_of(plan)
    check_text(text, plan)
    values = loaded(text, tmp_path)
    assert [entry["url"] for entry in values["llm.stacks"]] == [second.url]
    assert [entry["url"] for entry in values["llm.upstreams"]] == [SINGLE.url]
    names = [entry.get("name", entry.get("driver") or entry.get("preset")) for entry in values["llm.stacks"]]
    names += [entry.get("name", entry.get("preset")) for entry in values["llm.upstreams"]]
    assert len(set(names)) == 2
    assert '# llm: {upstreams: [{preset: "llama-server", url: "http://127.0.0.1:8082", key_env: ' in text


def test_what_a_server_says_of_itself_stays_a_comment(tmp_path: Path) -> None:
    hostile = Service("http://127.0.0.1:11434", "ollama", "1\nport: 1\x85x: 2\u2028y: 3", can_unload=True)
    plan = plan_of(machine(COMFYUI, hostile))
    check_text(text_of(plan), plan)
    assert loaded(text_of(plan), tmp_path)["port"] == 8080


@pytest.mark.parametrize(
    "name", ["a\u2028b", "a\x1b[31mb", "a\x85b", "a\x7fb", 'a: "b" # c', "é 😀", "\U000e0001"]
)
def test_each_name_of_a_folder_is_written_so_that_it_is_read_again(tmp_path: Path, name: str) -> None:
    plan = plan_of(machine(COMFYUI), place=ComfyuiPlace(Path("/srv") / name, "as ComfyUI says"))
    text = text_of(plan)
    check_text(text, plan)
    assert loaded(text, tmp_path)["engine.models_dir"] == f"/srv/{name}"
    assert all(each.isprintable() for each in text.replace("\n", ""))


def test_a_text_that_would_not_be_valid_or_says_something_else_is_never_written() -> None:
    plan = plan_of(machine(COMFYUI, OLLAMA_HERE), port=8081)
    with pytest.raises(click.ClickException, match=r"would not be valid.*port"):
        check_text("port: many\n", plan)
    with pytest.raises(click.ClickException, match="would not say what was found"):
        check_text("port: 8081\n", plan)
    odd = plan_of(machine(), place=ComfyuiPlace(Path(os.fsdecode(b"/srv/\xff")), "x"))
    with pytest.raises(click.ClickException, match="not valid Unicode"):
        check_text(text_of(odd), odd)


def test_the_difference_names_what_an_existing_file_lacks(tmp_path: Path) -> None:
    values = loaded(
        "port: 9000\nengine:\n  models_dir: /old\nllm:\n  stacks:\n    - driver: ollama\n      url: http://localhost:11434\n",
        tmp_path,
    )
    place = ComfyuiPlace(Path("/new/models"), "as ComfyUI says")
    plan = plan_of(machine(COMFYUI, OLLAMA_HERE, SINGLE), place=place)
    lines = differences(entries(plan), values)
    assert [line.partition("   #")[0] for line in lines] == [
        '- engine.models_dir: "/old"',
        '+ engine.models_dir: "/new/models"',
        '+ llm.upstreams: {preset: "llama-server", url: "http://127.0.0.1:8081"}',
    ]


def test_another_port_is_proposed_if_a_program_has_ours_and_not_if_it_is_easel() -> None:
    with stand_in(LLAMA_ROUTER, server="llama.cpp") as url:
        port = int(url.rpartition(":")[2])
        taken = machine(Service(url, "llama-server", "b1", can_unload=True))
        other, reason = free_port_for(taken, "127.0.0.1", port)
        assert (other or 0) > port
        assert reason == f"llama-server b1 has port {port}."
        assert free_port_for(machine(Service(url, "easel", "0.1.0")), "127.0.0.1", port) == (None, "")
    assert free_port_for(machine(), "127.0.0.1", free_port()) == (None, "")


# --- the command ------------------------------------------------------------------------------------------


def environment(home: Path, **variables: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("EASEL_", "OLLAMA_"))}
    return {**kept, "HOME": str(home), "EASEL_STATE_DIR": str(home / "state"), **variables}


def setup(home: Path, config: Path, *options: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "easel", "--config", str(config), "setup", *options],
        cwd=ROOT,
        env=environment(home, **variables),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_a_file_is_written_once_with_what_runs_here_and_never_changed(tmp_path: Path) -> None:
    (tmp_path / "ComfyUI/models/checkpoints").mkdir(parents=True)
    config = tmp_path / "new/folder/easel.yaml"
    with stand_in(comfyui(f"{tmp_path}/ComfyUI/models")) as engine, stand_in(OLLAMA) as ollama:
        variables = {"EASEL_ENGINE_URL": engine, "OLLAMA_HOST": ollama}
        first = setup(tmp_path, config, "--yes", **variables)
        assert first.returncode == 0, first.stdout + first.stderr
        values = load_settings({"EASEL_CONFIG": str(config)}).values
        assert values["engine.url"] == engine
        assert values["engine.models_dir"] == f"{tmp_path}/ComfyUI/models"
        assert {"driver": "ollama", "url": ollama} in values["llm.stacks"]
        for text in (
            "Next:",
            f"  easel --config {config} run   # then open http://127.0.0.1:8080\n",
            "pull-model ",
            "ComfyUI 0.33.0",
            "  NVIDIA GeForce RTX 4090, 24.0 GB\n",
        ):
            assert text in first.stdout
        assert re.search(r"pull-model \S+   # \d+\.\d GB", first.stdout)
        written = config.read_bytes()
        again = setup(tmp_path, config, "--yes", **variables)
        assert (again.returncode, config.read_bytes()) == (0, written)
        assert "exists already, and has everything" in again.stdout
        config.write_text("port: 8123\n")
        lacking = setup(tmp_path, config, "--yes", OLLAMA_HOST=ollama)
        assert (lacking.returncode, config.read_text()) == (1, "port: 8123\n")
        assert f'+ llm.stacks: {{driver: "ollama", url: "{ollama}"}}' in lacking.stdout or (
            f'+ llm.upstreams: {{preset: "ollama", url: "{ollama}"}}' in lacking.stdout
        )


def test_print_writes_the_file_to_stdout_alone(tmp_path: Path) -> None:
    config = tmp_path / "easel.yaml"
    printed = setup(tmp_path, config, "--print")
    assert (printed.returncode, config.exists()) == (0, False)
    assert printed.stdout.startswith("# Settings of Easel")
    loaded(printed.stdout, tmp_path)
    assert "Looking at this machine" in printed.stderr


def test_without_a_terminal_it_says_so_at_once_and_with_an_unwritable_place_it_names_config(
    tmp_path: Path,
) -> None:
    config = tmp_path / "easel.yaml"
    silent = setup(tmp_path, config)
    assert (silent.returncode, config.exists()) == (2, False)
    assert "no terminal" in silent.stderr
    (tmp_path / "file").write_text("")
    refused = setup(tmp_path, tmp_path / "file/easel.yaml", "--yes")
    assert refused.returncode == 1
    assert "cannot be written" in refused.stderr
    assert "easel --config FILE setup" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_an_existing_file_with_a_mistake_is_named_and_stays(tmp_path: Path) -> None:
    config = tmp_path / "easel.yaml"
    config.write_text("prot: 1\n")
    refused = setup(tmp_path, config, "--yes")
    assert (refused.returncode, config.read_text()) == (1, "prot: 1\n")
    assert "easel.yaml:1: prot" in refused.stderr
    assert "easel doctor" in refused.stderr


@pytest.mark.parametrize("content", ['port: 9000\nengine: {url: "http://127.0.0.1:9"}\n', "port: [\n"])
def test_another_file_has_no_say_in_a_new_one(tmp_path: Path, content: str) -> None:
    (tmp_path / "usual").mkdir()
    (tmp_path / "usual/easel.yaml").write_text(content)
    code = (
        "import sys, pathlib, installation; usual = pathlib.Path(sys.argv.pop(1)); "
        "installation.config_folder = lambda: usual; "
        "from easel.__main__ import main; main()"
    )
    new = str(tmp_path / "new.yaml")
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "usual"), "--config", new, "setup", "--yes"],
        cwd=ROOT,
        env=environment(tmp_path),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "127.0.0.1:9000" not in done.stdout
    assert 'http://127.0.0.1:9"' not in (tmp_path / "new.yaml").read_text()


def test_without_an_address_a_comfyui_on_a_usual_port_is_named_because_easel_uses_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(click, "prompt", lambda *words, **options: "-")
    found = machine(COMFYUI)
    plan = asked_comfyui(plan_of(found), found, load_settings({}, root=Path(os.devnull)))
    assert (plan.comfyui, plan.engine_url) == (None, "")
    assert "uses the ComfyUI at http://127.0.0.1:8188 while it runs" in capsys.readouterr().out
    assert "Until a ComfyUI answers at port 8188 or 8000, sketches are drawn" in text_of(plan)
    asked_comfyui(plan_of(machine()), machine(), load_settings({}, root=Path(os.devnull)))
    assert capsys.readouterr().out == ""


def test_an_address_where_no_comfyui_answered_says_so() -> None:
    text = text_of(Plan(engine_url="http://box:8188"))
    assert '  # No ComfyUI answered here yet.\n  url: "http://box:8188"\n' in text


def test_a_link_that_leads_nowhere_is_named_and_stays(tmp_path: Path) -> None:
    config = tmp_path / "easel.yaml"
    config.symlink_to(tmp_path / "gone")
    refused = setup(tmp_path, config, "--yes")
    assert (refused.returncode, os.path.lexists(tmp_path / "gone"), config.is_symlink()) == (1, False, True)
    assert f"{config} is a link to a file that does not exist." in refused.stderr


def test_the_name_of_a_folder_does_not_command_the_terminal(tmp_path: Path) -> None:
    models = tmp_path / "a\x9b31m\u202eb/models"
    (models / "checkpoints").mkdir(parents=True)
    config = tmp_path / "easel.yaml"
    with stand_in(comfyui(str(models))) as engine:
        printed = setup(tmp_path, config, "--print", EASEL_ENGINE_URL=engine)
        asked = typed(tmp_path, config, {}, EASEL_ENGINE_URL=engine)
    assert "/a?31m?b/models" in printed.stderr
    assert "[{}]".format(str(models).replace("\x9b", "?").replace("\u202e", "?")) in asked
    for text in (printed.stdout, printed.stderr, asked):
        assert not {"\x9b", "\u202e"} & set(text)
    assert load_settings({"EASEL_CONFIG": str(config)}).values["engine.models_dir"] == str(models)


def test_a_person_is_asked_and_enter_takes_what_is_proposed(tmp_path: Path) -> None:
    (tmp_path / "ComfyUI/models/checkpoints").mkdir(parents=True)
    other = tmp_path / "other"
    (other / "checkpoints").mkdir(parents=True)
    config = tmp_path / "easel.yaml"
    with stand_in(comfyui(f"{tmp_path}/ComfyUI/models")) as engine, stand_in(OLLAMA) as ollama:
        variables = {"EASEL_ENGINE_URL": engine, "OLLAMA_HOST": ollama, "EASEL_PORT": str(free_port())}
        answers = {
            "Address of ComfyUI": "\n",
            "folder `models`": f"{tmp_path}\n",
            "has no folder checkpoints": f"{other}\n",
            "Ollama 0.12.3 at": "n\n",
        }
        output = typed(tmp_path, config, answers, **variables)
    assert "Written:" in output, output
    values = load_settings({"EASEL_CONFIG": str(config)}).values
    assert (values["engine.url"], values["engine.models_dir"]) == (engine, str(other))
    assert not any(entry["url"] == ollama for entry in (*values["llm.stacks"], *values["llm.upstreams"]))


def typed(home: Path, config: Path, answers: Mapping[str, str], **variables: str) -> str:
    """The output of the command in a terminal. `answers`: what is typed when a text has appeared; all else gets Enter."""
    terminal, other_end = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "easel", "--config", str(config), "setup"],
        cwd=ROOT,
        env=environment(home, **variables),
        stdin=other_end,
        stdout=other_end,
        stderr=other_end,
    )
    os.close(other_end)
    output, answered, left = "", 0, dict(answers)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        try:
            part = os.read(terminal, 4096)
        except OSError:
            break
        if not part:
            break
        output += part.decode("utf-8", "replace")
        asked = output[answered:]
        if not re.search(r"(\]|\)|none\)|sketches\)): ?$", asked):
            continue
        key = next((text for text in left if text in asked), None)
        os.write(terminal, (left.pop(key) if key else "\n").encode())
        answered = len(output)
    os.close(terminal)
    process.wait(60)
    return output


def test_the_place_of_the_file_is_that_of_the_version(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("EASEL_CONFIG", raising=False)
    assert config_file() == ROOT / "easel.yaml"
    monkeypatch.setenv("EASEL_CONFIG", str(tmp_path / "x.yaml"))
    assert config_file() == tmp_path / "x.yaml"
