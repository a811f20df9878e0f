"""easel import-workflow, as people run it."""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from PIL import Image

from engine import EngineSelector
from importer.official_templates import PACKAGE
from tests.conftest import MakeApp
from tests.importer.editor_files import node, sampler_file, sampler_graph, socket, subgraph

Import = Callable[..., Result]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "own"


@pytest.fixture
def run(make_app: MakeApp, folder: Path) -> Import:
    app = make_app(catalogue_dir=str(folder))

    def invoke(*arguments: Any) -> Result:
        return app.test_cli_runner().invoke(args=["import-workflow", *map(str, arguments)])

    return invoke


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    return saved(tmp_path / "My Cats (v2).json", sampler_graph())


def saved(path: Path, document: Any) -> Path:
    path.write_text(json.dumps(document))
    return path


def test_an_import_is_shown_and_then_served(make_app: MakeApp, folder: Path, exported: Path) -> None:
    app = make_app(catalogue_dir=str(folder))
    runner = app.test_cli_runner()
    result = runner.invoke(args=["import-workflow", str(exported), "--yes"])
    assert result.exit_code == 0, result.output
    assert "3.text (CLIPTextEncode)" in result.stdout
    assert "checkpoints/a.safetensors" in result.stdout
    assert sorted(path.name for path in folder.iterdir()) == ["my-cats-v2.json.j2", "my-cats-v2.yaml"]
    compiled = (
        make_app(catalogue_dir=str(folder))
        .test_cli_runner()
        .invoke(args=["compile-workflow", "My-Cats-v2", "a dog", "--seed", "7", "--size", "640x512"])
    )
    graph = json.loads(compiled.stdout)
    assert graph["positive"]["inputs"]["text"] == "a dog"
    assert graph["latent"]["inputs"] == {"width": 640, "height": 512, "batch_size": 1}
    assert (graph["sampler"]["inputs"]["seed"], graph["sampler"]["inputs"]["steps"]) == (7, 20)


def test_nothing_is_written_unless_the_user_agrees(run: Import, folder: Path, exported: Path) -> None:
    assert run(exported).exit_code != 0
    assert run(exported, "--dry-run").exit_code == 0
    assert not folder.exists()


def test_what_was_found_can_be_read_by_programs(run: Import, exported: Path) -> None:
    found = json.loads(run(exported, "--dry-run", "--as", "json").stdout)
    assert found["fields"]["prompt"] == {"at": [["3", "text"]], "value": "a cat"}
    assert found["files"]["checkpoint"]["at"] == [["1", "ckpt_name"]]
    assert found["ids"]["6"] == "sampler"


def test_nothing_is_overwritten(run: Import, folder: Path, exported: Path) -> None:
    assert run(exported, "--yes").exit_code == 0
    before = {path.name: path.read_text() for path in folder.iterdir()}
    again = run(exported, "--yes")
    assert (again.exit_code, "choose another name with --name" in again.stderr) == (2, True)
    assert run(exported, "--yes", "--name", "SDXL-Turbo").exit_code == 2
    assert {path.name: path.read_text() for path in folder.iterdir()} == before


def test_a_file_that_is_in_the_way_stays(run: Import, folder: Path, exported: Path) -> None:
    folder.mkdir()
    (folder / "my-cats-v2.json.j2").write_text("mine")
    assert run(exported, "--yes").exit_code == 2
    assert [(path.name, path.read_text()) for path in folder.iterdir()] == [("my-cats-v2.json.j2", "mine")]


def test_of_two_imports_at_once_the_later_names_the_file_of_the_first(
    make_app: MakeApp, folder: Path, exported: Path
) -> None:
    class LateAgreement(io.BytesIO):
        """While the user decides, another import writes."""

        def read1(self, size: int | None = -1, /) -> bytes:
            folder.mkdir(exist_ok=True)
            (folder / "my-cats-v2.json.j2").write_text("of the other")
            return super().read1(size)

    runner = make_app(catalogue_dir=str(folder)).test_cli_runner()
    result = runner.invoke(args=["import-workflow", str(exported)], input=LateAgreement(b"y\n"))
    assert result.exit_code == 2
    assert "my-cats-v2.json.j2 exists already" in result.stderr
    assert [path.read_text() for path in folder.iterdir()] == ["of the other"]


