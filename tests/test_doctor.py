"""`easel doctor`: what it finds, in which order, and its exit status."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest

from commands.doctor_checks import (
    check_clock,
    check_completion,
    check_python,
    file_limit_findings,
    stack_problem,
)
from commands.finding import Finding, by_importance
from commands.first_models import download_bytes, first_models
from commands.run_doctor import with_options
from compiler import Catalogue
from sketch import SketchProcess
from state_format import FORMAT
from tests.conftest import ROOT, SMALL_CATALOGUE, MakeApp
from tests.server.running import running
from tests.stand_in_servers import LLAMA_ROUTER, comfyui, stand_in


def findings(make_app: MakeApp, **settings: Any) -> tuple[int, dict[str, dict[str, Any]]]:
    """Exit status, and the findings by their codes, with a small catalogue."""
    settings = {"catalogue": str(SMALL_CATALOGUE / "catalogue.yaml"), **settings}
    result = make_app(**settings).test_cli_runner().invoke(args=["doctor", "--json"])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.output
    document = json.loads(result.stdout)
    assert document["can_draw"] == (result.exit_code == 0)
    return result.exit_code, {finding["code"]: finding for finding in document["findings"]}


def easel(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("EASEL_")}
    command = [sys.executable, "-m", "easel", *arguments]
    return subprocess.run(
        command, cwd=ROOT, env={**kept, **variables}, capture_output=True, text=True, timeout=120
    )


def test_nothing_prevents_drawing_with_an_engine_that_has_a_model(make_app: MakeApp) -> None:
    status, found = findings(make_app, port=0)
    assert status == 0
    assert {"python.ok", "data.ok", "engine.ok", "models.ok", "catalogue.ok", "keys.ok", "clock.ok"} <= set(
        found
    )
    assert found["server.not_running"]["fix"] == "easel run"
    assert all(finding["severity"] != "error" for finding in found.values())


def test_what_is_wrong_comes_first_and_each_finding_is_complete(make_app: MakeApp, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    app = make_app(port=0, state_dir=str(tmp_path / "file/state"), engine__url="http://127.0.0.1:9")
    result = app.test_cli_runner().invoke(args=["doctor"])
    assert result.exit_code == 1
    severities = re.findall(r"^(error|warning|hint|ok) ", result.stdout, re.MULTILINE)
    order = ["error", "warning", "hint", "ok"]
    assert severities == sorted(severities, key=order.index)
    assert severities.count("error") == result.stdout.split("ok ")[0].count("fix: ") - severities.count(
        "hint"
    ) - (severities.count("warning"))
    assert "Something prevents drawing. 2 errors" in result.stdout


def test_a_data_folder_of_a_newer_version_is_named(make_app: MakeApp, tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state/format.json").write_text(json.dumps({"format": FORMAT + 1, "easel": "9.9.9"}))
    status, found = findings(make_app, port=0, state_dir=str(tmp_path / "state"))
    assert status == 1
    assert found["data.too_new"]["severity"] == "error"
    assert "newer Easel, 9.9.9" in found["data.too_new"]["message"]
    assert "data.ok" not in found


def test_a_wrong_setting_is_named_with_its_line_and_all_else_is_checked_that_can_be(tmp_path: Path) -> None:
    config = tmp_path / "my.yaml"
    config.write_text("port: 8080\nengin:\n  url: x\nworkers: none\n")
    done = easel("--config", str(config), "doctor", "--json")
    document = json.loads(done.stdout)
    assert (done.returncode, document["can_draw"]) == (1, False)
    errors = [finding for finding in document["findings"] if finding["severity"] == "error"]
    assert [finding["code"] for finding in errors] == ["settings.invalid", "settings.invalid"]
    assert errors[0]["message"].startswith("my.yaml:2: engin")
    assert errors[1]["message"].startswith("my.yaml:4: workers")
    assert str(config) in errors[0]["fix"]
    assert {"python.ok", "clock.ok"} <= {finding["code"] for finding in document["findings"]}


def test_a_port_that_another_program_has_is_named_with_that_program_and_a_free_one(make_app: MakeApp) -> None:
    with stand_in(LLAMA_ROUTER, server="llama.cpp") as url:
        port = int(url.rpartition(":")[2])
        status, found = findings(make_app, port=port)
    assert status == 1
    assert found["server.port_taken"]["message"].startswith(f"Port {port} is taken by llama-server b1")
    free = re.match(r"easel run --port (\d+) ", found["server.port_taken"]["fix"])
    assert free
    assert int(free[1]) > port
    assert found["llm.not_listed"]["severity"] in ("hint", "warning")


def test_a_comfyui_that_no_setting_names_is_found_on_its_port(make_app: MakeApp) -> None:
    with stand_in(comfyui()) as url:
        port = int(url.rpartition(":")[2])
        status, found = findings(make_app, port=port, engine__url="", engine__sketch=False)
    assert status == 1
    assert found["engine.unreachable"]["message"].startswith(
        f"ComfyUI 0.33.0 answers at {url}, and engine.url"
    )
    assert found["engine.unreachable"]["fix"].startswith(f"EASEL_ENGINE_URL={url} ")


def test_a_public_address_without_keys_is_an_error_and_trusting_all_proxies_a_warning(
    make_app: MakeApp,
) -> None:
    status, found = findings(make_app, port=0, host="0.0.0.0", trusted_proxies=("0.0.0.0/0",))
    assert status == 1
    assert found["keys.missing"]["fix"] == "easel keys add NAME"
    assert found["proxy.trusts_everyone"]["severity"] == "warning"
    status, found = findings(
        make_app, port=0, host="0.0.0.0", api_keys=("k",), public_url="http://localhost:1"
    )
    assert (status, "keys.ok" in found, "proxy.public_url_is_local" in found) == (0, True, True)


def test_an_llm_stack_that_answers_otherwise_prevents_drawing_and_one_that_is_down_does_not(
    make_app: MakeApp,
) -> None:
    with stand_in({}) as url:
        stacks = ({"driver": "ollama", "url": url}, {"driver": "vllm", "url": "http://127.0.0.1:9"})
        status, found = findings(make_app, port=0, llm__stacks=stacks)
    assert status == 1
    assert found["llm.unusable"]["severity"] == "error"
    assert url in found["llm.unusable"]["message"]
    assert found["llm.not_running"]["severity"] == "hint"


def test_a_fault_in_the_owners_folder_and_in_the_catalogue_is_found(
    make_app: MakeApp, tmp_path: Path
) -> None:
    own = tmp_path / "own"
    own.mkdir()
    (own / "mine.yaml").write_text("models: [")
    status, found = findings(make_app, port=0, catalogue_dir=str(own))
    assert (status, found["catalogue.own_fault"]["fix"]) == (0, "easel check-catalogue")
    assert "mine.yaml" in found["catalogue.own_fault"]["message"]
    (tmp_path / "broken.yaml").write_text("models: [")
    status, found = findings(
        make_app, port=0, catalogue=str(tmp_path / "broken.yaml"), state_dir=str(tmp_path / "s")
    )
    assert (status, found["catalogue.invalid"]["severity"]) == (1, "error")


def test_without_a_complete_model_nothing_can_be_drawn_and_one_is_named_with_its_size(
    make_app: MakeApp, shipped_catalogue: Catalogue
) -> None:
    with SketchProcess(nodes=shipped_catalogue.nodes, files={}) as bare:
        status, found = findings(make_app, port=0, engine__url=bare.url)
    assert (status, found["models.none_ready"]["severity"]) == (1, "error")
    assert re.fullmatch(r"easel pull-model \S+   # \d+\.\d GB", found["models.none_ready"]["fix"])


def test_a_default_model_without_its_files_is_named_while_others_can_draw(
    make_app: MakeApp, shipped_catalogue: Catalogue, catalogue_files: dict[str, list[str]]
) -> None:
    default = shipped_catalogue.models["sdxl-turbo"].checkpoint
    files = {place: [name for name in names if name != default] for place, names in catalogue_files.items()}
    with SketchProcess(nodes=shipped_catalogue.nodes, files=files) as partial:
        status, found = findings(make_app, port=0, engine__url=partial.url)
    assert (status, "models.ok" in found) == (0, True)
    assert found["models.default_not_ready"]["fix"].startswith("easel pull-model sdxl-turbo   # 6.9 GB")


def test_each_of_several_engines_is_checked_and_named(
    make_app: MakeApp, shipped_catalogue: Catalogue, sketch_url: str, tmp_path: Path
) -> None:
    def of(*entries: dict[str, Any]) -> tuple[int, list[tuple[str, str, str]]]:
        settings = {"catalogue": str(SMALL_CATALOGUE / "catalogue.yaml"), "engine__url": "", "port": 0}
        app = make_app(**settings, engines=entries)
        result = app.test_cli_runner().invoke(args=["doctor", "--json"])
        found = json.loads(result.stdout)["findings"]
        return result.exit_code, [(each["code"], each["severity"], each["message"]) for each in found]

    with SketchProcess(nodes=shipped_catalogue.nodes, files={}) as bare:
        good = {"name": "good", "url": sketch_url}
        empty = {"name": "empty", "url": bare.url}
        dead = {"name": "dead", "url": "http://127.0.0.1:9"}
        status, found = of(good, empty, dead)
        assert status == 0, "one engine draws"
        named = {(code, severity, message.split(":")[0]) for code, severity, message in found}
        assert {
            ("engine.ok", "ok", "Engine good"),
            ("models.ok", "ok", "Engine good"),
            ("engine.ok", "ok", "Engine empty"),
            ("models.none_ready", "warning", "Engine empty"),
            ("engine.unreachable", "warning", "Engine dead"),
        } <= named
        assert "models.default_not_ready" not in {code for code, _, _ in found}
        status, found = of(empty, dead)
        assert status == 1
        assert {code for code, severity, _ in found if severity == "error"} == {
            *("models.none_ready", "engine.unreachable"),
        }
        status, found = of({**good, "models": ["flux-schnell"]}, empty)
        (ok,) = [message for code, _, message in found if code == "models.ok"]
        assert ok == "Engine good: 1 of 1 models can draw: flux-schnell"
        assert (status, "models.default_not_ready" in {code for code, _, _ in found}) == (0, True)


def test_files_that_wait_for_their_licence_only_are_named_with_the_command(
    make_app: MakeApp, shipped_catalogue: Catalogue, tmp_path: Path
) -> None:
    for file in shipped_catalogue.models["sdxl-turbo"].files.values():
        path = tmp_path / "models" / file.folder / file.name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as sparse:
            sparse.truncate(file.size or 1)
    settings = {"licences__accept": "required", "engine__models_dir": str(tmp_path / "models")}
    status, found = findings(make_app, port=0, catalogue=str(ROOT / "catalogue.yaml"), **settings)
    assert (status, found["files.ok"]["message"]) == (0, f"Models: {tmp_path}/models")
    assert found["licences.not_accepted"]["fix"].startswith("easel accept-licence sdxl-turbo")
    assert (
        found["models.default_not_ready"]["fix"]
        == "easel accept-licence sdxl-turbo   # or set images.default_model"
    )
    status, found = findings(make_app, port=0, engine__models_dir=str(tmp_path / "absent"))
    assert found["model.no_models_folder"]["severity"] == "warning"


def test_a_running_server_is_seen_with_its_version(tmp_path: Path) -> None:
    with running(tmp_path / "state") as server:
        done = easel("--state-dir", str(tmp_path / "state"), "doctor", "--json")
        found = {finding["code"]: finding for finding in json.loads(done.stdout)["findings"]}
        assert (done.returncode, found["server.ok"]["message"]) == (0, f"Easel 0.1.0 runs at {server.url}.")
        assert "server.port_taken" not in found


def test_the_checks_of_the_machine_by_values(tmp_path: Path) -> None:
    assert [finding.code for finding in check_python((3, 10, 4))] == ["python.too_old"]
    assert [finding.code for finding in check_python((3, 12, 0))] == ["python.ok"]
    assert [finding.code for finding in check_clock(now=0)] == ["clock.behind"]
    assert [finding.code for finding in file_limit_findings(256, 256)] == ["files.limit_low"]
    assert [finding.code for finding in file_limit_findings(65_536, 256)] == ["files.limit_ok"]
    assert [finding.code for finding in check_completion("easel", tmp_path)] in (["completion.missing"], [])
    (tmp_path / ".bashrc").write_text('eval "$(_EASEL_COMPLETE=bash_source easel)"\n')
    assert [finding.code for finding in check_completion("easel", tmp_path)] == ["completion.ok"]
    assert list(check_completion("flask", tmp_path)) == []


def codes_in(path: Path) -> set[str]:
    """The texts that are the code of a finding, also by way of a variable `code`."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        parts: list[ast.expr] = []
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Finding":
            parts = node.args[:1]
        elif isinstance(node, ast.Assign) and [getattr(each, "id", "") for each in node.targets] == ["code"]:
            parts = [node.value]
        constants = (each for part in parts for each in ast.walk(part) if isinstance(each, ast.Constant))
        found |= {constant.value for constant in constants if isinstance(constant.value, str)}
    return found


