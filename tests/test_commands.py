"""The `flask` commands: output, exit codes and effects."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskCliRunner
from PIL import Image

from commands.context import exit_code
from commands.documents import documents
from compiler import SourcePaths, load_catalogue, read_sources
from engine import NO_CREDENTIALS, Credentials, Engine
from errors import error_classes
from tests.compiler.catalogues import IMAGES, OWN_MODEL, STITCHED, exported, with_workflow, write_sources
from tests.conftest import ROOT, SMALL_CATALOGUE, MakeApp


@pytest.fixture
def run(make_app: MakeApp) -> Any:
    """Runs a command in this process: result.exit_code, .stdout, .stderr."""
    runner: FlaskCliRunner = make_app().test_cli_runner()
    return lambda *args: runner.invoke(args=list(args))


# --- compile-workflow ------------------------------------------------------------------------------


def test_compile_workflow_prints_a_graph_that_the_engine_accepts(run: Any, sketch_url: str) -> None:
    result = run("compile-workflow", "flux-schnell", "a cat", "--seed", "5", "--size", "256x256")
    assert result.exit_code == 0
    graph = json.loads(result.stdout)
    assert graph["sampler"]["inputs"]["seed"] == 5
    engine = Engine(sketch_url)
    outcome = engine.run(graph, prompt_id="11111111-2222-4333-8444-555555555555", timeout_s=30)
    engine.close()
    assert len(outcome.pictures) == 1


def test_compile_workflow_explains_every_value_with_its_origin(run: Any) -> None:
    result = run(
        "compile-workflow",
        "sd-1.5",
        "a cat",
        "--as",
        "explain",
        "--set",
        "steps=3",
        "--set",
        "wings=2",
        "--n",
        "5",
    )
    lines = {line.split()[0]: line for line in result.stdout.splitlines()}
    assert lines["steps"].endswith("3  (request)")
    assert lines["cfg"].endswith("8.0  (workflow)")
    assert lines["width"].endswith("512  (model)")
    assert "templates_wf/sd15_simple.json.j2" in lines["workflow"]
    assert result.stdout.count("picture(s)") == 2
    assert "wings: 2" in lines["ignored"]


def test_compile_workflow_prints_adjusted_and_ignored_values_beside_the_json(run: Any) -> None:
    settings = ("--size", "257x256", "--set", "wings=2", "--set", "steps=20")
    result = run("compile-workflow", "flux-schnell", "a cat", *settings)
    assert json.loads(result.stdout)["sampler"]["inputs"]["steps"] == 8
    assert [line.partition(" (")[0] for line in result.stderr.splitlines()] == [
        "size: 256x256 instead of 257x256",
        "steps: 8 instead of 20",
        "wings: ignored",
    ]


def test_compile_workflow_prints_a_file_for_the_editor_with_the_graph_of_the_first_job(run: Any) -> None:
    settings = ("--seed", "5", "--n", "3", "--size", "512x512", "--set", "steps=50")
    result = run("compile-workflow", "flux-schnell", "a cat", "--as", "editor", *settings)
    assert result.exit_code == 0
    document = json.loads(result.stdout)
    assert document["version"] == 0.4
    (sampler,) = (node for node in document["nodes"] if node["type"] == "KSampler")
    assert sampler["widgets_values"][:3] == [5, "fixed", 8]
    assert "The request has 3 jobs; this is the graph of the first one (seed 5)." in result.stderr
    assert "(DualCLIPLoader), input 'device': the graph leaves it out, the editor sends" in result.stderr
    assert "steps: 8 instead of 50" in result.stderr
    (loader,) = (node for node in document["nodes"] if node["type"] == "UNETLoader")
    assert loader["properties"]["models"][0]["directory"] == "diffusion_models"


def test_compile_workflow_writes_the_editor_file_for_the_engine_that_is_named(
    run: Any, sketch_url: str
) -> None:
    result = run("compile-workflow", "sdxl-turbo", "a cat", "--as", "editor", "--check", sketch_url)
    assert result.exit_code == 0
    assert {"SDTurboScheduler", "SamplerCustom"} <= {
        node["type"] for node in json.loads(result.stdout)["nodes"]
    }


def test_compile_workflow_checks_the_graph_against_an_engine(run: Any, sketch_url: str) -> None:
    result = run("compile-workflow", "sdxl-turbo", "a cat", "--check", sketch_url)
    assert (result.exit_code, f"{sketch_url} can run this graph." in result.stderr) == (0, True)
    assert run("compile-workflow", "sdxl-turbo", "a cat", "--check", "http://127.0.0.1:9").exit_code == 3


@pytest.mark.parametrize(
    ("args", "code", "status"),
    [
        (["compile-workflow", "nope", "a cat"], "image.model_not_curated", 2),
        (["compile-workflow", "sd-1.5", " "], "image.prompt_required", 2),
        (["compile-workflow", "sd-1.5", "a", "--size", "huge"], "request.invalid_value", 2),
        (["compile-workflow", "sd-1.5", "a", "--size", "9x9"], "image.size_not_allowed", 2),
        (["compile-workflow", "sd-1.5", "a", "--set", "steps=0"], "request.invalid_value", 2),
        (["compile-workflow", "sd-1.5", "a", "--set", "steps"], "request.invalid_value", 2),
        (["compile-workflow", "sd-1.5", "a", "--set", "cfg=nan"], "request.invalid_value", 2),
        (["compile-workflow", "sd-1.5", "a", "--set", "cfg=1e999"], "request.invalid_value", 2),
        (["generate", "a", "-o", "/no/such/folder/x.png", "--size", "256x256"], "image.store_unwritable", 5),
        (["compile-workflow", "sd-1.5", "a", "--seed", "-1"], "request.invalid_value", 2),
        (["generate", "a", "-o", "x.gif"], "request.invalid_value", 2),
        (["check-catalogue", "--check", "http://127.0.0.1:9"], "engine.unreachable", 3),
        (["snapshot-nodes", "http://127.0.0.1:9"], "engine.unreachable", 3),
        (["snapshot-nodes", "gone.json", "--version", "1"], "catalogue.invalid", 1),
        (["snapshot-nodes", "gone.json"], "request.invalid_value", 2),
    ],
)
def test_a_failing_command_prints_the_error_code_and_exits_with_its_exit_code(
    run: Any, args: list[str], code: str, status: int
) -> None:
    result = run(*args)
    assert result.exit_code == status, result.output
    assert result.stderr.startswith(code)
    assert "Traceback" not in result.output


def test_every_error_has_an_exit_code() -> None:
    assert {exit_code(error("x")) for error in error_classes()} == {1, 2, 3, 4, 5}


def test_a_quoted_number_is_set_as_text(run: Any) -> None:
    result = run("compile-workflow", "sd-1.5", "a", "--set", 'negative_prompt="123"')
    assert json.loads(result.stdout)["negative"]["inputs"]["text"] == "123"


# --- check-catalogue -------------------------------------------------------------------------------


def test_check_catalogue_reports_errors_with_file_and_line(make_app: MakeApp, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(
        (SMALL_CATALOGUE / "catalogue.yaml").read_text().replace("min_vram_gb: 8", "min_vram_gb: x")
    )
    result = make_app(catalogue=str(tmp_path / "c.yaml")).test_cli_runner().invoke(args=["check-catalogue"])
    assert result.exit_code == 1
    assert result.stderr.startswith("catalogue.invalid: c.yaml:")


def test_check_catalogue_lists_the_models_and_the_files_that_an_engine_lacks(
    run: Any, make_app: MakeApp, tmp_path: Path, sketch_url: str
) -> None:
    assert " models and " in run("check-catalogue", "--check", sketch_url).stdout
    (tmp_path / "c.yaml").write_text(
        (SMALL_CATALOGUE / "catalogue.yaml").read_text().replace("name: ae.", "name: absent.")
    )
    result = (
        make_app(catalogue=str(tmp_path / "c.yaml"))
        .test_cli_runner()
        .invoke(args=["check-catalogue", "--check", sketch_url])
    )
    assert result.exit_code == 3
    assert re.search(r"(?m)^files or nodes are missing \(\d+\)$", result.stdout)
    assert re.search(r"(?m)^  flux-schnell  .*\n      models/vae/absent\.safetensors", result.stdout)
    (download,) = (line for line in result.stdout.splitlines() if "models/vae/absent.safetensors: " in line)
    assert download.strip().endswith("/resolve/main/split_files/vae/ae.safetensors")
    assert result.stdout.count("\n  flux-schnell ") == 1


# --- images ----------------------------------------------------------------------------------------


@pytest.fixture
def colours(tmp_path: Path) -> list[str]:
    """Files with one colour each, and a transparent one."""
    paths = []
    for name in ("red", "lime", "blue", "layer"):
        colour = (0, 0, 255, 128) if name == "layer" else name
        path = tmp_path / f"{name}.png"
        Image.new("RGBA" if name == "layer" else "RGB", (256, 256), colour).save(path)
        paths.append(str(path))
    return paths


@pytest.fixture
def run_stitching(make_app: MakeApp, tmp_path: Path) -> Any:
    """As `run`, with a model `mine` that takes one to three images."""
    sources = with_workflow(STITCHED, tasks=["edit"], images=IMAGES)
    runner = make_app(**write_sources(sources, tmp_path / "sources")).test_cli_runner()
    return lambda *args: runner.invoke(args=list(args))


def test_image_may_be_repeated_for_a_workflow_that_takes_several(
    run_stitching: Any, tmp_path: Path, colours: list[str]
) -> None:
    path, options = tmp_path / "out.png", [word for name in colours[:3] for word in ("--image", name)]
    result = run_stitching("generate", "a hat", "-m", "mine", "-o", str(path), *options)
    assert result.exit_code == 0, result.output
    with Image.open(path) as image:
        assert image.size == (768, 256)
        assert [image.getpixel((x, 128)) for x in (384, 640)] == [(0, 255, 0), (0, 0, 255)]
    result = run_stitching("compile-workflow", "mine", "a hat", *options)
    nodes = json.loads(result.stdout).values()
    names = [node["inputs"]["image"] for node in nodes if node["class_type"] == "LoadImage"]
    assert names == [f"easel/preview-{name}.png [temp]" for name in ("image", "image-2", "image-3")]


def test_another_number_of_images_is_refused(run: Any, run_stitching: Any, colours: list[str]) -> None:
    for runner, model, number in ((run, "sd-1.5", 2), (run_stitching, "mine", 4)):
        options = [word for name in (colours * 2)[:number] for word in ("--image", name)]
        result = runner("compile-workflow", model, "a hat", *options)
        assert (result.exit_code, result.stderr.partition(":")[0]) == (2, "image.image_count_not_allowed")


def test_a_markup_is_laid_over_the_image(run: Any, tmp_path: Path, colours: list[str]) -> None:
    red, layer, path = colours[0], colours[3], tmp_path / "out.png"
    options = ["-m", "sd-1.5", "--set", "strength=0.05", "--image", red, "-o", str(path)]
    assert run("generate", "a hat", *options, "--markup", layer).exit_code == 0
    with Image.open(path) as image:
        pixel = image.getpixel((128, 60))
    assert isinstance(pixel, tuple)
    assert abs(pixel[0] - 127) < 30
    assert abs(pixel[2] - 128) < 30
    result = run("generate", "", *options, "--markup", layer)
    assert result.stderr.startswith("image.prompt_required")
    for more in (["--markup", layer], ["--mask", layer]):
        assert run("generate", "a hat", *more).stderr.startswith("request.invalid_value")


# --- generate --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("extension", "image_format"), [("png", "PNG"), ("jpg", "JPEG"), ("webp", "WEBP")])
def test_generate_writes_the_format_of_the_file_extension(
    run: Any, tmp_path: Path, extension: str, image_format: str
) -> None:
    path = tmp_path / f"cat.{extension}"
    result = run(
        "generate",
        "a cat",
        "-o",
        str(path),
        "--size",
        "256x320",
        "--seed",
        "3",
        "-m",
        "sd-1.5",
        "--set",
        "steps=4",
    )
    assert result.exit_code == 0, result.output
    with Image.open(path) as image:
        assert (image.format, image.size) == (image_format, (256, 320))
    assert f"{path}  256x320  sd-1.5-pruned-emaonly  seed 3" in result.stdout
    assert "no model ran" in result.stderr


def test_generate_numbers_several_pictures(run: Any, tmp_path: Path) -> None:
    run("generate", "a cat", "-o", str(tmp_path / "cat.png"), "--size", "256x256", "--n", "5")
    assert sorted(path.name for path in tmp_path.glob("cat*")) == [
        f"cat-{index}.png" for index in range(1, 6)
    ]


def test_generate_reports_adjusted_and_ignored_fields(run: Any, tmp_path: Path) -> None:
    result = run("generate", "a cat", "-o", str(tmp_path / "c.png"), "--size", "257x256", "--set", "wings=2")
    assert "size: 256x256 instead of 257x256" in result.stderr
    assert "wings: ignored" in result.stderr


def test_an_unwritable_output_file_is_store_unwritable(run: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = run("generate", "a cat", "-o", str(tmp_path / "file/cat.png"), "--size", "256x256")
    assert (result.exit_code, result.stderr.splitlines()[-1].split(":")[0]) == (5, "image.store_unwritable")


def flask(tmp_path: Path, *args: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a separate process, without any EASEL_* variables of the environment."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("EASEL_")}
    environment = {**inherited, "EASEL_STATE_DIR": str(tmp_path / "state"), **variables}
    return subprocess.run(
        [sys.executable, "-m", "flask", *args],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=180,
    )


def test_generate_works_without_a_server_and_starts_its_own_sketch_engine(tmp_path: Path) -> None:
    path = tmp_path / "cat.png"
    done = flask(tmp_path, "generate", "a cat", "-o", str(path), "--size", "256x256")
    assert done.returncode == 0, done.stderr
    assert path.read_bytes().startswith(b"\x89PNG")


def test_invalid_settings_are_reported_without_a_traceback(tmp_path: Path) -> None:
    done = flask(tmp_path, "check-catalogue", EASEL_PRT="1")
    assert done.returncode == 1
    assert "settings.invalid: EASEL_PRT" in done.stderr
    assert "Traceback" not in done.stderr


def test_help_shows_each_command_on_one_line(tmp_path: Path) -> None:
    done = flask(tmp_path, "--help")
    for name in ("check-catalogue", "compile-workflow", "generate", "snapshot-nodes"):
        (line,) = (line for line in done.stdout.splitlines() if line.strip().startswith(name))
        assert not line.endswith("..."), line


# --- the owner's folder ----------------------------------------------------------------------------


def test_check_catalogue_lists_what_is_wrong_in_the_own_folder_and_what_it_replaces(
    make_app: MakeApp, tmp_path: Path
) -> None:
    own = tmp_path / "own"
    own.mkdir()
    (own / "mine.yaml").write_text(json.dumps({"models": {"mine": {**OWN_MODEL, "aliases": ["sd15"]}}}))
    check = make_app(catalogue_dir=str(own)).test_cli_runner().invoke
    result = check(args=["check-catalogue"])
    assert result.exit_code == 0, result.output
    assert re.search(r"(?m)^  mine +\S.*  licence unknown$", result.stdout)
    assert "own/mine.yaml:1: models.mine.aliases.0: sd15 is not an alias of" in result.stdout
    assert " models and " in result.stdout
    (own / "wrong.yaml").write_text("models:\n  wrong: {}\n")
    result = make_app(catalogue_dir=str(own)).test_cli_runner().invoke(args=["check-catalogue"])
    assert result.exit_code == 1
    assert "own/wrong.yaml:2: models.wrong: `title` is missing" in result.stdout
    assert f"What has these faults in {own} is not used; all else is served." in result.stdout


def test_a_folder_in_the_state_directory_that_is_not_read_any_more_is_named(tmp_path: Path) -> None:
    (tmp_path / "var/catalogue.d").mkdir(parents=True)
    (tmp_path / "var/catalogue.d/mine.yaml").write_text(json.dumps({"models": {"mine": OWN_MODEL}}))
    for text, is_named in (("port: 80\n", True), ("catalogue_dir: var/catalogue.d\n", False)):
        (tmp_path / "easel.yaml").write_text(text)
        environment = {"EASEL_CONFIG": str(tmp_path / "easel.yaml"), "EASEL_STATE_DIR": str(tmp_path / "var")}
        done = flask(tmp_path, "check-catalogue", **environment)
        assert done.returncode == 0, done.stderr
        assert (f"{tmp_path}/var/catalogue.d is not read" in done.stderr) == is_named
        assert ("mine " in done.stdout) != is_named


def test_compile_workflow_explains_with_the_own_template(make_app: MakeApp, tmp_path: Path) -> None:
    workflow = {"title": "Mine", "tasks": ["generate"], "inputs": {}}
    document = {"workflows": {"mine": workflow}, "models": {"mine": {**OWN_MODEL, "workflow": "mine"}}}
    (tmp_path / "mine.yaml").write_text(json.dumps(document))
    (tmp_path / "mine.json.j2").write_text(exported())
    app = make_app(catalogue_dir=str(tmp_path))
    result = app.test_cli_runner().invoke(args=["compile-workflow", "mine", "a cat", "--as", "explain"])
    assert f"mine  ({tmp_path.name}/mine.json.j2)" in result.stdout


# --- snapshot-nodes --------------------------------------------------------------------------------


@dataclass
class SnapshotServices:
    """The services that snapshot-nodes uses, with a copy of the project's data."""

    source_paths: SourcePaths
    credentials: Credentials = NO_CREDENTIALS


