"""The owner's folder: what is read there, what a mistake removes, and who has a name that two entries want."""

from __future__ import annotations

import json
import os
import textwrap
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from compiler import Catalogue, Sources, compile_workflow, load_catalogue, read_sources
from compiler.sources import MAX_OWN_FILE_BYTES, SourcePaths
from errors import InvalidValue, ModelNotCurated, ModelNotDrawable
from tests.compiler.catalogues import (
    OWN_MODEL,
    PATHS,
    SOURCES,
    exported,
    image_request,
    with_document,
    with_template,
)

WORKFLOW: Mapping[str, Any] = {"title": "Mine", "tasks": ["generate"], "inputs": {}}
LORA: Mapping[str, Any] = {
    "title": "Mine",
    "families": ["SD 1.x"],
    "file": {"name": "mine.safetensors"},
    "licence": {"name": "unknown", "commercial": "unknown"},
}


def model(**changes: Any) -> dict[str, Any]:
    return {**OWN_MODEL, **changes}


def own(
    files: Mapping[str, Any],
    templates: Mapping[str, str] | None = None,
    *,
    sources: Sources = SOURCES,
    unreadable: Mapping[str, str] | None = None,
) -> Sources:
    """`sources` with these files in the owner's folder; `files`: name -> text, or a document."""
    texts = {
        name: content if isinstance(content, str) else yaml.safe_dump(content, sort_keys=False)
        for name, content in sorted(files.items())
    }
    return replace(
        sources,
        own_folder="catalogue.d",
        own_entries=texts,
        own_templates=templates or {},
        own_unreadable=unreadable or {},
    )


def faults(catalogue: Catalogue) -> list[str]:
    return list(map(str, catalogue.own_faults))


def overrides(catalogue: Catalogue) -> list[str]:
    return list(map(str, catalogue.own_overrides))


def graph(catalogue: Catalogue, name: str, **fields: Any) -> str:
    (compiled,) = compile_workflow(image_request(model=name, **fields), catalogue).graphs
    return json.dumps(compiled.nodes)


# --- entries ------------------------------------------------------------------------------------------


def test_models_of_the_own_folder_are_served_beside_the_others_with_workflows_and_templates_of_both() -> None:
    sources = own(
        {
            "a.yaml": {"models": {"a": model()}},
            "b.yaml": {
                "workflows": {"mine": WORKFLOW, "other": {**WORKFLOW, "template": "mine.json.j2"}},
                "models": {"b": model(workflow="mine"), "c": model(workflow="other")},
            },
            "c.yaml": {"models": {"d": model(workflow="mine")}},
            "empty.yaml": "# nothing yet\n",
        },
        {"mine.json.j2": exported(n7_text="my own template")},
    )
    catalogue = load_catalogue(sources)
    assert (faults(catalogue), overrides(catalogue), catalogue.undrawable) == ([], [], {})
    assert set(catalogue.models) - set(load_catalogue(SOURCES).models) == {"a", "b", "c", "d"}
    assert "my own template" not in graph(catalogue, "a")
    assert all("my own template" in graph(catalogue, name) for name in ("b", "c", "d"))
    plan = compile_workflow(image_request(model="b"), catalogue).plan
    assert (plan.workflow, plan.template) == ("mine", "catalogue.d/mine.json.j2")
    assert catalogue.models["a"].licence.url is None
    assert "mine.safetensors" in catalogue.files["checkpoints"]


def test_a_template_of_the_own_folder_can_use_every_node_of_comfyui(tmp_path: Path) -> None:
    folder = tmp_path / "catalogue.d"
    folder.mkdir()
    more = json.loads((PATHS.schemas / "more_nodes.json").read_text())["nodes"]
    assert "AdjustContrast" in more
    contrast = {"more": {"class_type": "AdjustContrast", "inputs": {"images": ["8", 0], "factor": 1.5}}}
    (folder / "mine.json.j2").write_text(exported(add=contrast, n9_images=["more", 0]))
    document = {"workflows": {"mine": WORKFLOW}, "models": {"mine": model(workflow="mine")}}
    (folder / "mine.yaml").write_text(yaml.safe_dump(document))
    catalogue = load_catalogue(read_sources(replace(PATHS, own_folder=folder)))
    assert (faults(catalogue), catalogue.undrawable) == ([], {})
    assert "AdjustContrast" in graph(catalogue, "mine")