def test_an_import_that_was_killed_between_its_two_files_can_be_repeated(
    run: Import, folder: Path, exported: Path
) -> None:
    assert run(exported, "--yes").exit_code == 0
    files = {path.name: path.read_text() for path in folder.iterdir()}
    (folder / "my-cats-v2.yaml").unlink()
    assert run(exported, "--yes").exit_code == 0
    assert {path.name: path.read_text() for path in folder.iterdir()} == files


def test_a_template_of_the_name_that_is_another_one_is_named(
    run: Import, folder: Path, exported: Path
) -> None:
    assert run(exported, "--yes").exit_code == 0
    (folder / "my-cats-v2.yaml").unlink()
    with (folder / "my-cats-v2.json.j2").open("a") as template:
        template.write(" ")
    result = run(exported, "--yes")
    assert result.exit_code == 2
    assert "Delete it if it is left from an import that was interrupted" in result.stderr


def test_a_link_to_a_folder_that_does_not_exist_is_named(run: Import, folder: Path, exported: Path) -> None:
    folder.symlink_to(folder.with_name("nowhere"))
    result = run(exported, "--yes")
    assert result.exit_code == 5
    assert "is a link to a folder that does not exist; create it" in result.stderr


@pytest.mark.parametrize("earlier", [None, {"versions": {"0.1": {}}}])
def test_nothing_is_learned_by_an_import_that_cannot_write(
    make_app: MakeApp, folder: Path, tmp_path: Path, earlier: Any
) -> None:
    graph = sampler_graph()
    saver = next(entry for entry in graph.values() if entry["class_type"] == "SaveImage")
    graph["99"] = {"class_type": "SharpenByMe", "inputs": {"image": saver["inputs"]["images"]}}
    saver["inputs"]["images"] = ["99", 0]
    entry = {"input": {"required": {"image": ["IMAGE"]}}, "output": ["IMAGE"], "output_node": False}
    described = saved(tmp_path / "info.json", {"SharpenByMe": entry})
    learned = tmp_path / "state/nodes.json"
    app = make_app(catalogue_dir=str(folder))
    if earlier is not None:
        learned.parent.mkdir(exist_ok=True)
        learned.write_text(json.dumps(earlier))

    class LateAgreement(io.BytesIO):
        """While the user decides, somebody writes entries of this name."""

        def read1(self, size: int | None = -1, /) -> bytes:
            folder.mkdir(exist_ok=True)
            (folder / "sharp.yaml").write_text("models: {}")
            return super().read1(size)

    arguments = [
        "import-workflow",
        str(saved(tmp_path / "sharp.json", graph)),
        "--object-info",
        str(described),
    ]
    refused = app.test_cli_runner().invoke(args=arguments, input=LateAgreement(b"y\n"))
    assert (refused.exit_code, "sharp.yaml exists already" in refused.stderr) == (2, True), refused.output
    assert (json.loads(learned.read_text()) if learned.exists() else None) == earlier
    assert [path.name for path in folder.iterdir()] == ["sharp.yaml"]

    (folder / "sharp.yaml").unlink()
    assert app.test_cli_runner().invoke(args=[*arguments, "--yes"]).exit_code == 0
    assert "SharpenByMe" in learned.read_text()


def test_a_name_cannot_lead_out_of_its_place_in_urls(run: Import, exported: Path) -> None:
    found = json.loads(run(exported, "--dry-run", "--as", "json", "--name", "../a/./../b").stdout)
    assert found["model"] == "a/b"