@pytest.fixture
def run_on_copy(make_app: MakeApp, tmp_path: Path) -> Any:
    """Runs a command on a copy of the project's templates and schemas in `tmp_path`."""
    for name in ("templates_wf", "schemas"):
        shutil.copytree(ROOT / name, tmp_path / name)
    app = make_app()
    app.extensions["easel"] = SnapshotServices(
        SourcePaths(
            SMALL_CATALOGUE / "catalogue.yaml",
            tmp_path / "templates_wf",
            tmp_path / "schemas",
            tmp_path / "state/nodes.json",
        )
    )
    return lambda *args: app.test_cli_runner().invoke(args=list(args))


def node_count() -> int:
    return len(json.loads((ROOT / "schemas/nodes.json").read_text())["nodes"])


def more_node_count() -> int:
    return len(json.loads((ROOT / "schemas/more_nodes.json").read_text())["nodes"])


def test_a_snapshot_of_a_known_engine_version_changes_nothing_that_is_shipped(
    run_on_copy: Any, tmp_path: Path, recorded_sketch_url: str
) -> None:
    result = run_on_copy("snapshot-nodes", recorded_sketch_url, "--shipped")
    nodes = tmp_path / "schemas/nodes.json"
    assert (result.exit_code, result.stdout) == (
        0,
        f"{more_node_count()} other nodes written to {tmp_path / 'schemas/more_nodes.json'}.\n"
        f"{node_count()} nodes, ComfyUI 0.33.0 included; written to {nodes}.\n",
    )
    for name in ("nodes.json", "more_nodes.json"):
        assert (tmp_path / "schemas" / name).read_text() == (ROOT / "schemas" / name).read_text()