# --- mistakes -----------------------------------------------------------------------------------------

GOOD = {"good": model(), "alike": model(aliases=["good-too"])}


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ({"models": {**GOOD, "bad": model(size={"default": "512"})}}, "models.bad.size.default: "),
        ({"models": {**GOOD, "bad": model(defaults={"stepz": 3})}}, "models.bad.defaults.stepz: the workflow has no input"),
        ({"models": {**GOOD, "bad": model(defaults={"steps": 999})}}, "models.bad.defaults.steps: 999 is not allowed"),
        ({"models": {**GOOD, "bad": model(workflow="gone")}}, "models.bad.workflow: there is no workflow 'gone'"),
        ({"models": {**GOOD, "not allowed": model()}}, "models.not allowed: "),
        ({"models": {**GOOD, "bad": None}}, "models.bad: "),
        ({"models": {**GOOD, "bad": model(licence={"name": "MIT", "commercial": True})}}, "models.bad.licence: `url` is missing"),
        ({"models": {**GOOD, "bad": model(licence={"name": "MIT"})}}, "models.bad.licence: `commercial` is missing"),
        ({"models": GOOD, "workflows": {"bad": {"title": "Bad"}}}, "workflows.bad: `tasks` is missing"),
        (
            {"models": GOOD, "workflows": {"bad": {**WORKFLOW, "inputs": {"s": {"type": "string", "x-choices": "KSampler.gone"}}}}},
            "workflows.bad.inputs.s.x-choices: the node KSampler has no input 'gone'",
        ),
        ({"models": GOOD, "loras": {"bad": {**LORA, "families": ["Gone"]}}}, "loras.bad.families.0: no model has the family"),
        ({"models": GOOD, "nodes": {"Mine": {"more": 1}}}, "nodes.Mine: unknown key more"),
    ],
)  # fmt: skip
def test_a_mistake_in_an_entry_removes_this_entry_only_and_is_reported_with_file_line_and_path(
    entries: Any, expected: str
) -> None:
    catalogue = load_catalogue(own({"mine.yaml": entries, "other.yaml": {"models": {"other": model()}}}))
    found = faults(catalogue)
    assert found
    text = yaml.safe_dump(entries, sort_keys=False)
    for fault in found:
        place, path, _ = fault.split(": ", 2)
        name, _, line = place.partition(":")
        assert name == "catalogue.d/mine.yaml"
        assert path.split(".")[-1].strip() in text.splitlines()[int(line) - 1] or path.endswith(".0")
    assert any(expected in fault for fault in found), found
    assert {"good", "alike", "other", "sdxl-turbo"} <= set(catalogue.models)
    assert "bad" not in {*catalogue.models, *catalogue.workflows, *catalogue.loras}
    assert catalogue.find("good-too").id == "alike"
    assert catalogue.undrawable == {}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("models:\n  bad: [", "catalogue.d/mine.yaml:3: "),
        ("models: {}\nmodels: []", "catalogue.d/mine.yaml:2: the key 'models' is given twice"),
        ("- models", "catalogue.d/mine.yaml:1: document: "),
        ("models:\n", "catalogue.d/mine.yaml:1: models: "),
        ("workflows: {}\nmodelz: {bad: 1}", "catalogue.d/mine.yaml:1: document: unknown key modelz (did you mean models?); allowed: workflows, models"),
        ("workflows: {}\ndefault_model: bad", "catalogue.d/mine.yaml:2: default_model: `default_model` belongs into catalogue.yaml; set `images.default_model`"),
        ("[" * 50_000, "catalogue.d/mine.yaml"),
        ("models: {bad: " * 5_000, "catalogue.d/mine.yaml"),
        ("models: &m\n  bad: *m", "catalogue.d/mine.yaml"),
        ("nodes: &n {bad: &b {files: [*b]}}", "catalogue.d/mine.yaml"),
        (
            "models:\n  bad: &a0 [1, 1]\n" + "".join(f"  bad{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 60)),
            "catalogue.d/mine.yaml: cannot be read: ValueError: it has more than 2,000,000 values",
        ),
        ("\0", "catalogue.d/mine.yaml:"),
        ("models: !!python/object:os.system {}", "catalogue.d/mine.yaml:"),
    ],
)  # fmt: skip
def test_a_file_that_is_wrong_as_a_whole_is_not_used_and_the_others_are(text: str, expected: str) -> None:
    catalogue = load_catalogue(own({"mine.yaml": text, "other.yaml": {"models": {"other": model()}}}))
    assert any(fault.startswith(expected) for fault in faults(catalogue)), faults(catalogue)
    assert all(fault.startswith("catalogue.d/mine.yaml") for fault in faults(catalogue))
    assert "other" in catalogue.models
    assert "bad" not in catalogue.models


