"""Graphs written as files of ComfyUI's editor: reading them gives the graph again, and nodes do not overlap."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Mapping
from typing import Any

import pytest

from compiler import SourceImage, compile_workflow
from compiler.catalogue import File
from importer.dynamic_prompts import expanded, without_expansion
from importer.editor_file import read_editor_file
from importer.editor_graph import convert_editor_file
from importer.editor_layout import Shape, positions
from importer.editor_widgets import widgets_of
from importer.editor_writer import EditorDocument, write_editor_file
from tests.compiler.catalogues import CATALOGUE, image_request
from tests.importer.editor_files import signatures

NODES = signatures()
PROMPT = 'a {red|blue} cat // "quoted" \\{ /* no comment */ https://example.org\nC:\\|x'
TASKS = [(model.id, task) for model in CATALOGUE.models.values() for task in model.workflows]


def read_back(written: EditorDocument) -> dict[str, Any]:
    """The graph that the file says, with the ids of the graph that it was written from."""
    document = json.loads(json.dumps(written.document))
    graph = convert_editor_file(read_editor_file(document), NODES).nodes
    names = {str(number): name for name, number in written.ids.items()}
    return {
        names[number]: {
            **node,
            "inputs": {
                name: [names[value[0]], value[1]] if isinstance(value, list) else value
                for name, value in node["inputs"].items()
            },
        }
        for number, node in graph.items()
    }


def with_defaults(nodes: Mapping[str, Any]) -> dict[str, Any]:
    """`nodes` with the inputs that the editor always sends."""
    return {
        node_id: {
            "class_type": node["class_type"],
            "inputs": {
                **{
                    widget.name: widget.value
                    for widget in widgets_of(node["class_type"], NODES[node["class_type"]], node["inputs"])
                    if widget.signature is not None and not widget.is_given
                },
                **node["inputs"],
            },
        }
        for node_id, node in nodes.items()
    }


def compiled(model: str, task: str) -> Mapping[str, Any]:
    size = CATALOGUE.models[model].size.default
    mask = "easel/mask.png" if task == "inpaint" else None
    source = None if task == "generate" else SourceImage(size, "easel/image.png", mask)
    prompt = "" if task == "vary" else PROMPT
    request = image_request(prompt, model=model, task=task, source=source)
    return compile_workflow(request, CATALOGUE).graphs[0].nodes


@pytest.mark.parametrize(("model", "task"), TASKS)
def test_the_graph_of_a_shipped_model_comes_back_from_its_editor_file(model: str, task: str) -> None:
    nodes = compiled(model, task)
    written = write_editor_file(nodes, CATALOGUE.signatures)
    assert read_back(written) == with_defaults(nodes)
    added = {name for node in with_defaults(nodes).values() for name in node["inputs"]} - {
        name for node in nodes.values() for name in node["inputs"]
    }
    assert len(written.notes) == len(added)
    assert all("the graph leaves it out, the editor sends" in note for note in written.notes)


@pytest.mark.parametrize(("model", "task"), TASKS)
def test_nodes_do_not_overlap_and_stand_right_of_what_they_need(model: str, task: str) -> None:
    document = write_editor_file(compiled(model, task), CATALOGUE.signatures).document
    boxes = {
        node["id"]: (*node["pos"], node["pos"][0] + node["size"][0], node["pos"][1] + node["size"][1] + 30)
        for node in document["nodes"]
    }
    for first, second in itertools.combinations(boxes.values(), 2):
        beside = first[2] <= second[0] or second[2] <= first[0]
        assert beside or first[3] <= second[1] or second[3] <= first[1]
    for _, source, _, target, _, _ in document["links"]:
        assert boxes[source][2] < boxes[target][0]


IMAGE: dict[str, Any] = {
    "class_type": "EmptyImage",
    "inputs": {"width": 8, "height": 8, "batch_size": 1, "color": 0},
}
SAVED: dict[str, Any] = {"class_type": "SaveImage", "inputs": {"images": ["made", 0], "filename_prefix": "x"}}


def around(node_class: str, inputs: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """A graph with one node of the class, between an image and SaveImage."""
    return {"image": IMAGE, **more, "made": {"class_type": node_class, "inputs": inputs}, "saved": SAVED}


DYNAMIC = [
    around(
        "ResizeImageMaskNode",
        {
            "input": ["image", 0],
            "resize_type": "scale dimensions",
            "resize_type.width": 64,
            "resize_type.height": 32,
            "resize_type.crop": "center",
            "scale_method": "area",
        },
    ),
    around(
        "ResizeImageMaskNode",
        {
            "input": ["image", 0],
            "resize_type": "scale by multiplier",
            "resize_type.multiplier": 2.5,
            "scale_method": "lanczos",
        },
    ),
    around("BatchImagesNode", {"images.image0": ["image", 0], "images.image1": ["other", 0]}, other=IMAGE),
    around(
        "ImageScale",
        {
            "image": ["image", 0],
            "upscale_method": "area",
            "width": ["number", 0],
            "height": 16,
            "crop": "disabled",
        },
        number={"class_type": "PrimitiveInt", "inputs": {"value": 24}},
    ),
    around(
        "ImageScale",
        {
            "image": ["image", 0],
            "upscale_method": "area",
            "width": ["sum", 1],
            "height": 16,
            "crop": "disabled",
        },
        one={"class_type": "PrimitiveInt", "inputs": {"value": 24}},
        two={"class_type": "PrimitiveFloat", "inputs": {"value": 0.5}},
        sum={
            "class_type": "ComfyMathExpression",
            "inputs": {"expression": "a * b", "values.a": ["one", 0], "values.b": ["two", 0]},
        },
    ),
    around("CustomCombo", {"choice": "b", "index": 1, "option1": "a", "option2": "b", "option3": ""}),
]


@pytest.mark.parametrize("nodes", DYNAMIC, ids=lambda nodes: nodes["made"]["class_type"])
def test_inputs_that_depend_on_the_graph_and_linked_values_come_back(nodes: dict[str, Any]) -> None:
    written = write_editor_file(nodes, NODES)
    assert read_back(written) == nodes
    assert written.notes == ()


def test_what_happens_to_a_seed_after_a_run_is_fixed() -> None:
    document = write_editor_file(compiled("sd-1.5-pruned-emaonly", "generate"), NODES).document
    (sampler,) = (node for node in document["nodes"] if node["type"] == "KSampler")
    assert sampler["widgets_values"][:3] == [7, "fixed", 20]
    assert sampler["title"] == "Sampler"


def test_ids_that_are_numbers_and_own_titles_are_kept() -> None:
    nodes = {
        "12": IMAGE,
        "3": {
            "class_type": "PreviewImage",
            "inputs": {"images": ["12", 0]},
            "_meta": {"title": "My picture"},
        },
    }
    written = write_editor_file(nodes, NODES)
    assert written.ids == {"12": 12, "3": 3}
    assert {node["id"]: node.get("title") for node in written.document["nodes"]} == {
        12: None,
        3: "My picture",
    }
    assert written.document["last_node_id"] == 12


def test_the_editor_can_offer_the_files_that_it_lacks() -> None:
    file = File("a.safetensors", "checkpoints", "https://example.org/a.safetensors", sha256="0" * 64)
    nodes = {"1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "a.safetensors"}}}
    (node,) = write_editor_file(nodes, NODES, [file]).document["nodes"]
    assert node["properties"]["models"] == [
        {
            "name": "a.safetensors",
            "url": "https://example.org/a.safetensors",
            "directory": "checkpoints",
            "hash": "0" * 64,
            "hash_type": "SHA256",
        }
    ]


@pytest.mark.parametrize(
    ("nodes", "note"),
    [
        (
            {"1": {"class_type": "PrimitiveInt", "inputs": {"value": 2**53 + 1}}},
            "node 1 (PrimitiveInt), input 'value': the editor rounds 9007199254740993",
        ),
        (
            around("SaveImage", {"images": ["image", 0], "filename_prefix": "a-%date:yyyy%"}),
            "node 2 (SaveImage), input 'filename_prefix': the editor replaces %date:yyyy%",
        ),
        (
            {"1": {"class_type": "PreviewAny", "inputs": {"source": 5}}},
            "node 1 (PreviewAny), input 'source': the editor has no place for this value; connect a node that holds it",
        ),
        (
            {"1": {"class_type": "CLIPTextEncode", "inputs": {"text": "ends in \\", "clip": ["2", 0]}}},
            "node 1 (CLIPTextEncode), input 'text': the editor adds the word undefined after the backslash at its end",
        ),
    ],
)
def test_what_the_editor_would_change_is_said(nodes: dict[str, Any], note: str) -> None:
    clip = {"2": {"class_type": "CLIPLoader", "inputs": {"clip_name": "c", "type": "sd3", "device": "cpu"}}}
    written = write_editor_file({**nodes, **(clip if "clip" in str(nodes) else {})}, NODES)
    assert [each for each in written.notes if each.startswith(note)] == list(written.notes)
    assert written.notes


# --- texts that the editor expands ---


def test_every_text_is_written_so_that_the_editor_sends_it_unchanged() -> None:
    chance = random.Random(1)
    for _ in range(5000):
        text = "".join(chance.choice("\\{}|/*a \n") for _ in range(chance.randrange(14)))
        typed = without_expansion(text)
        if typed is None:
            assert text.endswith("\\")
        else:
            assert expanded(typed) == text


@pytest.mark.parametrize(
    ("typed", "sent"),
    [
        ("a cat", "a cat"),
        ('{"json": {"x": 1}} // c /* d */ \\{esc\\}', '"json": "x": 1 '),
        ("a // b\nc /* d\n */ e", "a \nc  e"),
        ("\\{a\\|b\\}", "{a|b}"),
        ("a {red|blue} cat", None),
        ("{" * 5000, None),
    ],
)
def test_a_typed_text_is_read_as_the_editor_sends_it(typed: str, sent: str | None) -> None:
    assert expanded(typed) == sent


def text_of(typed: str) -> tuple[Any, tuple[str, ...]]:
    nodes = {
        "1": {"class_type": "CLIPLoader", "inputs": {"clip_name": "c", "type": "sd3", "device": "cpu"}},
        "2": {"class_type": "CLIPTextEncode", "inputs": {"text": "x", "clip": ["1", 0]}},
    }
    document = json.loads(json.dumps(write_editor_file(nodes, NODES).document))
    for node in document["nodes"]:
        if node["type"] == "CLIPTextEncode":
            node["widgets_values"] = [typed]
    converted = convert_editor_file(read_editor_file(document), NODES)
    return converted.nodes["2"]["inputs"]["text"], converted.notes


def test_a_comment_is_removed_on_import_and_a_random_choice_is_kept_and_both_are_said() -> None:
    assert text_of("a cat") == ("a cat", ())
    text, (note,) = text_of("a cat // not this")
    assert text == "a cat "
    assert "removes comments, braces and escapes from text" in note
    text, (note,) = text_of("a {red|blue} cat")
    assert text == "a {red|blue} cat"
    assert "at random; the text is kept" in note


# --- layout ---


def test_a_chain_of_3000_nodes_is_laid_out() -> None:
    sizes = {str(number): (100.0, 50.0) for number in range(3000)}
    placed = positions(sizes, {str(number): [str(number - 1)] for number in range(1, 3000)})
    assert [placed[str(number)][0] for number in (0, 1, 2)] == [0, 190, 380]


@pytest.mark.parametrize("number", [10, 30, 200, 2000])
def test_many_nodes_that_need_nothing_are_laid_out_in_several_columns(number: int) -> None:
    loaders = [str(index) for index in range(number)]
    sizes = {name: (240.0, 60.0 + 40 * (index % 9)) for index, name in enumerate([*loaders, "all"])}
    placed = positions(sizes, {"all": loaders})
    boxes = {name: (x, y, x + sizes[name][0], y + sizes[name][1] + 30) for name, (x, y) in placed.items()}
    right, bottom = (max(box[side] for box in boxes.values()) for side in (2, 3))
    assert bottom <= max(3500, 1.2 * right)
    assert right <= max(1000, 1.5 * bottom)
    for first, second in itertools.combinations(boxes.values(), 2):
        beside = first[2] <= second[0] or second[2] <= first[0]
        assert beside or first[3] <= second[1] or second[3] <= first[1]
    assert all(boxes[name][2] < boxes["all"][0] for name in loaders)


def test_a_node_is_wide_enough_for_its_values_and_high_enough_for_its_text() -> None:
    plain = Shape("A", [], [], ["steps  20"])
    assert Shape("A", [], [], [f"ckpt_name  {'x' * 40}"]).size[0] > plain.size[0]
    long, longer = (Shape("A", [], [], [], ["words " * count]).size for count in (80, 120))
    assert plain.size[1] < long[1] < longer[1]