def test_a_snapshot_learns_the_nodes_of_own_templates_too(
    make_app: MakeApp, run_on_copy: Any, tmp_path: Path
) -> None:
    own = tmp_path / "own"
    own.mkdir()
    tiled = {"8": {"class_type": "NewDecode", "inputs": {"samples": ["3", 0], "vae": ["4", 2]}}}
    (own / "mine.json.j2").write_text(json.dumps(tiled))
    (tmp_path / "info.json").write_text(json.dumps({"NewDecode": TILED}))
    app = make_app()
    folders = (tmp_path / "templates_wf", tmp_path / "schemas", tmp_path / "nodes.json", own)
    app.extensions["easel"] = SnapshotServices(SourcePaths(SMALL_CATALOGUE / "catalogue.yaml", *folders))
    result = app.test_cli_runner().invoke(
        args=["snapshot-nodes", str(tmp_path / "info.json"), "--version", "0.99.0"]
    )
    assert (result.exit_code, "new      NewDecode\n" in result.stdout) == (0, True), result.output


def test_a_snapshot_of_the_sketch_engine_learns_nothing_and_says_so(
    run_on_copy: Any, tmp_path: Path, sketch_url: str
) -> None:
    result = run_on_copy("snapshot-nodes", sketch_url)
    assert (result.exit_code, result.stdout.startswith("Nothing learned: ")) == (0, True)
    assert not (tmp_path / "state/nodes.json").exists()