def test_only_the_first_mistakes_of_a_file_are_listed_and_the_others_counted() -> None:
    models = {f"bad-{index}": model(workflow="gone") for index in range(50)}
    catalogue = load_catalogue(own({"mine.yaml": {"models": {**models, "good": model()}}}))
    assert (len(faults(catalogue)), faults(catalogue)[-1]) == (21, "catalogue.d/mine.yaml: and 30 more")
    assert "good" in catalogue.models


def test_a_model_without_its_template_is_listed_but_not_drawable_and_says_where_the_template_belongs() -> (
    None
):
    document = {
        "workflows": {"mine": WORKFLOW},
        "models": {"bad": model(workflow="mine"), "good": model()},
    }
    catalogue = load_catalogue(own({"mine.yaml": document}))
    assert faults(catalogue) == []
    (fault,) = catalogue.undrawable["bad"]["generate"]
    assert fault.startswith("there is no template mine.json.j2; add the file to catalogue.d, or write ")
    assert fault.endswith("under workflows.mine in catalogue.d/mine.yaml")
    assert list(catalogue.undrawable) == ["bad"]


def test_what_the_proof_says_about_an_own_workflow_names_its_file() -> None:
    document = {"workflows": {"mine": WORKFLOW}, "models": {"mine": model(workflow="mine")}}
    template = exported(n7_text="{{ negative_prompt }}")
    catalogue = load_catalogue(own({"my.yaml": document}, {"mine.json.j2": template}))
    (fault,) = catalogue.undrawable["mine"]["generate"]
    assert "declare it under workflows.mine.inputs in catalogue.d/my.yaml" in fault
    two = {"10": {"class_type": "SaveImage", "inputs": {"filename_prefix": "x", "images": ["8", 0]}}}
    catalogue = load_catalogue(own({"my.yaml": document}, {"mine.json.j2": exported(add=two)}))
    assert "under workflows.mine in catalogue.d/my.yaml" in str(catalogue.undrawable["mine"])


@pytest.mark.parametrize("name", ["mine", "sd15_simple"])
def test_a_model_never_draws_with_another_workflow_of_the_same_id_than_the_faulty_one_that_it_means(
    name: str,
) -> None:
    wrong: Any = {**WORKFLOW, "inputs": {"steps": {"type": "integer", "default": "many"}}}
    for broken in ({"title": "No tasks"}, wrong):
        files = {
            "a.yaml": {"workflows": {name: broken}, "models": {"a": model(workflow=name)}},
            "b.yaml": {"models": {"b": model(workflow={"generate": name}), "good": model(workflow="sdxl_simple")}},
        }  # fmt: skip
        catalogue = load_catalogue(own(files))
        expected = f"the workflow {name!r} in catalogue.d/a.yaml is not used, because it has a fault"
        found = [fault for fault in faults(catalogue) if fault.endswith(expected)]
        assert [fault.split(": ")[1] for fault in found] == ["models.a.workflow", "models.b.workflow"]
        assert {"a", "b"}.isdisjoint(catalogue.models)
        assert "good" in catalogue.models


# --- names --------------------------------------------------------------------------------------------


def test_a_model_id_of_the_own_folder_replaces_the_shipped_model_and_its_aliases() -> None:
    catalogue = load_catalogue(own({"mine.yaml": {"models": {"SDXL-turbo": model()}}}))
    assert "sdxl-turbo" not in catalogue.models
    assert catalogue.find("sdxl-turbo").title == "Mine"
    with pytest.raises(ModelNotCurated):
        catalogue.find("sdxl_turbo")  # an alias of the shipped model
    # It is catalogue.yaml's default model, and its name is the owner's now.
    assert (catalogue.default_model, catalogue.find(None).title) == ("SDXL-turbo", "Mine")
    assert overrides(catalogue) == [
        "catalogue.d/mine.yaml:2: models.SDXL-turbo: replaces the model sdxl-turbo of catalogue.yaml"
    ]
    assert faults(catalogue) == []


