"""Proofs that were made before: they save time, and can never hide a fault."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from compiler import Sources, load_catalogue, proofs_to_keep
from compiler.proof import catalogue_proof
from compiler.proof.kept_proofs import Digests, read_proofs
from tests.compiler.catalogues import (
    CATALOGUE,
    SOURCES,
    exported,
    with_document,
    with_template,
    with_workflow,
)

KEPT = proofs_to_keep(CATALOGUE)
MODEL = "sd-1.5-pruned-emaonly"
TEMPLATE = SOURCES.templates["sd15_simple.json.j2"]


@pytest.fixture
def proved(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The models that were proved anew."""
    models: list[str] = []
    prove = catalogue_proof._prove_model

    def record(model: Any, proofs: Any) -> Any:
        models.append(model.id)
        return prove(model, proofs)

    monkeypatch.setattr(catalogue_proof, "_prove_model", record)
    return models


def with_kept(sources: Sources = SOURCES, kept: str = KEPT, own: str = "") -> Sources:
    return replace(sources, shipped_proofs=kept, own_proofs=own)


def digest(sources: Sources) -> str:
    catalogue = load_catalogue(sources, proved=())
    return Digests(catalogue).of(catalogue.models[MODEL])


def test_with_kept_proofs_nothing_is_proved_and_nothing_differs(proved: list[str]) -> None:
    catalogue = load_catalogue(with_kept())
    assert proved == []
    assert catalogue.proofs == CATALOGUE.proofs


def edited(**changes: Any) -> Sources:
    def change(document: Any) -> None:
        document["models"][MODEL] |= changes

    return with_document(change)


def learned(**record: Any) -> Sources:
    node = {**CATALOGUE.nodes["nodes"]["KSampler"], **record}
    return replace(SOURCES, learned_nodes=json.dumps({"versions": {"0.99.0": {"KSampler": node}}}))


@pytest.mark.parametrize(
    "sources",
    [
        with_template(TEMPLATE + " "),
        edited(defaults={"steps": 21}),
        edited(limits={"n": 10, "batch": 2}),
        edited(presets={"quality": {"low": {"steps": 3}}}),
        edited(size={"default": "512x512", "multiple_of": 8, "min": "256x256", "max": "2048x2048"}),
        edited(files={"checkpoint": {"name": "x.safetensors", "folder": "diffusion_models"}}),
        learned(outputs=["LATENT", "IMAGE"]),
    ],
    ids=["template", "defaults", "batch", "presets", "size", "folder", "learned node"],
)
def test_whatever_a_proof_depends_on_changes_its_hash(sources: Sources) -> None:
    assert digest(sources) != digest(SOURCES)


def test_names_of_files_and_models_do_not() -> None:
    file = {"name": "another.safetensors", "folder": "checkpoints"}
    sources = edited(files={"checkpoint": file}, title="Another", aliases=["another"])
    assert digest(sources) == digest(SOURCES)


CLASSES = [
    "{% set sampler_class = 'KSampler' %}",  # single quotes
    '{% set x, sampler_class = 1, "KSampler" %}',
    '{% set sampler_class = "Nothing" if false else "KSampler" %}',
    '{% set sampler_class = "KSam" ~ "pler" %}',
    '{% set sampler_class = ["KSam", "pler"] | join %}',
    '{% set sampler_class = "K%s" % "Sampler" %}',
    '{% set sampler_class = "KSamplerX"[:8] %}',
]


@pytest.mark.parametrize("setting", CLASSES)
@pytest.mark.parametrize("use", ["{{ sampler_class }}", '"{{ "K" }}Sampler"'])
def test_a_node_that_a_template_names_in_any_way_is_part_of_the_hash(setting: str, use: str) -> None:
    text = setting + TEMPLATE.replace('"class_type": "KSampler"', f'"class_type": {use}')
    assert text != setting + TEMPLATE
    before = with_template(text)
    after = replace(before, learned_nodes=learned(outputs=["LATENT", "IMAGE"]).learned_nodes)
    assert digest(before) != digest(after)


def test_a_template_that_becomes_faulty_is_found_in_spite_of_kept_proofs() -> None:
    sources = with_template(TEMPLATE.replace("{{ seed }}", "5"))
    assert MODEL in load_catalogue(with_kept(sources)).undrawable


def test_models_with_faults_are_proved_at_every_start(proved: list[str]) -> None:
    sources = with_workflow(TEMPLATE.replace("{{ seed }}", "5"))
    faulty = load_catalogue(sources)
    assert "mine" in faulty.undrawable
    proved.clear()
    again = load_catalogue(with_kept(sources, proofs_to_keep(faulty)))
    assert proved == ["mine"]
    assert again.undrawable == faulty.undrawable


@pytest.mark.parametrize(
    "kept",
    [
        "", "{", "[]", "null", '{"proofs": []}', '{"proofs": {"x": 5}}', "[" * 100_000, KEPT[:-40], "\0" * 1000,
        KEPT.replace('"has_seed"', '"seed"'), KEPT.replace("[[", "[5, ["), '{"proofs": {"x": {"generate": null}}}',
    ],
)  # fmt: skip
def test_a_damaged_file_only_costs_time(kept: str) -> None:
    assert load_catalogue(with_kept(kept=kept)).proofs == CATALOGUE.proofs


def test_an_entry_that_lacks_a_task_is_not_believed(proved: list[str]) -> None:
    document = json.loads(KEPT)
    for entry in document["proofs"].values():
        entry.pop("generate")
    catalogue = load_catalogue(with_kept(kept=json.dumps(document)))
    assert catalogue.proofs == CATALOGUE.proofs
    assert len(proved) == len(set(map(repr, proved)))
    assert proved


def test_only_what_the_other_file_does_not_have_is_kept(proved: list[str]) -> None:
    sources = with_workflow(exported())
    catalogue = load_catalogue(with_kept(sources))
    own = proofs_to_keep(catalogue, [KEPT])
    assert len(read_proofs([own])) == 1
    proved.clear()
    load_catalogue(with_kept(sources, own=own))
    assert proved == []
    assert proofs_to_keep(CATALOGUE, [KEPT]) == ""
