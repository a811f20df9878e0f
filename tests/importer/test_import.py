"""Workflows in any form become a template and entries that give the workflow back."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image, PngImagePlugin

from compiler import find_errors
from compiler.render import TemplateRenderer
from errors import WorkflowNotImportable, WorkflowUnreadable
from importer import Choices, Imported, Workflow, import_workflow, parse_workflow, read_workflow
from importer.prove import exported_values, prove_same
from importer.read_source import MAX_JSON_BYTES
from importer.write_template import WrittenTemplate
from tests.importer.editor_files import sampler_file, sampler_graph, signatures


def imported(graph: dict[str, Any], **choices: Any) -> Imported:
    workflow = parse_workflow(graph, lambda classes: signatures())
    return import_workflow(workflow, signatures(), name="Mine", title="Mine", choices=Choices(**choices))


def test_the_template_has_readable_ids_and_the_variables_of_the_project() -> None:
    assert imported(sampler_graph()).template == (
        """{# Mine #}
{
  "checkpoint": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": {{ files.checkpoint }}}},
  "lora": {
    "class_type": "LoraLoaderModelOnly",
    "inputs": {"lora_name": {{ files.lora }}, "strength_model": 0.5, "model": ["checkpoint", 0]}
  },
  "positive": {"class_type": "CLIPTextEncode", "inputs": {"text": {{ prompt }}, "clip": ["checkpoint", 1]}},
  "negative": {"class_type": "CLIPTextEncode", "inputs": {"text": {{ negative_prompt }}, "clip": ["checkpoint", 1]}},
  "latent": {
    "class_type": "EmptyLatentImage",
    "inputs": {"width": {{ width }}, "height": {{ height }}, "batch_size": {{ batch }}}
  },
  "sampler": {
    "class_type": "KSampler",
    "inputs": {
      "seed": {{ seed }}, "steps": {{ steps }}, "cfg": {{ cfg }}, "sampler_name": {{ sampler }},
      "scheduler": {{ schedule }}, "denoise": 1, "model": ["lora", 0], "positive": ["positive", 0],
      "negative": ["negative", 0], "latent_image": ["latent", 0]
    }
  },
  "vae_decode": {"class_type": "VAEDecode", "inputs": {"samples": ["sampler", 0], "vae": ["checkpoint", 2]}},
  "picture": {"class_type": "SaveImage", "inputs": {"filename_prefix": {{ prefix }}, "images": ["vae_decode", 0]}}
}
"""
    )


def test_the_entries_have_limits_files_and_sizes() -> None:
    document = yaml.safe_load(imported(sampler_graph()).entries)
    workflow = document["workflows"]["mine"]
    assert workflow["tasks"] == ["generate"]
    assert workflow["inputs"] == {
        "negative_prompt": {"type": "string", "default": "blurry", "x-unused-when": {"cfg": 1.0}},
        "steps": {"type": "integer", "minimum": 1, "maximum": 100, "default": 20},
        "cfg": {"type": "number", "minimum": 0.0, "maximum": 100.0, "default": 7.0},
        "sampler": {"type": "string", "x-choices": "KSampler.sampler_name", "default": "euler"},
        "schedule": {"type": "string", "x-choices": "KSampler.scheduler", "default": "normal"},
    }
    model = document["models"]["Mine"]
    assert model["files"] == {
        "checkpoint": {"name": "a.safetensors", "folder": "checkpoints"},
        "lora": {"name": "l.safetensors", "folder": "loras"},
    }
    assert model["licence"] == {"name": "unknown", "commercial": "unknown"}
    assert model["size"] == {"default": "512x768", "multiple_of": 16, "min": "64x64", "max": "2048x2048"}


TEXTS = [
    "{{ prompt }} {% raw %} {# x #}",
    'quotes " and \\ and \n and \u2028 and 🦊',
    "%prompt% and %negative_prompt%",
    "{red|blue} __wildcard__ // comment",
    "yaml: [a, *b, &c, !d] # e",
]


@pytest.mark.parametrize("text", TEXTS)
def test_any_text_stays_what_it_is(text: str) -> None:
    """As a default, and as a text that no request can change."""
    graph = sampler_graph(n3={"text": text}, n4={"text": text})
    graph["joined"] = {
        "class_type": "StringConcatenate",
        "inputs": {"string_a": ["held", 0], "string_b": text, "delimiter": text},
    }
    graph["held"] = {"class_type": "PrimitiveStringMultiline", "inputs": {"value": "a cat"}}
    graph["3"]["inputs"]["text"] = ["joined", 0]
    result = imported(graph)
    assert yaml.safe_load(result.entries)["workflows"]["mine"]["inputs"]["negative_prompt"]["default"] == text
    values = exported_values(result.bindings, graph, result.files)
    rendered = TemplateRenderer({"t.json.j2": result.template}).render("t.json.j2", values)
    joined = rendered[result.ids["joined"]]["inputs"]
    assert (joined["string_b"], joined["delimiter"]) == (text, text)


def test_a_template_with_another_node_class_is_refused() -> None:
    graph = sampler_graph()
    result = imported(graph)
    wrong = WrittenTemplate(result.template.replace('"SaveImage"', '"PreviewImage"'), result.ids)
    with pytest.raises(WorkflowNotImportable, match="picture is a PreviewImage instead of a SaveImage"):
        prove_same(graph, wrong, result.bindings, result.files)


def test_a_template_that_does_not_give_the_workflow_back_is_refused() -> None:
    graph = sampler_graph()
    result = imported(graph)
    wrong = WrittenTemplate(result.template.replace('"denoise": 1', '"denoise": 0.5'), result.ids)
    with pytest.raises(WorkflowNotImportable, match=r"sampler\.denoise is 0\.5 instead of 1"):
        prove_same(graph, wrong, result.bindings, result.files)


def test_nodes_that_nothing_needs_are_left_out_and_named() -> None:
    graph = sampler_graph()
    graph["loose"] = {"class_type": "EmptyLatentImage", "inputs": {"width": 8, "height": 8, "batch_size": 1}}
    result = imported(graph)
    assert result.left_out == ("loose",)
    assert "loose" not in result.ids


def test_keys_that_only_the_editor_uses_are_dropped() -> None:
    graph = sampler_graph()
    graph["6"]["inputs"]["control_after_generate"] = "randomize"
    assert "control_after_generate" not in imported(graph).template


def test_what_easel_does_not_know_about_a_node_becomes_a_fact() -> None:
    graph = sampler_graph(n6={"scheduler": "of_a_later_version"}, n8={"brand_new": 1})
    facts = yaml.safe_load(imported(graph).entries)["nodes"]
    assert facts == {"KSampler": {"any_value": ["scheduler"]}, "SaveImage": {"more_inputs": True}}


@pytest.mark.parametrize(
    "name", ["/etc/passwd", "../../x.safetensors", "C:\\x.safetensors", "a/../../b.ckpt", "\\\\host\\x"]
)
def test_a_file_outside_its_folder_is_refused(name: str) -> None:
    with pytest.raises(WorkflowNotImportable, match="not in a folder"):
        imported(sampler_graph(n1={"ckpt_name": name}))


def test_a_file_in_a_subfolder_is_taken_in_either_spelling() -> None:
    files = imported(sampler_graph(n1={"ckpt_name": "SD\\a.safetensors"})).files
    assert files["checkpoint"][0].name == "SD\\a.safetensors"
    entries = yaml.safe_load(imported(sampler_graph(n1={"ckpt_name": "SD\\a.safetensors"})).entries)
    assert entries["models"]["Mine"]["files"]["checkpoint"]["name"] == "SD/a.safetensors"


def test_a_file_has_the_url_and_hash_that_the_workflow_names() -> None:
    document = sampler_file()
    document["nodes"][0]["properties"] = {
        "models": [
            {
                "name": "a.safetensors",
                "url": "https://example.org/a.safetensors",
                "directory": "checkpoints",
                "hash": "AB" * 32,
                "hash_type": "SHA256",
            },
            {
                "name": "l.safetensors",
                "url": "http://example.org/plain",
                "hash": "x" * 64,
                "hash_type": "SHA256",
            },
        ]
    }
    models = yaml.safe_load(imported(document).entries)["models"]["Mine"]["files"]
    assert models["checkpoint"]["url"] == "https://example.org/a.safetensors"
    assert models["checkpoint"]["sha256"] == "ab" * 32
    assert models["lora"] == {"name": "l.safetensors", "folder": "loras"}


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", ["n5.width", "n6.cfg", "n6.seed", "n2.strength_model"])
def test_a_number_that_json_does_not_have_is_refused(place: str, number: float) -> None:
    node, key = place.split(".")
    with pytest.raises(WorkflowNotImportable, match=f"input {key} of node {node[1:]} is not a number"):
        imported(sampler_graph(**{node: {key: number}}))


@pytest.mark.parametrize("name", ["{{ 7 * 7 }}", "{% raw %}", "{# x", "%prompt%"])
def test_an_input_whose_name_a_template_would_read_is_refused(name: str) -> None:
    with pytest.raises(WorkflowNotImportable, match="looks like a placeholder"):
        imported(sampler_graph(n6={name: 1}))


def test_links_in_a_circle_are_refused() -> None:
    switch = {"switch": ["b", 0], "on_true": ["7", 0], "on_false": ["7", 0]}
    graph = sampler_graph(n8={"images": ["a", 0]})
    graph["a"] = {"class_type": "ComfySwitchNode", "inputs": switch}
    graph["b"] = {"class_type": "ComfySwitchNode", "inputs": {**switch, "switch": ["a", 0]}}
    with pytest.raises(WorkflowNotImportable, match="go in a circle"):
        imported(graph)


@pytest.mark.parametrize(
    ("node_class", "key", "target", "others"),
    [
        ("StringConcatenate", "string_a", ("3", "text"), {"string_b": "x", "delimiter": ","}),
        ("ConditioningSetAreaStrength", "conditioning", ("6", "positive"), {"strength": 1.0}),
    ],
)
def test_thousands_of_nodes_in_a_row_are_refused(
    node_class: str, key: str, target: tuple[str, str], others: dict[str, Any]
) -> None:
    graph = sampler_graph()
    link = graph[target[0]]["inputs"][target[1]]
    for number in range(5000):
        graph[f"x{number}"] = {"class_type": node_class, "inputs": {key: link, **others}}
        link = [f"x{number}", 0]
    graph[target[0]]["inputs"][target[1]] = link
    with pytest.raises(WorkflowNotImportable, match="one after the other"):
        imported(graph)


# --- reading ---


def read(path: Path) -> Workflow:
    return read_workflow(path, lambda classes: signatures())


def picture(path: Path, **texts: str) -> Path:
    info = PngImagePlugin.PngInfo()
    for key, value in texts.items():
        info.add_text(key, value)
    Image.new("RGB", (8, 8)).save(path, pnginfo=info)
    return path


def test_a_png_carries_its_graph(tmp_path: Path) -> None:
    path = picture(
        tmp_path / "a.png", prompt=json.dumps(sampler_graph()), workflow=json.dumps(sampler_file())
    )
    workflow = read(path)
    assert (workflow.kind, workflow.nodes) == ("picture", sampler_graph())


def test_a_png_may_carry_only_the_file_of_the_editor(tmp_path: Path) -> None:
    assert read(picture(tmp_path / "a.png", workflow=json.dumps(sampler_file()))).nodes == sampler_graph()


def test_a_webp_carries_its_graph_in_exif(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0110] = "prompt:" + json.dumps(sampler_graph())
    exif[0x010F] = "workflow:" + json.dumps(sampler_file())
    Image.new("RGB", (8, 8)).save(tmp_path / "a.webp", exif=exif)
    assert read(tmp_path / "a.webp").nodes == sampler_graph()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not JSON"),
        (b"\xff\xfe\x00", "neither JSON in UTF-8 nor"),
        (b"[1]", "no workflow of ComfyUI"),
        (b"{}", "no workflow of ComfyUI"),
        (b'{"3": {"inputs": {}}}', "no `class_type`"),
        (b'{"3": {"class_type": "KSampler"}}', "no object `inputs`"),
        (b'{"3": {"class_type": "VAEDecode", "inputs": {"vae": ["9", 0]}}}', "node 9, which does not exist"),
        (b'{"a": ' * 5000, "not JSON"),
        (b'{"3": {"class_type": "CLIPTextEncode", "inputs": {"text": "\\ud83e"}}}', "half a character"),
        (b'{"nodes": [{"id": 1, "type": "KSampler", "mode": 1e999}]}', "has another form"),
        (b"\x89PNG\r\n\x1a\nrubbish", "cannot be read: it is damaged"),
        (b"RIFF\x10\x00\x00\x00WEBPrubbish", "cannot be read"),
    ],
)
def test_what_is_no_workflow_is_refused_by_what_it_is(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(WorkflowUnreadable, match=reason):
        read(path)


def test_a_picture_without_a_workflow_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WorkflowUnreadable, match="carries no workflow"):
        read(picture(tmp_path / "a.png"))
    with pytest.raises(WorkflowUnreadable, match="another program"):
        read(picture(tmp_path / "a.png", parameters="a cat\nSteps: 20"))


@pytest.mark.parametrize("text", ["{}", "null", "[]", "a cat, oil on canvas", '{"nodes": [null]}'])
def test_what_another_program_wrote_beside_the_workflow_does_no_harm(tmp_path: Path, text: str) -> None:
    graph, file = json.dumps(sampler_graph()), json.dumps(sampler_file())
    assert read(picture(tmp_path / "a.png", prompt=graph, workflow=text)).nodes == sampler_graph()
    if "nodes" not in text:
        assert read(picture(tmp_path / "b.png", prompt=text, workflow=file)).nodes == sampler_graph()
        with pytest.raises(WorkflowUnreadable, match=r"is empty|is not JSON"):
            read(picture(tmp_path / "c.png", prompt=text))


def test_both_halves_of_a_character_are_one(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(sampler_graph(n3={"text": "🦊"})))
    assert read(path).nodes["3"]["inputs"]["text"] == "🦊"


def test_a_picture_with_too_much_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WorkflowUnreadable, match="cannot be read"):
        read(picture(tmp_path / "a.png", prompt="x" * 70_000_000))


def test_a_large_file_is_refused_without_being_read(tmp_path: Path) -> None:
    path = tmp_path / "large.json"
    with path.open("wb") as file:
        file.truncate(50_000_000)
    started = time.monotonic()
    with pytest.raises(WorkflowUnreadable, match="50 MB"):
        read(path)
    assert time.monotonic() - started < 1
    assert MAX_JSON_BYTES < 50_000_000


def test_a_folder_and_a_missing_file_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none.json"):
        with pytest.raises(WorkflowUnreadable, match="cannot be read"):
            read(path)


# --- several pictures ---


def stitched(*pairs: tuple[str, str, str]) -> dict[str, Any]:
    """Pictures put beside each other. `pairs`: the name of a node that stitches, and what it stitches."""
    graph: dict[str, Any] = {
        name: {"class_type": "LoadImage", "inputs": {"image": f"{name}.png"}}
        for _, *names in pairs
        for name in names
        if name.startswith("load")
    }
    sides = {"direction": "right", "match_image_size": True, "spacing_width": 0, "spacing_color": "white"}
    for name, first, second in pairs:
        inputs = {**sides, "image1": [first, 0], "image2": [second, 0]}
        graph[name] = {"class_type": "ImageStitch", "inputs": inputs}
    graph["save"] = {
        "class_type": "SaveImage",
        "inputs": {"images": [pairs[-1][0], 0], "filename_prefix": "x"},
    }
    return graph


@pytest.mark.parametrize("count", [1, 2, 3])
def test_pictures_that_feed_optional_inputs_may_be_left_out(count: int) -> None:
    result = imported(stitched(("a", "load1", "load2"), ("b", "a", "load3")))
    workflow = yaml.safe_load(result.entries)["workflows"]["mine"]
    assert workflow["images"] == {"min": 1, "max": 3}
    names = [f"{number}.png" for number in range(1, count + 1)]
    values = {"images": names, "image": names[0], "mask": None, "prefix": "x"}
    rendered = TemplateRenderer({"t.json.j2": result.template}).render("t.json.j2", values)
    loaded = [entry["inputs"]["image"] for entry in rendered.values() if entry["class_type"] == "LoadImage"]
    assert sorted(loaded) == names
    assert list(find_errors(rendered, signatures(), "t")) == []


def test_an_optional_picture_may_itself_have_an_optional_one() -> None:
    graph = stitched(("a", "load1", "load2"), ("b", "load3", "load4"), ("c", "a", "b"))
    result = imported(graph)
    assert yaml.safe_load(result.entries)["workflows"]["mine"]["images"] == {"min": 1, "max": 4}
    assert result.template.count("{% if images | length >= 4 %}") == 2


def test_a_picture_that_a_required_input_needs_must_be_sent() -> None:
    graph = stitched(("a", "load1", "load2"))
    graph["a"] = {
        "class_type": "ImageCompositeMasked",
        "inputs": {
            "destination": ["load1", 0],
            "source": ["load2", 0],
            "x": 0,
            "y": 0,
            "resize_source": False,
        },
    }
    workflow = yaml.safe_load(imported(graph).entries)["workflows"]["mine"]
    assert workflow["images"] == {"min": 2, "max": 2}


BLENDED = {"blend_factor": 0.5, "blend_mode": "normal"}


def image_counts(result: Imported) -> Any:
    return yaml.safe_load(result.entries)["workflows"]["mine"]["images"]


def assert_complete_graphs(result: Imported, counts: range) -> None:
    """The graph for each number of pictures has every link that it needs, and no node that nothing needs."""
    for count in counts:
        names = [f"{number}.png" for number in range(1, count + 1)]
        values = {"images": names, "image": names[0], "mask": None, "prefix": "x"}
        files = {role: file.name for role, (file, _) in result.files.items()}
        fields = {name: field.value for name, field in result.bindings.fields.items()}
        renderer = TemplateRenderer({"t.json.j2": result.template})
        rendered = renderer.render("t.json.j2", {**fields, **values, "files": files})
        assert list(find_errors(rendered, signatures(), "t")) == []


def beside_a_blend() -> dict[str, Any]:
    """A picture beside the blend of another one with a grey one."""
    graph = stitched(("a", "load1", "blend"))
    graph["load2"] = {"class_type": "LoadImage", "inputs": {"image": "2.png"}}
    empty = {"width": 64, "height": 64, "batch_size": 1, "color": 0}
    graph["grey"] = {"class_type": "EmptyImage", "inputs": empty}
    inputs = {"image1": ["load2", 0], "image2": ["grey", 0], **BLENDED}
    graph["blend"] = {"class_type": "ImageBlend", "inputs": inputs}
    return graph


def test_what_only_feeds_an_optional_picture_is_as_optional() -> None:
    result = imported(beside_a_blend())
    assert image_counts(result) == {"min": 1, "max": 2}
    assert_complete_graphs(result, range(1, 3))


def test_a_picture_without_which_an_earlier_one_has_no_effect_must_be_sent() -> None:
    graph = stitched(("a", "load1", "blend"))
    for number in (2, 3):
        graph[f"load{number}"] = {"class_type": "LoadImage", "inputs": {"image": f"{number}.png"}}
    inputs = {"image1": ["load2", 0], "image2": ["load3", 0], **BLENDED}
    graph["blend"] = {"class_type": "ImageBlend", "inputs": inputs}
    result = imported(graph)
    assert image_counts(result) == {"min": 3, "max": 3}
    assert_complete_graphs(result, range(3, 4))


@pytest.mark.parametrize("place", [("blend", "blend_factor"), ("grey", "color")])
def test_a_picture_without_which_a_request_field_has_no_effect_must_be_sent(place: tuple[str, str]) -> None:
    result = imported(beside_a_blend(), exposed={"amount": place})
    assert image_counts(result) == {"min": 2, "max": 2}
    assert_complete_graphs(result, range(2, 3))


def test_a_picture_without_which_a_file_is_not_used_must_be_sent() -> None:
    graph = stitched(("a", "load1", "larger"))
    graph["load2"] = {"class_type": "LoadImage", "inputs": {"image": "2.png"}}
    graph["upscaler"] = {"class_type": "UpscaleModelLoader", "inputs": {"model_name": "x2.safetensors"}}
    graph["larger"] = {
        "class_type": "ImageUpscaleWithModel",
        "inputs": {"upscale_model": ["upscaler", 0], "image": ["load2", 0]},
    }
    result = imported(graph)
    assert image_counts(result) == {"min": 2, "max": 2}
    assert_complete_graphs(result, range(2, 3))


def test_more_files_than_a_model_has_are_refused() -> None:
    graph = sampler_graph()
    for index in range(501):
        inputs = {"lora_name": f"{index}.safetensors", "strength_model": 1, "model": ["1", 0]}
        graph[f"l{index}"] = {"class_type": "LoraLoaderModelOnly", "inputs": inputs}
        if index:
            inputs["model"] = [f"l{index - 1}", 0]
    graph["2"]["inputs"]["model"] = ["l500", 0]
    with pytest.raises(
        WorkflowNotImportable, match="names 503 different model files; a model has at most 500"
    ):
        imported(graph)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"n6": {"cfg": -5}}, r"cfg of node 6 \(KSampler\) is -5, but takes values from 0"),
        ({"n5": {"width": 0}}, r"width of node 5 \(EmptyLatentImage\) is 0, but takes values from 16 up to"),
        ({"n6": {"steps": 0}}, r"steps of node 6 \(KSampler\) is 0"),
        ({"n6": {"denoise": 7}}, r"denoise of node 6 \(KSampler\) is 7, .* up to 1"),
    ],
)
def test_a_number_outside_the_limits_of_its_node_is_named_as_in_the_workflow(
    changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(WorkflowNotImportable, match=said):
        imported(sampler_graph(**changes))


@pytest.mark.parametrize("seed", [None, [1, 2], 2**64, -1, "many"])
def test_what_happens_to_a_value_that_is_no_seed_is_said(seed: Any) -> None:
    notes = imported(sampler_graph(n6={"seed": seed})).bindings.notes
    assert any(note.startswith("6.seed is ") and "gets a random one" in note for note in notes)
    assert not any("6.seed" in note for note in imported(sampler_graph()).bindings.notes)


def test_a_damaged_png_with_a_whole_workflow_is_read_and_said(tmp_path: Path) -> None:
    for compressed in (False, True):
        texts = PngImagePlugin.PngInfo()
        texts.add_text("prompt", json.dumps(sampler_graph()), zip=compressed)
        path = tmp_path / "cut.png"
        Image.effect_noise((64, 64), 50).save(path, pnginfo=texts)
        whole = path.read_bytes()
        for end in (len(whole) - 12, len(whole) - 500, whole.index(b"IDAT") + 4, whole.index(b"IDAT") - 4):
            path.write_bytes(whole[:end])
            cut = read_workflow(path, lambda classes: signatures())
            assert (cut.nodes, len(cut.notes)) == (sampler_graph(), 1)
        broken = whole.replace(b"IHDR", b"IHDX", 1)
        path.write_bytes(broken)
        found = read_workflow(path, lambda classes: signatures())
        assert (found.nodes, found.notes) == (
            sampler_graph(),
            ("The picture is damaged, but the workflow in it is whole.",),
        )
        path.write_bytes(whole[: whole.index(b"prompt") + 20])
        with pytest.raises(WorkflowUnreadable):
            read_workflow(path, lambda classes: signatures())