@pytest.mark.parametrize(
    ("name", "aliases", "expected"),
    [
        ("sd15", [], "catalogue.d/mine.yaml:2: models.sd15: sd15 is not an alias of sd-1.5-pruned-emaonly in catalogue.yaml any more"),
        ("mine", ["SD15"], "models.mine.aliases.0: sd15 is not an alias of sd-1.5-pruned-emaonly in catalogue.yaml any more"),
    ],
)  # fmt: skip
def test_a_name_of_the_own_folder_is_taken_from_the_aliases_of_the_shipped_model(
    name: str, aliases: list[str], expected: str
) -> None:
    catalogue = load_catalogue(own({"mine.yaml": {"models": {name: model(aliases=aliases)}}}))
    assert catalogue.find("sd15").id == name
    assert catalogue.find("sd-1.5").id == "sd-1.5-pruned-emaonly"
    assert "sd15" not in catalogue.models["sd-1.5-pruned-emaonly"].aliases
    (found,) = overrides(catalogue)
    assert expected in found


def test_an_alias_of_the_own_folder_replaces_a_shipped_model_with_this_id() -> None:
    catalogue = load_catalogue(own({"mine.yaml": {"models": {"mine": model(aliases=["Sdxl-Turbo"])}}}))
    assert "sdxl-turbo" not in catalogue.models
    assert catalogue.find("sdxl-turbo").id == catalogue.find(None).id == "mine"
    assert "models.mine.aliases.0: replaces the model sdxl-turbo of catalogue.yaml" in overrides(catalogue)[0]


def test_an_update_that_brings_names_of_the_owner_changes_nothing_of_the_owner() -> None:
    files = {
        "mine.yaml": {
            "workflows": {"fresh": WORKFLOW},
            "models": {"new": model(workflow="fresh", aliases=["newest"])},
            "loras": {"new-lora": {**LORA, "families": ["Mine"]}},
        }
    }
    templates = {"fresh.json.j2": with_loras(exported(n7_text="the owner's"))}

    def update(document: Any) -> None:
        shipped = document["models"]["sd-1.5-pruned-emaonly"]
        document["workflows"]["fresh"] = document["workflows"]["sd15_simple"]
        document["models"]["new"] = {**shipped, "workflow": "fresh", "aliases": []}
        document["models"]["drawn"] = {**shipped, "workflow": "fresh", "aliases": []}
        document["models"]["other"] = {**shipped, "aliases": ["NEWEST", "kept"]}
        document["loras"]["New-Lora"] = document["loras"]["lcm-sd-1.5"]
        document["default_model"] = "new"

    updated = with_document(
        update, with_template(SOURCES.templates["sd15_simple.json.j2"], name="fresh.json.j2")
    )
    before, after = (
        load_catalogue(own(files, templates)),
        load_catalogue(own(files, templates, sources=updated)),
    )
    for catalogue in (before, after):
        assert (faults(catalogue), catalogue.undrawable) == ([], {})
        assert catalogue.find("newest").id == "new"
        assert catalogue.loras["new-lora"].families == ("Mine",)
        assert compile_workflow(image_request(model="new"), catalogue).plan.workflow == "fresh"
    assert graph(before, "new") == graph(after, "new")
    assert "the owner's" in graph(after, "new")
    # The shipped ones are served with their own workflow and template.
    assert "the owner's" not in graph(after, "drawn")
    assert after.find("kept").id == "other"
    assert after.models["other"].aliases == ("kept",)
    assert sorted(note.split(": ", 1)[1] for note in overrides(after)) == [
        "loras.new-lora: replaces the LoRA New-Lora of catalogue.yaml",
        "models.new.aliases.0: NEWEST is not an alias of other in catalogue.yaml any more",
        "models.new: replaces the model new of catalogue.yaml",
    ]


def with_loras(template: str) -> str:
    """`template` with the part that adds LoRAs to its checkpoint."""
    head = '{% set at = namespace(model=["4", 0], clip=["4", 1]) %}{% include "part_loras.json.j2" %}'
    body = template.replace('"model": [\n        "4",\n        0\n      ]', '"model": {{ at.model }}')
    return head + body.replace('"clip": [\n        "4",\n        1\n      ]', '"clip": {{ at.clip }}')