TILE = ["INT", {"default": 512, "min": 64, "max": 4096, "step": 32}]
TILED = {
    "input": {"required": {"samples": ["LATENT"], "vae": ["VAE"], "tile_size": TILE}},
    "output": ["IMAGE"],
    "output_node": False,
}


def test_a_snapshot_learns_the_nodes_of_the_templates_in_a_file_of_the_installation(
    run_on_copy: Any, tmp_path: Path
) -> None:
    template = tmp_path / "templates_wf/part_sampler.json.j2"
    text = template.read_text().replace('"class_type": "VAEDecode"', '"class_type": "NewDecode"')
    template.write_text(text.replace('"vae": {{ at.vae }}', '"vae": {{ at.vae }}, "tile_size": 512'))
    (tmp_path / "info.json").write_text(json.dumps({"NewDecode": TILED, "Other": TILED}))
    paths = SourcePaths(
        SMALL_CATALOGUE / "catalogue.yaml",
        tmp_path / "templates_wf",
        tmp_path / "schemas",
        tmp_path / "state/nodes.json",
    )
    (faults,) = set(load_catalogue(read_sources(paths)).undrawable["sd-1.5-pruned-emaonly"].values())
    assert "unknown node class" in faults[0]
    shipped = (tmp_path / "schemas/nodes.json").read_text()
    result = run_on_copy("snapshot-nodes", str(tmp_path / "info.json"), "--version", "0.99.0")
    assert (result.exit_code, result.stdout) == (
        0,
        f"new      NewDecode\n{node_count() + 1} nodes, ComfyUI 0.99.0 included; written to {paths.learned_nodes}.\n",
    )
    assert (tmp_path / "schemas/nodes.json").read_text() == shipped
    catalogue = load_catalogue(read_sources(paths))
    assert catalogue.undrawable == {}
    assert "NewDecode" in catalogue.signatures
    assert "Other" not in catalogue.signatures


