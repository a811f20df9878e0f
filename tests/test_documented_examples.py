"""The examples of README.md and docs/catalogue.md do what the pages say."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from settings import load_settings
from tests.conftest import ROOT
from tests.conversation.upstream import upstream
from tests.importer.editor_files import sampler_file
from tests.llm.fake_servers import Answer, FakeOllama
from tests.server.running import Server, running

KEYS = {"OPENROUTER_KEY": "sk-1"}
_FENCE = re.compile(r"^( *)```(\w+)\n(.*?)^\1```$", re.DOTALL | re.MULTILINE)


def blocks(page: str, language: str) -> list[str]:
    """The fenced code blocks of a page that are in `language`."""
    found = _FENCE.findall((ROOT / page).read_text("utf-8"))
    return [textwrap.dedent(text) for _, name, text in found if name == language]


def commands() -> list[str]:
    """Every shell command of the README, one per line."""
    text = "".join(blocks("README.md", "sh")).replace("\\\n", " ")
    return [line.partition(" #")[0].strip() for line in text.splitlines() if line.strip()]


class Ollama(FakeOllama):
    """With the model of the README, and an answer to a chat."""

    def answer(self, method: str, path: str, query: dict[str, str], body: Any) -> Answer:
        if path == "/api/tags":
            return 200, {"models": [{"name": "qwen3:8b", "model": "qwen3:8b"}]}
        if (path, body and body["model"]) == ("/v1/chat/completions", "qwen3:8b"):
            return 200, {"choices": [{"index": 0, "message": {"role": "assistant", "content": "Hello"}}]}
        return super().answer(method, path, query, body)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, sketch_url: str) -> Iterator[tuple[Server, Path]]:
    """A server as `make run` starts it, with the LLM server and the service of the README, and the folder in which
    commands run. The sketch engine stands in for the ComfyUI of the README."""
    folder = tmp_path_factory.mktemp("readme")
    (stacks,) = [text for text in blocks("README.md", "yaml") if "stacks" in text]
    with Ollama() as ollama, upstream() as service:
        (folder / "models").mkdir()
        config = folder / "easel.yaml"
        assert "- preset: openrouter\n" in stacks
        stacks = stacks.replace("- preset: openrouter\n", f"- preset: openrouter\n      url: {service.url}\n")
        config.write_text(
            f"{stacks.replace('http://127.0.0.1:11434', ollama.url)}"
            f"templates: {ROOT}/templates_wf\ncatalogue: {ROOT}/catalogue.yaml\n"
            f"engine: {{url: {sketch_url}, models_dir: {folder}/models}}\n"
        )
        variables = {"EASEL_CONFIG": str(config), "EASEL_GPU_MIN_STAY_S": "0", **KEYS}
        with running(folder / "state", **variables) as server:
            yield server, folder


def run(command: str, server: Server, folder: Path) -> subprocess.CompletedProcess[bytes]:
    words = shlex.split(command.replace("http://127.0.0.1:8080", server.url))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("EASEL_")}
    environment |= {"EASEL_CONFIG": str(folder / "easel.yaml"), "EASEL_STATE_DIR": str(folder / "state")}
    environment |= {**KEYS, "FLASK_APP": str(ROOT / "wsgi.py"), "PYTHONPATH": str(ROOT)}
    if words[0] == ".venv/bin/easel":
        words = [sys.executable, "-m", "easel", *words[1:]]
    return subprocess.run(words, cwd=folder, env=environment, input=b"y\n", capture_output=True, timeout=300)


EASEL = [command for command in commands() if command.startswith(".venv/bin/easel")]
CURL = [command for command in commands() if command.startswith("curl")]
MAKE = [command for command in commands() if re.match(r"(\w+=\S+ )*make ", command)]


def test_every_command_of_the_readme_is_covered_here() -> None:
    assert sorted(EASEL + CURL + MAKE) == sorted(commands())
    assert len(EASEL) >= 7
    assert len(CURL) >= 4


def test_the_commands_of_the_readme_succeed_in_their_order(
    served: tuple[Server, Path], sketch_url: str
) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed, so the README's curl commands are not tested")
    server, folder = served
    for command in [each for each in commands() if each in CURL + EASEL]:
        if "-F mask=@mask.png" in command:
            _write_mask(folder / "mask.png")
        if "my-workflow.json" in command:
            (folder / "my-workflow.json").write_text(json.dumps(sampler_file()))
        command = command.replace("http://127.0.0.1:8188", sketch_url)
        if command.endswith(" demo"):  # tests/test_demo.py looks at what it does
            command += " --seconds 8"
        result = run(command, server, folder)
        output = result.stdout.decode("utf-8", "replace")
        assert result.returncode == 0, f"{command}\n{output}\n{result.stderr.decode()}"
        if command in CURL:
            assert '"error"' not in output, f"{command}\n{output[:500]}"
            assert '"url"' in output or '"b64_json"' in output, f"{command}\n{output[:500]}"
    assert (folder / "cat.png").read_bytes().startswith(b"\x89PNG")


def _write_mask(path: Path) -> None:
    mask = Image.new("L", (512, 512), 0)
    mask.paste(255, (128, 128, 384, 384))
    mask.save(path)


def test_the_python_examples_of_the_readme_print_the_url_of_a_picture_and_chat(
    served: tuple[Server, Path],
) -> None:
    pytest.importorskip("openai")
    server, folder = served
    program = "".join(blocks("README.md", "python")).replace("http://127.0.0.1:8080", server.url)
    result = subprocess.run([sys.executable, "-c", program], cwd=folder, capture_output=True, timeout=300)
    assert result.returncode == 0, result.stderr.decode()
    url, chat = result.stdout.decode().splitlines()
    assert url.startswith(f"{server.url}/api/images/cache/")
    assert chat == "Hello"


def test_the_python_example_of_the_llm_page_chats_and_draws(served: tuple[Server, Path]) -> None:
    pytest.importorskip("openai")
    server, folder = served
    (example,) = [text for text in blocks("docs/llm_stacks.md", "python") if "import OpenAI\n" in text]
    program = example.replace("http://127.0.0.1:8080", server.url)
    program = program.replace("client.chat.", "chat = client.chat.").replace(
        "client.im", "picture = client.im"
    )
    program += "print(chat.choices[0].message.content)\nprint(picture.data[0].url)"
    result = subprocess.run([sys.executable, "-c", program], cwd=folder, capture_output=True, timeout=300)
    assert result.returncode == 0, result.stderr.decode()
    chat, url = result.stdout.decode().splitlines()
    assert chat == "Hello"
    assert url.startswith(f"{server.url}/api/images/cache/")


TUTORIALS = [f"docs/tutorials/{name}.md" for name in ("one_box", "client_without_a_gpu", "administrator")]
STARTED_ELSEWHERE = ("pipx install .", "easel run", "easel setup", "kill %1")
"""Other tests install Easel, start it, and set it up"""


def tutorial_commands(page: str) -> list[str]:
    """The shell commands of a tutorial but those of `STARTED_ELSEWHERE` and those that run in the background."""
    lines = [line.strip() for text in blocks(page, "sh") for line in text.splitlines()]
    return [line for line in lines if line and line not in STARTED_ELSEWHERE and not line.endswith("&")]


@pytest.fixture
def without_keys_afterwards(served: tuple[Server, Path]) -> Iterator[None]:
    """Revokes the keys that a tutorial adds, because from the first one on every request needs one."""
    yield
    server, folder = served
    listed = json.loads(run(".venv/bin/easel keys list --json", server, folder).stdout)
    for key in listed["keys"] if isinstance(listed, dict) else listed:
        assert run(f".venv/bin/easel keys revoke {key['name']}", server, folder).returncode == 0


def test_the_client_of_the_tutorial_draws_streams_and_handles_errors(served: tuple[Server, Path]) -> None:
    pytest.importorskip("openai")
    server, folder = served
    program = "".join(blocks("docs/tutorials/client_without_a_gpu.md", "python"))
    program = program.replace("http://127.0.0.1:8080", server.url)
    result = subprocess.run([sys.executable, "-c", program], cwd=folder, capture_output=True, timeout=300)
    assert result.returncode == 0, result.stderr.decode()
    same, events, *errors = result.stdout.decode().splitlines()
    assert same == "same picture: True"
    assert "image_generation.partial_image" in events
    assert "image_generation.completed" in events
    assert [line.split()[0] for line in errors] == ["400", "404", "400"]
    assert len({line.split()[1] for line in errors}) == 3


@pytest.mark.parametrize("page", TUTORIALS)
def test_the_commands_of_a_tutorial_succeed_in_their_order(
    page: str, served: tuple[Server, Path], without_keys_afterwards: None
) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed, so the curl commands of the tutorials are not tested")
    server, folder = served
    lines = tutorial_commands(page)
    assert len(lines) >= 4
    for line in lines:
        command = line.replace("http://127.0.0.1:8090", "http://127.0.0.1:8080").replace(
            "/tmp/", f"{folder}/"
        )
        if command.startswith("easel "):
            command = f".venv/bin/{command}"
        if "pull-model" in command:  # its files have gigabytes
            command += " --dry-run"
        result = run(command, server, folder)
        output = result.stdout.decode("utf-8", "replace")
        assert result.returncode == 0, f"{line}\n{output}\n{result.stderr.decode()}"
        assert output or "-sf" in line, line


@pytest.mark.parametrize("command", MAKE)
def test_the_make_targets_and_variables_of_the_readme_exist(command: str) -> None:
    *variables, _, target = re.match(r"((?:\w+=\S+ )*)(make) (\S+)", command).groups()  # type: ignore[union-attr]
    makefile = (ROOT / "Makefile").read_text()
    assert re.search(rf"^{target}:", makefile, re.MULTILINE)
    given = dict(word.split("=", 1) for word in " ".join(variables).split())
    load_settings(given, root=ROOT / "docs")


def flask(folder: Path, variables: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("EASEL_")}
    environment = {**kept, **variables, "EASEL_STATE_DIR": str(folder / "state"), "FLASK_APP": "wsgi"}
    return subprocess.run(
        [sys.executable, "-m", "flask", *words],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


def catalogue_and(texts: list[str], folder: Path) -> dict[str, str]:
    """Appends blocks of a page to the project's catalogue as they are; the variables that make commands use it."""
    text = "\n".join([(ROOT / "catalogue.yaml").read_text("utf-8"), *texts])
    (folder / "catalogue.yaml").write_text(text, "utf-8")
    shutil.copytree(ROOT / "templates_wf", folder / "templates_wf", dirs_exist_ok=True)
    return {
        "EASEL_CATALOGUE": str(folder / "catalogue.yaml"),
        "EASEL_TEMPLATES": str(folder / "templates_wf"),
    }