def test_between_two_own_files_the_first_in_the_order_of_their_names_has_the_name() -> None:
    first = {
        "workflows": {"mine": WORKFLOW},
        "models": {"one": model(workflow="mine"), "two": model(aliases=["shared"])},
        "loras": {"lora": LORA},
        "nodes": {"Odd": {"files": {"x": "loras"}}},
    }
    second = {
        "workflows": {"mine": {**WORKFLOW, "title": "Second"}},
        "models": {
            "ONE": model(title="Second"),
            "shared": model(title="Second"),
            "three": model(aliases=["Two", "SHARED", "free"]),
            "four": model(workflow="mine"),
        },
        "loras": {"Lora": LORA},
        "nodes": {"Odd": {"files": {"x": "vae"}}},
    }
    catalogue = load_catalogue(own({"a.yaml": first, "b.yaml": second}, {"mine.json.j2": exported()}))
    assert {"one", "two", "three"} <= set(catalogue.models)
    assert {"ONE", "shared", "four"}.isdisjoint(catalogue.models)
    assert (catalogue.find("shared").id, catalogue.find("one").title) == ("two", "Mine")
    assert catalogue.models["three"].aliases == ("free",)
    assert catalogue.workflows["mine"].title == "Mine"
    paths = {fault.split(": ")[1]: fault for fault in faults(catalogue)}
    assert set(paths) == {
        "models.ONE", "models.shared", "models.three.aliases.0", "models.three.aliases.1", "models.four.workflow",
        "workflows.mine", "loras.Lora", "nodes.Odd.files.x",
    }  # fmt: skip
    assert all(fault.startswith("catalogue.d/b.yaml:") for fault in paths.values())
    assert "the name 'ONE' is already used by models.one in catalogue.d/a.yaml" in paths["models.ONE"]
    swapped = load_catalogue(own({"a.yaml": second, "b.yaml": first}, {"mine.json.j2": exported()}))
    assert swapped.find("one").title == "Second"


def test_two_names_of_one_own_file_conflict_too() -> None:
    models = {"one": model(aliases=["ONE", "two"]), "Two": model(), "ONE": model()}
    catalogue = load_catalogue(own({"a.yaml": {"models": models}}))
    assert [fault.split(": ", 2)[1] for fault in faults(catalogue)] == ["models.ONE", "models.one.aliases.1"]
    assert catalogue.find("two").id == "Two"
    assert catalogue.models["one"].aliases == ("ONE",)  # its own name, in other letters


# --- templates ----------------------------------------------------------------------------------------


def test_own_and_shipped_templates_of_the_same_name_are_used_by_own_and_shipped_entries() -> None:
    part = SOURCES.templates["part_picture.json.j2"]
    document = {
        "workflows": {"sd15_simple": WORKFLOW, "lent": {**WORKFLOW, "template": "caller.json.j2"}},
        "models": {"mine": model(workflow="sd15_simple"), "caller": model(workflow="lent")},
    }
    templates = {
        "sd15_simple.json.j2": exported(n7_text="the owner's"),
        "caller.json.j2": '{% include "shared.json.j2" %}',
        "shared.json.j2": exported(n7_text="the owner's part"),
        "part_picture.json.j2": "{% set broken %}" + part + "{% endset %}",
    }
    shipped = with_template('{% include "part_picture.json.j2" %}', name="shared.json.j2")
    catalogue = load_catalogue(own({"mine.yaml": document}, templates, sources=shipped))
    assert (faults(catalogue), catalogue.undrawable) == ([], {})
    assert "the owner's" in graph(catalogue, "mine")
    assert "the owner's part" in graph(catalogue, "caller")
    before, after = load_catalogue(SOURCES), catalogue
    assert graph(after, "sd-1.5") == graph(before, "sd-1.5")