def test_snapshots_of_several_engines_and_further_nodes_are_all_kept(
    run_on_copy: Any, tmp_path: Path
) -> None:
    info = tmp_path / "info.json"
    newer = {
        **TILED,
        "input": {"required": {**TILED["input"]["required"], "overlap": ["INT", {"default": 64}]}},
    }
    snapshots = [("0.90.0", {"A": TILED}, "A"), ("0.91.0", {"A": newer}, "A"), ("0.90.0", {"B": TILED}, "B")]
    for version, nodes, name in snapshots:
        info.write_text(json.dumps(nodes))
        assert run_on_copy("snapshot-nodes", str(info), "--version", version, "--node", name).exit_code == 0
    paths = SourcePaths(
        SMALL_CATALOGUE / "catalogue.yaml",
        tmp_path / "templates_wf",
        tmp_path / "schemas",
        tmp_path / "state/nodes.json",
    )
    signatures = load_catalogue(read_sources(paths)).signatures
    assert signatures["A"].inputs["overlap"].only_in == ("0.91.0",)
    assert signatures["B"].inputs["tile_size"].maximum == 4096


def test_snapshots_of_two_versions_learn_custom_nodes_that_describe_themselves_in_unusual_ways(
    run_on_copy: Any, tmp_path: Path
) -> None:
    info = tmp_path / "info.json"
    for number, choice in enumerate((["a", 1], {"b": None})):
        odd = {
            "pair": [[choice, "plain"], {"default": choice}],
            "number": ["INT", {"min": None, "max": number or None}],
        }
        entries = {"Odd": {"input": {"required": odd}, "output": ["IMAGE"]}, "Broken": 5, "SaveImage": None}
        info.write_text(json.dumps(entries), encoding="utf-8-sig")
        result = run_on_copy("snapshot-nodes", str(info), "--version", f"0.9{number}.0", "--node", "Odd")
        assert (result.exit_code, result.exception) == (0, None)
        assert "skipped  SaveImage: " in result.stderr
    result = run_on_copy("snapshot-nodes", str(info), "--version", "0.92.0", "--node", "Broken")
    assert "skipped  Broken: /object_info does not describe it as a node" in result.stderr
    assert result.exit_code == 3
    assert "has no node Broken" in result.stderr
    paths = SourcePaths(
        SMALL_CATALOGUE / "catalogue.yaml",
        tmp_path / "templates_wf",
        tmp_path / "schemas",
        tmp_path / "state/nodes.json",
    )
    odd_inputs = load_catalogue(read_sources(paths)).signatures["Odd"].inputs
    assert odd_inputs["pair"].choices == (["a", 1], "plain", {"b": None})
    assert odd_inputs["number"].minimum is None


