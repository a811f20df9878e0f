"""Who misspells a name in the catalogue or in a template is told the nearest one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from compiler import compile_workflow, load_catalogue, read_sources
from compiler.catalogue_file import parse_catalogue
from errors import CatalogueInvalid, GraphInvalid, TemplateInvalid
from schemas import did_you_mean, located_errors, nearest
from tests.compiler.catalogues import PATHS, SOURCES, image_request, with_document, with_template

TEXT = SOURCES.templates["sd15_simple.json.j2"]
PICTURE = SOURCES.templates["part_picture.json.j2"]


# --- the catalogue ---


def moved(section: dict[str, Any], old: str, new: str) -> None:
    section[new] = section.pop(old)


def sd15(document: Any) -> Any:
    return document["models"]["sd-1.5-pruned-emaonly"]


def inputs(document: Any) -> Any:
    return document["workflows"]["sd15_simple"]["inputs"]


CATALOGUE_CASES: list[tuple[Callable[[Any], Any], str]] = [
    (lambda d: moved(d["workflows"]["sd15_simple"], "title", "tilte"), "unknown key tilte (did you mean title?); allowed"),
    (lambda d: moved(d["workflows"]["sd15_simple"], "tasks", "task"), "unknown key task (did you mean tasks?)"),
    (lambda d: moved(sd15(d), "licence", "license"), "unknown key license (did you mean licence?)"),
    (lambda d: moved(inputs(d)["steps"], "maximum", "Maximun"), "unknown key Maximun (did you mean maximum?)"),
    (lambda d: moved(inputs(d)["schedule"], "x-choices", "x-choises"), "unknown key x-choises (did you mean x-choices?)"),
    (lambda d: d["workflows"]["sd15_simple"].update(tasks=["inpant"]), '"inpant" is not allowed (did you mean inpaint?)'),
    (lambda d: inputs(d)["steps"].update(type="interger"), '"interger" is not allowed (did you mean integer?)'),
    (lambda d: moved(d["workflows"]["sd15_simple"]["presets"], "quality", "qualty"), '"qualty" is not allowed (did you mean quality?)'),
    (lambda d: sd15(d)["licence"].update(commercial="conditonal"), '"conditonal" is not allowed (did you mean conditional?)'),
    (lambda d: d.update(default_model="sdxl-tubro"), "no model 'sdxl-tubro' (did you mean sdxl-turbo?)"),
    (lambda d: sd15(d).update(workflow="sd15-simple"), "no workflow 'sd15-simple' (did you mean sd15_simple?)"),
    (lambda d: sd15(d).update(defaults={"stpes": 5}), "no input 'stpes' (did you mean steps?)"),
    (lambda d: sd15(d).update(presets={"quality": {"low": {"stesp": 5}}}), "'stesp' is not an input (did you mean steps?)"),
    (lambda d: inputs(d)["cfg"].update({"x-unused-when": {"shedule": "ays"}}), "'shedule' is not an input (did you mean schedule?)"),
    (lambda d: inputs(d)["cfg"].update({"x-when": [{"if": {"tsak": "edit"}, "then": {"default": 1}}]}), "nor `task` (did you mean task?)"),
    (lambda d: inputs(d)["sampler"].update({"x-choices": "KSampler.sampler_nam"}), "'sampler_nam' with choices (did you mean sampler_name?)"),
    (lambda d: d["loras"]["lcm-sd-1.5"].update(families=["SD 1.X"]), "family 'SD 1.X' (did you mean SD 1.x?)"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "expected"), CATALOGUE_CASES, ids=[text for _, text in CATALOGUE_CASES])
def test_a_misspelt_name_in_the_catalogue_is_answered_with_the_nearest(
    change: Callable[[Any], Any], expected: str
) -> None:
    with pytest.raises(CatalogueInvalid) as caught:
        load_catalogue(with_document(change))
    assert expected in caught.value.message


def test_a_long_list_of_choices_does_not_hide_the_suggestion() -> None:
    with pytest.raises(CatalogueInvalid) as caught:
        load_catalogue(with_document(lambda document: inputs(document)["sampler"].update(default="eulr")))
    assert '"eulr" is not allowed (did you mean euler?)' in caught.value.message


# --- the graph ---


GRAPH_CASES = [
    ('"class_type": "VAEDecode"', '"class_type": "VAEDecoder"', "unknown node class (did you mean VAEDecode?)"),
    ('"class_type": "VAEDecode"', '"class_type": "vaedecode"', "unknown node class (did you mean VAEDecode?)"),
    ('"class_type": "VAEDecode"', '"clas_type": "VAEDecode"', "not a node (did you mean class_type instead of clas_type?)"),
    ('"class_type": "VAEDecode", "inputs"', '"class_type": "VAEDecode", "input"', "must not have this key (did you mean inputs?)"),
    ('"samples": ["sampler", 0]', '"sample": ["sampler", 0]', "no such input (did you mean samples?)"),
    ('"samples": ["sampler", 0]', '"samples": ["smapler", 0]', "does not exist (did you mean sampler?)"),
    ('"sampler_name": {{ sampler }}', '"sampler_name": "dpmpp_2n"', "not one of the choices (did you mean dpmpp_2m?)"),
    ('"class_type": "VAEDecode"', '"class_type": "MyVeryOwnNode"', "unknown node class ("),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "expected"), GRAPH_CASES)
def test_a_misspelt_name_in_a_graph_is_answered_with_the_nearest(old: str, new: str, expected: str) -> None:
    assert old in TEXT
    catalogue = parse_catalogue(with_template(TEXT.replace(old, new)))
    with pytest.raises(GraphInvalid) as caught:
        compile_workflow(image_request(model="sd-1.5"), catalogue)
    assert expected in caught.value.message
    assert caught.value.message.count("did you mean") == expected.count("did you mean")


def test_a_misspelt_input_of_a_dynamic_combo_is_answered_with_the_nearest() -> None:
    scaled = """{"scaled": {"class_type": "ResizeImageMaskNode", "inputs": {
      "input": ["decoded", 0], "resize_type": "scale dimensions", "resize_type.widht": 64, "resize_type.height": 64,
      "resize_type.crop": "center", "scale_method": "area"}}}"""
    sources = with_template(TEXT.replace('{% include "part_picture', scaled + '{% include "part_picture'))
    with pytest.raises(GraphInvalid, match=r"\(did you mean resize_type\.width\?\)"):
        compile_workflow(image_request(model="sd-1.5"), parse_catalogue(sources))


def test_a_node_that_no_shipped_template_uses_is_suggested_too(tmp_path: Path) -> None:
    assert '"LatentBatchSeedBehavior"' not in SOURCES.nodes
    for name, text in SOURCES.templates.items():
        misspelt = text.replace('"class_type": "VAEDecode"', '"class_type": "LatentBatchSedBehavior"')
        (tmp_path / name).write_text(misspelt)
    catalogue = parse_catalogue(read_sources(replace(PATHS, templates=tmp_path)))
    with pytest.raises(GraphInvalid, match=r"\(did you mean LatentBatchSeedBehavior\?\)"):
        compile_workflow(image_request(model="sd-1.5"), catalogue)


# --- the template ---


TEMPLATE_CASES = [
    ("{{ prompt }}", "{{ promt }}", "'promt' is undefined; write {{ prompt }}"),
    ("{{ prompt }}", "{{ prompt | trimm }}", "No filter named 'trimm'. (did you mean trim?)"),
    ("{{ prompt }}", '{{ prompt if prompt is strng else "" }}', "No test named 'strng' found. (did you mean string?)"),
    ("{{ files.checkpoint }}", "{{ files.chekpoint }}", "write {{ files.checkpoint }}"),
    ("part_picture.json.j2", "part_pictur.json.j2", "no template 'part_pictur.json.j2' (did you mean part_picture.json.j2?)"),
    ("{{ at.clip }}", "{{ at.clp }}", "did you mean `.clip`?"),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "expected"), TEMPLATE_CASES)
def test_a_misspelt_name_in_a_template_is_answered_with_the_nearest(
    old: str, new: str, expected: str
) -> None:
    assert old in TEXT
    assert expected in "\n".join(faults(TEXT.replace(old, new)))


def faults(text: str, name: str = "sd15_simple.json.j2") -> list[str]:
    undrawable = load_catalogue(with_template(text, name=name)).undrawable
    return [fault for tasks in undrawable.values() for each in tasks.values() for fault in each]


@pytest.mark.parametrize(
    "quoted", ["'{{ prompt }}'", "\u201c{{ prompt }}\u201d", "'{{- prompt | tojson -}}'"]
)
def test_a_value_in_other_quotes_than_those_of_json_is_named(quoted: str) -> None:
    number = next(n for n, line in enumerate(TEXT.splitlines(), 1) if "{{ prompt }}" in line)
    hint = f"Line {number}: write {{{{ prompt }}}} without the quotes around it"
    assert hint in "\n".join(faults(TEXT.replace("{{ prompt }}", quoted)))


@pytest.mark.parametrize(
    "quoted", ['"{{prompt}}"', '"{{ prompt | tojson }}"', '"{{- prompt -}}"', '" {{ prompt }}"']
)
def test_a_value_in_quotes_is_named_in_all_forms(quoted: str) -> None:
    written = '{{ " " ~ prompt }}' if quoted.startswith('" ') else "{{ prompt }}"
    hint = f"write {written} without the quotes around it"
    assert hint in "\n".join(faults(TEXT.replace("{{ prompt }}", quoted)))


def test_a_number_with_a_filter_for_json_is_named() -> None:
    hint = "write {{ seed }} without the filter"
    assert hint in "\n".join(faults(TEXT.replace("{{ seed }}", "{{ seed | tojson }}")))


def test_a_value_in_quotes_in_an_included_part_is_named_with_the_part() -> None:
    quoted = PICTURE.replace("{{ prefix }}", '"{{ prefix }}"')
    assert quoted != PICTURE
    found = "\n".join(faults(quoted, "part_picture.json.j2"))
    assert "In part_picture.json.j2: Line " in found
    assert "write {{ prefix }} without the quotes around it" in found


# --- the suggestion itself ---


def test_the_nearest_name_is_found_whatever_its_case_and_nothing_far_away() -> None:
    assert nearest("KSAMPLER", ["VAEDecode", "KSampler"]) == "KSampler"
    assert nearest("wholly different", ["steps", "cfg"]) is None
    assert nearest("x" * 10_000, ["x" * 9_999]) is None
    assert nearest(5, ["5"]) is None
    assert did_you_mean("steps", ["steps"]) == ""
    assert did_you_mean("stpes", ["steps", 5]) == " (did you mean steps?)"


def test_a_value_that_may_be_secret_gets_no_suggestion() -> None:
    ((_, text),) = located_errors(Draft202012Validator({"enum": ["secret1"]}), "secret2", show_values=False)
    assert text == "it must be one of secret1"


def test_the_message_names_the_key_that_was_probably_meant_among_those_that_are_missing() -> None:
    schema = {"properties": {"min": {}, "max": {}}, "additionalProperties": False}
    ((_, text),) = located_errors(Draft202012Validator(schema), {"min": 1, "mx": 2})
    assert text == "unknown key mx (did you mean max?); allowed: min, max"


def test_an_error_of_jinja_without_a_name_is_reported_as_it_is() -> None:
    catalogue = parse_catalogue(with_template(TEXT.replace("{{ prompt }}", "{{ prompt")))
    with pytest.raises(TemplateInvalid) as caught:
        compile_workflow(image_request(model="sd-1.5"), catalogue)
    assert "did you mean" not in caught.value.message