@pytest.mark.parametrize("include", [False, True])
def test_the_shipped_template_never_stands_in_for_an_own_one_that_cannot_be_read(include: bool) -> None:
    document = {
        "workflows": {"sd15_simple": {**WORKFLOW, "template": "caller.json.j2" if include else "sd15_simple.json.j2"}},
        "models": {"mine": model(workflow="sd15_simple"), "good": model(workflow="sdxl_simple")},
    }  # fmt: skip
    sources = own(
        {"mine.yaml": document},
        {"caller.json.j2": '{% include "sd15_simple.json.j2" %}'},
        unreadable={"sd15_simple.json.j2": "is not UTF-8 at byte 3"},
    )
    catalogue = load_catalogue(sources)
    assert faults(catalogue) == ["catalogue.d/sd15_simple.json.j2: is not UTF-8 at byte 3"]
    assert list(catalogue.undrawable) == ["mine"]
    assert "catalogue.d/sd15_simple.json.j2" in str(catalogue.undrawable["mine"])
    with pytest.raises(ModelNotDrawable):
        graph(catalogue, "mine")


# --- nodes and LoRAs ----------------------------------------------------------------------------------


def test_facts_of_own_files_are_joined_and_change_nothing_for_the_shipped_workflows() -> None:
    document = {
        "workflows": {"mine": WORKFLOW},
        "models": {"mine": model(workflow="mine")},
        "nodes": {"KSampler": {"any_value": ["sampler_name"]}, "ImageScaleBy": {"more_inputs": True}},
    }
    template = exported(n3_sampler_name="of_a_later_comfyui", n3_scheduler="later_too")
    second = {
        "nodes": {
            "KSampler": {"any_value": ["scheduler"]},
            "CheckpointLoaderSimple": {"files": {"ckpt_name": "checkpoints"}},
        }
    }
    catalogue = load_catalogue(
        own({"mine.yaml": document, "second.yaml": second}, {"mine.json.j2": template})
    )
    assert (faults(catalogue), catalogue.undrawable) == ([], {})
    assert "of_a_later_comfyui" in graph(catalogue, "mine")
    assert catalogue.signatures["ImageScaleBy"].more_inputs
    before = load_catalogue(SOURCES)
    for shipped in before.workflows:
        assert catalogue.workflows[shipped] == before.workflows[shipped]
    with pytest.raises(InvalidValue, match="sampler"):
        graph(catalogue, "sd-1.5", inputs={"sampler": "of_a_later_comfyui"})
    alone = load_catalogue(
        own({"second.yaml": second, "m.yaml": {**document, "nodes": {}}}, {"mine.json.j2": template})
    )
    assert "of_a_later_comfyui" in str(alone.undrawable["mine"])


def test_facts_of_an_own_file_that_would_change_shipped_workflows_or_contradict_are_refused() -> None:
    facts = {
        "KSampler": {"files": {"sampler_name": "loras"}, "more_inputs": True},
        "UpscaleModelLoader": {"files": {"model_name": "upscale_models"}},
    }
    other = {"UpscaleModelLoader": {"files": {"model_name": "checkpoints"}}}
    catalogue = load_catalogue(own({"mine.yaml": {"nodes": facts}, "other.yaml": {"nodes": other}}))
    assert [fault.split(": ")[:2] for fault in faults(catalogue)] == [
        ["catalogue.d/mine.yaml:4", "nodes.KSampler.files.sampler_name"],
        ["catalogue.d/other.yaml:4", "nodes.UpscaleModelLoader.files.model_name"],
    ]
    assert catalogue.signatures["KSampler"] == load_catalogue(SOURCES).signatures["KSampler"]
    assert catalogue.undrawable == {}


def test_a_lora_of_an_update_does_not_make_own_models_of_its_family_undrawable_but_an_own_one_does() -> None:
    document = {"workflows": {"mine": WORKFLOW}, "models": {"mine": model(family="SD 1.x", workflow="mine")}}
    catalogue = load_catalogue(own({"mine.yaml": document}, {"mine.json.j2": exported()}))
    assert (catalogue.undrawable, catalogue.loras_for(catalogue.models["mine"])) == ({}, {})
    takes = load_catalogue(own({"mine.yaml": document}, {"mine.json.j2": with_loras(exported())}))
    assert takes.undrawable == {}
    assert list(takes.loras_for(takes.models["mine"])) == ["lcm-sd-1.5"]
    both = {**document, "loras": {"own": LORA}}
    asked = load_catalogue(own({"mine.yaml": both}, {"mine.json.j2": exported()}))
    assert list(asked.undrawable) == ["mine"]


# --- reading ------------------------------------------------------------------------------------------


