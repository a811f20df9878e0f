"""What people paste into templates: other exports, placeholders of other programs, quotes, the editor's own keys."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from compiler import Size, SourceImage, compile_workflow, load_catalogue, read_sources
from compiler.exports import quotes_hint, without_editor_inputs
from errors import CatalogueInvalid
from tests.compiler.catalogues import CATALOGUE, PATHS, SOURCES, image_request, with_template, write_sources

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
    ("quoted", "remedy"),
    [
        ('"photo of {{ prompt }}"', '{{ "photo of " ~ prompt }}'),
        ('"{{ prompt }}, sharp"', '{{ prompt ~ ", sharp" }}'),
        ('"{{ prompt | string }} by {{ negative_prompt }}!"', '{{ (prompt | string) ~ " by " ~ negative_prompt ~ "!" }}'),
        ('"a \\"fine\\" {{- prompt }}"', '{{ "a \\"fine\\" " ~ prompt }}'),
        ('"{{ {"a": prompt}["a"] }}"', '{{ ({"a": prompt}["a"]) }}'),
    ],
)  # fmt: skip
def test_a_value_inside_a_text_in_quotes_is_reported_with_the_text_to_write_which_works(
    quoted: str, remedy: str
) -> None:
    (number,) = (n for n, line in enumerate(TEXT.splitlines(), 1) if "{{ prompt }}" in line)
    messages = messages_of(TEXT.replace("{{ prompt }}", quoted))
    assert f"Line {number}: write {remedy} without the quotes around it" in "\n".join(messages)
    corrected = load_catalogue(with_template(TEXT.replace("{{ prompt }}", remedy)))
    graph = compile_workflow(image_request("a cat", model="sd-1.5"), corrected).graphs[0].nodes
    assert "a cat" in graph["positive"]["inputs"]["text"]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('{"a": {{ b }}, "c": "d"}', None),
        ('{"a": "x {y}", "b": {{ c }}, "d": {{ e }}}', None),
        ('{# "{{ a }}" #}\n{"a": {{ \'"\' }}, "b": "{% if c %}d{% endif %}"}', None),
        ('{"a": "b\n{{ c }}"}', None),
        ('{"a":\n "{% if b %}{{ c }}{% endif %}"}', 2),
        ('{% if a %}\n"b": {{ c }},\n{% endif %}\n"d": "{{ e }}"', 4),
        ('{"a": "{{ b["c"] }}"}', 1),
    ],
)
def test_only_values_in_quotes_are_hinted_at(text: str, line: int | None) -> None:
    hint = quotes_hint(text)
    assert hint.startswith(f". Line {line}: ") if line else hint == ""


@pytest.mark.parametrize("part", ['{{ "', '"{{ ', "{{ '", "{%", "{#", '"', "\\", "}}"])
def test_a_text_with_many_unclosed_tags_is_read_quickly(part: str) -> None:
    started_at = time.process_time()
    quotes_hint(part * 5000)
    assert time.process_time() - started_at < 2


def test_a_byte_order_mark_at_the_start_of_a_file_is_ignored_and_elsewhere_named(tmp_path: Path) -> None:
    folder = tmp_path / "own"
    write_sources(SOURCES, folder)
    for path in (folder / "catalogue.yaml", folder / "templates/sd15_simple.json.j2"):
        path.write_text(path.read_text("utf-8"), "utf-8-sig")
    paths = replace(PATHS, catalogue=folder / "catalogue.yaml", templates=folder / "templates")
    assert read_sources(paths) == SOURCES
    lines = TEXT.splitlines(keepends=True)
    messages = messages_of("".join([*lines[:3], "\ufeff", *lines[3:]]))
    assert messages
    assert all("Line 4 contains a byte order mark (U+FEFF)" in message for message in messages)


def test_a_file_in_another_encoding_is_refused_with_the_remedy(tmp_path: Path) -> None:
    write_sources(SOURCES, tmp_path)
    (tmp_path / "templates/sd15_simple.json.j2").write_text(TEXT, "utf-16")
    with pytest.raises(CatalogueInvalid, match=r"sd15_simple\.json\.j2 is not UTF-8 at byte 0; save it with"):
        read_sources(replace(PATHS, templates=tmp_path / "templates"))


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
@pytest.mark.parametrize("place", ['"cfg": {{ cfg }}', '"text": {{ prompt }}'])
def test_a_number_that_is_not_finite_is_an_error_of_the_graph(number: str, place: str) -> None:
    name, _, _ = place.partition(": ")
    messages = messages_of(TEXT.replace(place, f"{name}: {number}"))
    assert any(f"input {name.replace(chr(34), chr(39))}" in message for message in messages)
    assert any("not a finite number" in message for message in messages)


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