@pytest.mark.parametrize("page", ["README.md", "docs/catalogue.md"])
def test_the_model_that_a_page_adds_can_be_appended_as_it_is(page: str, tmp_path: Path) -> None:
    variables = catalogue_and([text for text in blocks(page, "yaml") if "my-model:" in text], tmp_path)
    checked = flask(tmp_path, variables, "check-catalogue")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    compiled = flask(tmp_path, variables, "compile-workflow", "my-model", "a cat")
    assert "my-model.safetensors" in compiled.stdout, compiled.stderr


def test_all_blocks_of_the_catalogue_page_can_be_appended_one_after_another(tmp_path: Path) -> None:
    variables = catalogue_and(blocks("docs/catalogue.md", "yaml"), tmp_path)
    (template,) = blocks("docs/catalogue.md", "json")
    (tmp_path / "templates_wf/my_workflow.json.j2").write_text(template)
    checked = flask(tmp_path, variables, "check-catalogue")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert "my-model " in checked.stdout
    assert "my-other-model " in checked.stdout


def test_the_catalogue_page_says_which_keys_are_required() -> None:
    clauses = re.split(r"[.;] ", " ".join((ROOT / "docs/catalogue.md").read_text("utf-8").split()))
    schema = json.loads((ROOT / "schemas/catalogue.schema.json").read_text("utf-8"))
    names = ("workflow", "input", "model", "licence", "file", "lora")
    size = schema["$defs"]["model"]["properties"]["size"]
    for rule in (schema, size, *(schema["$defs"][name] for name in names)):
        required = [f"`{key}`" for key in rule["required"]]
        assert any(all(key in clause for key in required) for clause in clauses), required


def test_the_workflow_that_the_catalogue_page_adds_draws_what_a_request_asks_for(tmp_path: Path) -> None:
    texts = [text for text in blocks("docs/catalogue.md", "yaml") if "my_workflow:" in text]
    (template,) = blocks("docs/catalogue.md", "json")
    variables = catalogue_and(texts, tmp_path)
    (tmp_path / "templates_wf/my_workflow.json.j2").write_text(template)
    words = [
        "generate",
        "a cat",
        "--model",
        "my-other-model",
        "--size",
        "320x256",
        "-o",
        str(tmp_path / "cat.png"),
    ]
    drawn = flask(tmp_path, variables, *words)
    assert drawn.returncode == 0, drawn.stdout + drawn.stderr
    assert (tmp_path / "cat.png").read_bytes()[16:24] == (320).to_bytes(4) + (256).to_bytes(4)