def read(folder: Path, paths: SourcePaths = PATHS) -> Sources:
    return read_sources(replace(paths, own_folder=folder))


def test_a_folder_that_does_not_exist_is_an_empty_one(tmp_path: Path) -> None:
    assert load_catalogue(read(tmp_path / "gone")).own_faults == ()


def test_whatever_cannot_be_read_in_the_own_folder_is_reported_and_the_rest_served(tmp_path: Path) -> None:
    folder = tmp_path / "my folder"
    folder.mkdir()
    (folder / "good.yaml").write_text(yaml.safe_dump({"models": {"good": OWN_MODEL}}))
    (folder / "directory.yaml").mkdir()
    (folder / "loop.yaml").symlink_to("loop.yaml")
    (folder / "gone.yaml").symlink_to("nowhere")
    os.mkfifo(folder / "pipe.yaml")
    (folder / "latin.yaml").write_bytes(b"# caf\xe9")
    (folder / "short.yml").write_text("models: {}")
    (folder / "LOUD.YAML").write_text("models: {}")
    (folder / "template.json.j2").mkdir()
    (folder / "notes.txt").write_text("no catalogue")
    (folder / "export.json").write_text("{}")
    (folder / ".#good.yaml").symlink_to("somebody@host.1234")
    (folder / "two\nlines\x1b[31m.yaml").write_text("[")
    (folder / os.fsdecode(b"latin-\xe9.yaml")).write_text("[")
    with (folder / "large.yaml").open("wb") as large:
        large.truncate(MAX_OWN_FILE_BYTES + 1)
    sources = read(folder)
    assert Sources.load(json.dumps(json.loads(sources.dump()))) == sources
    catalogue = load_catalogue(sources)
    assert "good" in catalogue.models
    found = {str(fault) for fault in catalogue.own_faults}
    expected = """
        my folder/LOUD.YAML: is not read, because its name must end in .yaml; rename it to LOUD.yaml
        my folder/directory.yaml: is not a regular file
        my folder/gone.yaml: cannot be read: No such file or directory
        my folder/large.yaml: is larger than 50,000,000 bytes; split it into several files
        my folder/latin.yaml: is not UTF-8 at byte 5; save it with the encoding UTF-8
        my folder/loop.yaml: cannot be read: Too many levels of symbolic links
        my folder/pipe.yaml: is not a regular file
        my folder/short.yml: is not read, because its name must end in .yaml; rename it to short.yaml
        my folder/template.json.j2: is not a regular file
    """
    assert set(textwrap.dedent(expected).strip().splitlines()) <= found
    broken = [fault for fault in found if "expected" in fault]
    assert sorted(fault.partition(":")[0] for fault in broken) == [
        r"my folder/latin-\udce9.yaml",
        r"my folder/two\nlines\x1b[31m.yaml",
    ]
    assert len(found) == 11


def test_a_file_that_is_deleted_while_the_folder_is_read_is_no_fault(tmp_path: Path) -> None:
    class Listed(type(tmp_path)):  # type: ignore[misc]
        """Lists a file that is not there any more."""

        def iterdir(self) -> Any:
            yield from super().iterdir()
            yield self / "deleted.yaml"

    (tmp_path / "good.yaml").write_text(yaml.safe_dump({"models": {"good": OWN_MODEL}}))
    sources = read(Listed(tmp_path))
    assert (list(sources.own_entries), sources.own_unreadable) == (["good.yaml"], {})


def test_a_folder_that_cannot_be_read_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to("nowhere")
    assert faults(load_catalogue(read(tmp_path / "file"))) == ["file: cannot be read: Not a directory"]
    assert faults(load_catalogue(read(tmp_path / "link"))) == [
        "link: is a link to a folder that does not exist"
    ]


@pytest.mark.skipif(os.geteuid() == 0, reason="root can read everything")
def test_files_and_folders_without_permission_are_reported(tmp_path: Path) -> None:
    folder = tmp_path / "own"
    folder.mkdir()
    (folder / "mine.yaml").touch(mode=0)
    assert faults(load_catalogue(read(folder))) == ["own/mine.yaml: cannot be read: Permission denied"]
    folder.chmod(0)
    assert faults(load_catalogue(read(folder))) == ["own: cannot be read: Permission denied"]
    folder.chmod(0o700)