def test_options_decide_what_is_found(run: Import, tmp_path: Path) -> None:
    graph = sampler_graph(n3={"text": ["j", 0]})
    graph["j"] = {
        "class_type": "StringConcatenate",
        "inputs": {"string_a": "a cat", "string_b": "in ink", "delimiter": ", "},
    }
    path = saved(tmp_path / "joined.json", graph)
    assumed = run(path, "--dry-run").stdout
    assert "Assumed: The prompt is j.string_a ('a cat')" in assumed
    assert "--prompt NODE.INPUT decides otherwise" in assumed
    arguments = ("--prompt", "j.string_b", "--expose", "2.strength_model=lora_strength")
    found = json.loads(run(path, "--dry-run", "--as", "json", *arguments).stdout)
    assert found["fields"]["prompt"]["at"] == [["j", "string_b"]]
    assert found["fields"]["lora_strength"]["value"] == 0.5


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--prompt", "3"], "not NODE.INPUT"),
        (["--prompt", "3.none"], "no input none"),
        (["--width", "5.width"], "Name both inputs of the size"),
        (["--expose", "3.text"], "not NODE.INPUT=NAME"),
        (["--expose", "3.text=Bad Name"], "not NODE.INPUT=NAME"),
        (["--expose", "2.strength_model=steps"], "steps is a field of the workflow already (6.steps)"),
        (["--expose", "3.text=words"], "3.text is already the field prompt"),
        (["--expose", "2.strength_model=size"], "size"),
        (["--name", "///"], "no name for a model"),
        (["--output", "99"], "no node 99"),
        (["--name", "x" * 300], "no name for a model"),
        (["--name", "../.."], "no name for a model"),
        (["--title", "a\x1b[31mb"], "characters that cannot be shown"),
        (["--expose", "2.strength_model=own", "--expose", "6.denoise=own"], "two inputs own"),
        (["--image", "3.text"], "names no picture that the answer depends on"),
    ],
)
def test_wrong_options_are_refused(
    run: Import, exported: Path, folder: Path, arguments: list[str], reason: str
) -> None:
    result = run(exported, "--yes", *arguments)
    assert result.exit_code != 0
    assert reason in result.stderr
    assert not folder.exists()


def test_a_node_that_nothing_knows_is_learned_from_a_saved_description(
    make_app: MakeApp, run: Import, folder: Path, tmp_path: Path
) -> None:
    sharpen = node(9, "SharpenByMe", [0.5], [socket("image", "IMAGE", 10)], ["IMAGE"])
    document = sampler_file(more=[sharpen], links=[[11, 9, 0, 8, 0]])
    document["nodes"][7]["inputs"][0]["link"] = 11
    document["links"][9] = [10, 7, 0, 9, 0, "IMAGE"]
    path = saved(tmp_path / "sharp.json", document)
    unknown = run(path, "--yes")
    assert unknown.exit_code == 3
    assert "SharpenByMe" in unknown.stderr
    assert "--object-info" in unknown.stderr
    entry = {
        "input": {
            "required": {"image": ["IMAGE"], "amount": ["FLOAT", {"default": 1.0, "min": 0.0, "max": 2.0}]}
        },
        "output": ["IMAGE"],
        "output_node": False,
    }
    described = saved(tmp_path / "info.json", {"SharpenByMe": entry})
    result = run(path, "--yes", "--object-info", described, "--expose", "9.amount=sharpness")
    assert result.exit_code == 0, result.output
    compiled = (
        make_app(catalogue_dir=str(folder))
        .test_cli_runner()
        .invoke(args=["compile-workflow", "sharp", "a dog", "--set", "sharpness=1.5"])
    )
    assert json.loads(compiled.stdout)["sharpen_by_me"]["inputs"]["amount"] == 1.5


def test_a_workflow_that_calls_paid_services_is_refused(run: Import, tmp_path: Path) -> None:
    graph = sampler_graph(n8={"images": ["paid", 0]})
    graph["paid"] = {"class_type": "FluxProUltraImageNode", "inputs": {"prompt": "a cat"}}
    result = run(saved(tmp_path / "paid.json", graph), "--yes")
    assert result.exit_code == 2
    assert "--allow-api-nodes" in result.stderr


@pytest.mark.parametrize("node_class", ["NodeThatNobodyKnows", "FluxProUltraImageNode"])
def test_nodes_that_do_not_run_need_no_signature(run: Import, tmp_path: Path, node_class: str) -> None:
    more = [
        node(9, node_class, [1], mode=2),
        node(10, node_class, [1], [socket("image", "IMAGE", 11)], ["IMAGE"], mode=4),
    ]
    document = sampler_file(more=more, links=[[11, 7, 0, 10, 0]])
    document["links"][9] = [10, 10, 0, 8, 0, "IMAGE"]
    document["definitions"] = {"subgraphs": [subgraph("unused", [node(1, node_class)], [])]}
    path = saved(tmp_path / "muted.json", document)
    assert run(path, "--dry-run").exit_code == 0
    document["nodes"][-2]["mode"] = 0  # it runs, but nothing needs it
    result = run(saved(path, document), "--dry-run")
    assert result.exit_code == 0
    assert f"No other node needs {node_class}" in result.stderr + result.stdout
    document["nodes"][-1]["mode"] = 0
    result = run(saved(path, document), "--dry-run")
    assert result.exit_code == (2 if "Flux" in node_class else 3)
    assert node_class in result.stderr