def test_a_damaged_file_of_learned_nodes_is_reported_with_the_remedy(
    run_on_copy: Any, tmp_path: Path
) -> None:
    (tmp_path / "state").mkdir(exist_ok=True)
    (tmp_path / "state/nodes.json").write_text('{"versions": {"0.9.0": {"A": 1}}}')
    result = run_on_copy("snapshot-nodes", "http://127.0.0.1:1")
    assert result.exit_code == 1
    assert "Delete it and run `easel snapshot-nodes URL` again" in result.stderr


def test_snapshot_nodes_reports_a_node_that_the_engine_lacks(run_on_copy: Any, sketch_url: str) -> None:
    result = run_on_copy("snapshot-nodes", sketch_url, "--node", "NoSuchNode")
    assert (result.exit_code, result.stderr.split(":")[0]) == (3, "engine.nodes_missing")


# --- documents -------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted((ROOT / "docs").glob("*.md")), ids=lambda path: path.name)
def test_generated_tables_are_up_to_date(path: Path) -> None:
    expected = documents()
    assert expected.get(path, path.read_text("utf-8")) == path.read_text("utf-8"), "run `make docs`"


# --- models ----------------------------------------------------------------------------------------


def test_models_lists_the_ready_ones_first_and_what_the_others_lack(run: Any, make_app: MakeApp) -> None:
    lines = run("models").stdout.splitlines()
    assert len(lines) > 100
    assert all(re.search(r"  ready  .* GB  (generate|edit|inpaint|vary)", line) for line in lines[:5])
    short = run("models", "list", "sdxl-turbo").stdout
    assert re.fullmatch(r"sdxl-turbo +ready +6\.9 GB  generate, edit, inpaint, vary\n", short)
    assert json.loads(run("models", "list", "sdxl-turbo", "--json").stdout) == [
        {
            "id": "sdxl-turbo",
            "group": "ready",
            "bytes": 6_938_081_905,
            "tasks": ["generate", "edit", "inpaint", "vary"],
            "missing": [],
            "needs_comfyui": None,
        }
    ]
    assert run("models", "list", "no-such-model").exit_code == 2


def test_models_without_an_engine_lists_what_the_catalogue_has(make_app: MakeApp) -> None:
    runner = make_app(engine__url="http://127.0.0.1:9").test_cli_runner()
    result = runner.invoke(args=["models", "list", "flux"])
    assert result.exit_code == 0
    assert "not known what is ready" in result.stderr
    assert result.stdout.splitlines()[0].split()[:2] == ["flux-schnell", "valid"]
    assert runner.invoke(args=["models", "list", "--ready"]).stdout == ""
    result = make_app(engine__url="").test_cli_runner().invoke(args=["models", "list", "flux"])
    if "  valid  " in result.stdout:  # no ComfyUI of this machine answers
        assert "not known what is ready" in result.stderr


@pytest.mark.parametrize(
    ("short", "long"),
    [
        ("check", "check-catalogue"),
        ("pull", "pull-model"),
        ("adopt", "adopt-models"),
        ("accept", "accept-licence"),
        ("import", "import-workflow"),
    ],
)
def test_the_short_names_below_models_are_the_same_commands(run: Any, short: str, long: str) -> None:
    named = [run(*names, "--help").stdout.partition("\n")[2] for names in (["models", short], [long])]
    assert named[0] == named[1] != ""