def test_the_documents_table_has_exactly_the_codes_of_the_checks() -> None:
    codes = codes_in(ROOT / "commands/doctor_checks.py") | codes_in(ROOT / "commands/run_doctor.py")
    page = (ROOT / "docs/installation.md").read_text("utf-8")
    table = page[page.index("| Codes |") : page.index("## Models")]
    assert set(re.findall(r"`([a-z]+\.[a-z_]+)`", table)) - {"settings.invalid"} == codes
    assert "engine.sketch" in codes


def test_what_a_folder_is_called_does_not_command_the_terminal(make_app: MakeApp, tmp_path: Path) -> None:
    app = make_app(port=0, state_dir=str(tmp_path / "a\x9b31m\u202eb"))
    text = click.unstyle(app.test_cli_runner().invoke(args=["doctor"]).stdout)
    assert "/a?31m?b" in text
    assert all(each.isprintable() for each in text.replace("\n", ""))


def test_each_command_of_a_finding_uses_the_same_files() -> None:
    command = "easel --config 'my \\1.yaml'"
    for fix, expected in (
        ("easel setup --print   # shows the lines", f"{command} setup --print   # shows the lines"),
        (
            "EASEL_ENGINE_URL=http://x easel run   # or: easel setup",
            f"EASEL_ENGINE_URL=http://x {command} run   # or: {command} setup",
        ),
        ("easel --state-dir FOLDER run", "easel --state-dir FOLDER run"),
        ("Correct it in easel.yaml or /srv/easel.", "Correct it in easel.yaml or /srv/easel."),
    ):
        assert with_options(Finding("a.b", "hint", "", fix), command).fix == expected