def test_an_engine_that_does_not_answer_is_no_reason_to_hide_which_node_is_unknown(
    make_app: MakeApp, tmp_path: Path
) -> None:
    path = saved(tmp_path / "a.json", sampler_file(n2={"type": "NodeThatNobodyKnows"}))
    app = make_app(engine__url="http://127.0.0.1:9", catalogue_dir=str(tmp_path / "own"))
    result = app.test_cli_runner().invoke(args=["import-workflow", str(path)])
    assert result.exit_code == 3
    assert "does not answer" in result.stderr
    assert "NodeThatNobodyKnows" in result.stderr


def test_a_folder_that_cannot_be_written_is_named(run: Import, folder: Path, exported: Path) -> None:
    folder.write_text("a file in the way")
    result = run(exported, "--yes")
    assert result.exit_code == 5
    assert "store" in result.stderr


# --- official templates ---


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The package with ComfyUI's official templates, with two of them."""
    templates = tmp_path / "packages/comfyui_workflow_templates_json/templates"
    templates.mkdir(parents=True)
    (templates.parent / "__init__.py").write_text("")
    listed = {"mediaType": "image", "usage": 5, "size": 7_000_000_000, "title": "Cats"}
    index = [
        {
            "title": "Image",
            "templates": [
                {**listed, "name": "image_cats"},
                {**listed, "name": "image_paid", "title": "Paid", "usage": 9, "openSource": False},
            ],
        }
    ]
    saved(templates / "index.json", index)
    saved(templates / "image_cats.json", sampler_file())
    monkeypatch.syspath_prepend(str(templates.parents[1]))
    yield
    sys.modules.pop(PACKAGE, None)


@pytest.mark.usefixtures("package")
def test_official_templates_are_listed_and_imported(run: Import, folder: Path) -> None:
    lines = run("--list-templates").stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["image_paid", "image_cats"]
    assert "7.0 GB" in lines[1]
    assert lines[0].endswith("calls paid services")
    assert [line.split()[0] for line in run("--list-templates", "CATS").stdout.splitlines()] == ["image_cats"]
    assert run("template:image_cats", "--yes").exit_code == 0
    assert (folder / "image_cats.yaml").exists()


@pytest.mark.usefixtures("package")
@pytest.mark.parametrize("name", ["image_cat", "../index", "index", ""])
def test_a_template_that_does_not_exist_is_refused(run: Import, name: str) -> None:
    result = run(f"template:{name}", "--yes")
    assert result.exit_code == 2
    assert "--list-templates" in result.stderr
    if name == "image_cat":
        assert "image_cats" in result.stderr


def test_without_a_comfyui_a_list_waits_for_no_sketch_engine(
    make_app: MakeApp, tmp_path: Path, package: None
) -> None:
    app = make_app(engine__url="")
    asked: list[bool] = []
    fleet = app.extensions["easel"].fleet
    selector = EngineSelector(
        None, sketch_url=lambda: asked.append(True), state_dir=tmp_path / "state", probe_urls=[]
    )
    fleet.replace([replace(fleet.first, selector=selector)])
    result = app.test_cli_runner().invoke(args=["import-workflow", "--list-templates"])
    assert (result.exit_code, asked) == (0, [])


def test_an_engine_that_is_away_is_asked_once_for_a_list(make_app: MakeApp, package: None) -> None:
    templates = Path(sys.path[0]) / PACKAGE / "templates"
    document = sampler_file()
    document["nodes"][0]["type"] = "NoSuchNode"
    index = json.loads((templates / "index.json").read_text())
    for name in ("image_a", "image_b"):
        index[0]["templates"].append({"name": name, "mediaType": "image", "usage": 1})
        saved(templates / f"{name}.json", document)
    saved(templates / "index.json", index)
    app = make_app(engine__url="http://127.0.0.1:1")
    result = app.test_cli_runner().invoke(args=["import-workflow", "--list-templates"])
    assert result.stdout.count("needs NoSuchNode") == 2, result.output
    assert result.stderr.count("What only a ComfyUI knows is missing") == 1


def test_without_a_source_of_templates_the_command_says_where_they_come_from(run: Import) -> None:
    result = run("--list-templates")
    assert result.exit_code == 2
    assert "comfyui-workflow-templates-json" in result.stderr


# --- the whole corpus, if somebody has it ---

CORPUS = os.environ.get("EASEL_TEST_EDITOR_EXPORTS")


