"""What people paste into templates: other exports, placeholders of other programs, quotes, the editor's own keys."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from compiler import Size, SourceImage, compile_workflow, load_catalogue
from compiler.exports import without_editor_inputs
from tests.compiler.catalogues import CATALOGUE, SOURCES, image_request, with_template

TEXT = SOURCES.templates["sd15_simple.json.j2"]
GRAPH = compile_workflow(image_request(model="sd-1.5"), CATALOGUE).graphs[0].nodes
EDITOR_NODE = {"id": 4, "type": "SaveImage", "pos": [1, 2], "widgets_values": ["a {#b} {% c"]}
EDITOR = {"last_node_id": 9, "last_link_id": 9, "nodes": [EDITOR_NODE], "links": [], "version": 0.4}


def messages_of(text: str) -> list[str]:
    """The faults of the models whose template is `text`, without the place."""
    undrawable = load_catalogue(with_template(text)).undrawable
    faults = [fault for tasks in undrawable.values() for each in tasks.values() for fault in each]
    return [fault.partition("sd15_simple.json.j2: ")[2] for fault in faults]


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        (EDITOR, "use Workflow > Export (API)"),
        ({"nodes": [], "links": []}, "use Workflow > Export (API)"),
        ({"id": "x", "version": 1, "nodes": [], "definitions": {"subgraphs": []}}, "use Workflow > Export (API)"),
        ({"prompt": GRAPH}, "inside the key 'prompt'"),
        ({"client_id": "x", "prompt": GRAPH, "extra_data": {"extra_pnginfo": {"workflow": EDITOR}}}, "inside the key 'prompt'"),
        ({"workflow": EDITOR, "output": GRAPH}, "inside the key 'output'"),
        ({"prompt": [3, "id", GRAPH, {}, ["9"]], "outputs": {}}, "ComfyUI's history"),
    ],
)  # fmt: skip
def test_another_export_is_named_with_what_to_do_and_nothing_else_is_reported(
    document: dict[str, Any], expected: str
) -> None:
    messages = messages_of(json.dumps(document, indent=2))
    assert messages
    assert all(expected in message for message in messages)


@pytest.mark.parametrize("quoted", ["prompt", "seed", "steps", "files.checkpoint"])
def test_a_value_in_quotes_is_reported_with_the_line_and_the_remedy(quoted: str) -> None:
    lines = TEXT.splitlines()
    number = next(n for n, line in enumerate(lines, 1) if f"{{{{ {quoted} }}}}" in line)
    messages = messages_of(TEXT.replace(f"{{{{ {quoted} }}}}", f'"{{{{ {quoted} }}}}"'))
    assert f"Line {number}: write {{{{ {quoted} }}}} without the quotes" in "\n".join(messages)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("{{ prompt }}", '"%prompt%"', "%prompt% write {{ prompt }}, without quotes"),
        ("{{ prompt }}", '"masterpiece, %prompt%"', "%prompt% write {{ prompt }}, without quotes"),
        ("{{ seed }}", '"%seed%"', "%seed% write {{ seed }}, without quotes"),
        ("{{ cfg }}", '"%scale%"', "%scale% write {{ cfg }}, without quotes"),
        ("{{ files.checkpoint }}", '"%model%"', "%model% write {{ files.checkpoint }}, without quotes"),
    ],
)
def test_a_placeholder_of_another_program_is_named(old: str, new: str, expected: str) -> None:
    assert old in TEXT
    messages = messages_of(TEXT.replace(old, new))
    assert messages
    assert all(expected in message for message in messages)


def test_a_prompt_may_contain_what_looks_like_a_placeholder() -> None:
    text = 'a "%prompt%" of 100% {{ x }}'
    (graph,) = compile_workflow(image_request(text, model="sd-1.5"), CATALOGUE).graphs
    assert graph.nodes["positive"]["inputs"]["text"] == text


@pytest.mark.parametrize(
    "key", ["upload", "choose file to upload", "choose video to upload", "control_after_generate", "$$canvas-image-preview", "audioUI"]
)  # fmt: skip
def test_inputs_of_the_editor_are_dropped_as_comfyui_does(key: str) -> None:
    name = "part_image_to_latent.json.j2"
    part = SOURCES.templates[name]
    addition = f'"image": {{{{ image }}}}, {json.dumps(key)}: "image"'
    changed = part.replace('"image": {{ image }}', addition)
    assert changed != part
    catalogue = load_catalogue(with_template(changed, name=name))
    request = image_request(model="sd-1.5", task="edit", source=_source())
    nodes = compile_workflow(request, catalogue).graphs[0].nodes
    assert nodes == compile_workflow(request, CATALOGUE).graphs[0].nodes
    assert key not in str(nodes)


def _source() -> Any:
    return SourceImage(Size(512, 512), "easel/x.png [temp]")


def test_an_input_that_the_node_has_or_that_is_linked_is_never_dropped() -> None:
    signatures = CATALOGUE.signatures
    node = signatures["SaveImage"]
    signatures = {**signatures, "SaveImage": replace(node, inputs={**node.inputs, "upload": node.inputs["filename_prefix"]})}  # fmt: skip
    nodes = {
        "a": {"class_type": "SaveImage", "inputs": {"upload": "x"}},
        "b": {"class_type": "LoadImage", "inputs": {"upload": ["a", 0]}},
        "c": {"class_type": "Unknown", "inputs": {"upload": "x"}},
        "d": "no node",
    }
    assert without_editor_inputs(nodes, signatures) == nodes