def test_the_problem_of_an_llm_server_is_a_sentence_that_names_it() -> None:
    url = "http://127.0.0.1:1"
    assert stack_problem("ollama", url, "hangs: no answer within 5 s") == (
        "ollama at http://127.0.0.1:1: hangs: no answer within 5 s."
    )
    assert stack_problem("ollama", url, "ollama at http://x: no.") == "ollama at http://x: no."
    assert stack_problem("mine", None, "failed") == "mine: failed."


def test_findings_are_ordered_by_importance_and_then_by_the_checks() -> None:
    given = [
        Finding(code, severity, "")
        for code, severity in (("a", "ok"), ("b", "error"), ("c", "ok"), ("d", "error"))
    ]  # type: ignore[arg-type]
    assert [finding.code for finding in by_importance(given)] == ["b", "d", "a", "c"]


@pytest.mark.parametrize("gigabytes", [None, 4, 8, 12, 24, 80])
def test_the_first_models_fit_the_gpu_and_can_be_pulled_at_once(
    shipped_catalogue: Catalogue, gigabytes: int | None
) -> None:
    models = first_models(shipped_catalogue, gigabytes * 10**9 if gigabytes else None)
    assert 1 <= len(models) <= 3
    assert len({model.family for model in models}) == len(models)
    for model in models:
        assert (model.min_vram_gb or 0) <= (gigabytes or 4)
        assert all(file.url and file.size and not file.gated for file in model.files.values())
    assert download_bytes(models[0]) == min(map(download_bytes, models))
    old = first_models(shipped_catalogue, 24 * 10**9, "0.3.0")
    assert {"flux2-klein-4b", "z-image-turbo"} & {model.id for model in old} == set()