@pytest.mark.skipif(
    not CORPUS,
    reason="NO FILES OF A REAL EDITOR WERE TESTED: set EASEL_TEST_EDITOR_EXPORTS to a folder with NAME/editor.json and "
    "NAME/api.json, where api.json is what ComfyUI's editor exports",
)
def test_files_of_a_real_editor_become_the_graphs_that_it_exports() -> None:
    from importer.editor_file import read_editor_file
    from importer.editor_graph import convert_editor_file
    from tests.importer.editor_files import signatures

    folders = [path.parent for path in Path(str(CORPUS)).glob("*/editor.json")]
    assert folders
    wrong = []
    for folder in folders:
        document = json.loads((folder / "editor.json").read_text())
        expected = json.loads((folder / "api.json").read_text())
        graph = convert_editor_file(read_editor_file(document), signatures()).nodes
        if (
            len(graph) != len(expected)
            or sorted(node["class_type"] for node in graph.values())
            != sorted(node["class_type"] for node in expected.values())
            or (
                set(graph) == set(expected)
                and any(graph[name]["inputs"] != expected[name]["inputs"] for name in expected)
            )
        ):
            wrong.append(folder.name)
    assert wrong == []


def test_an_imported_mask_gets_the_mask_of_a_request(
    make_app: MakeApp, run: Import, folder: Path, tmp_path: Path
) -> None:
    graph = sampler_graph(n6={"latent_image": ["n", 0]})
    graph |= {
        "i": {"class_type": "LoadImage", "inputs": {"image": "cat.png"}},
        "m": {"class_type": "LoadImageMask", "inputs": {"image": "mask.png", "channel": "alpha"}},
        "e": {"class_type": "VAEEncode", "inputs": {"pixels": ["i", 0], "vae": ["1", 2]}},
        "n": {"class_type": "SetLatentNoiseMask", "inputs": {"samples": ["e", 0], "mask": ["m", 0]}},
    }
    del graph["5"]
    result = run(saved(tmp_path / "masked.json", graph), "--yes")
    assert result.exit_code == 0, result.output
    Image.new("RGB", (64, 64)).save(tmp_path / "cat.png")
    Image.new("L", (64, 64), 255).save(tmp_path / "mask.png")
    arguments = ["--image", str(tmp_path / "cat.png"), "--mask", str(tmp_path / "mask.png")]
    compiled = (
        make_app(catalogue_dir=str(folder))
        .test_cli_runner()
        .invoke(args=["compile-workflow", "masked", "a dog", *arguments])
    )
    loader = json.loads(compiled.stdout)["load_image_mask"]["inputs"]
    assert loader["channel"] == "red"
    assert "mask" in loader["image"]
    assert loader["image"] != json.loads(compiled.stdout)["image"]["inputs"]["image"]


@pytest.mark.parametrize(
    "name",
    [
        "response_format",
        "user",
        "style",
        "stream",
        "model",
        "n",
        "images",
        "mask",
        "markup",
        "scheduler",
        "size",
    ],
)
def test_an_input_cannot_have_the_name_of_a_field_of_the_api(run: Import, exported: Path, name: str) -> None:
    result = run(exported, "--dry-run", "--expose", f"2.strength_model={name}")
    assert result.exit_code == 2
    assert f"An input cannot be named {name}: " in result.stderr
    assert run(exported, "--dry-run", "--expose", "2.strength_model=lora_strength").exit_code == 0


def test_a_file_without_an_ending_is_a_file(run: Import, tmp_path: Path) -> None:
    graph = sampler_graph(n8={"images": ["u", 0]})
    graph["m"] = {"class_type": "UpscaleModelLoader", "inputs": {"model_name": "4x-UltraSharp"}}
    graph["u"] = {
        "class_type": "ImageUpscaleWithModel",
        "inputs": {"upscale_model": ["m", 0], "image": ["7", 0]},
    }
    graph["v"] = {"class_type": "VAELoader", "inputs": {"vae_name": "taesd"}}
    graph["7"]["inputs"]["vae"] = ["v", 0]
    result = run(saved(tmp_path / "up.json", graph), "--dry-run", "--as", "json")
    assert result.exit_code == 0, result.output
    files = json.loads(result.stdout)["files"]
    assert {file["name"]: file["folder"] for file in files.values()} == {
        "a.safetensors": "checkpoints",
        "l.safetensors": "loras",
        "4x-UltraSharp": "upscale_models",
    }
