"""What is done with finished pictures: the stages of the catalogue."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from compiler import Size, compile_workflow, load_catalogue, read_sources
from compiler.stages import PlannedStage, with_stages
from errors import CatalogueInvalid, InvalidValue, LicenceNotAccepted, TemplateInvalid
from licences import Acceptances, LicencePolicy, Licences
from tests.compiler.catalogues import image_request, with_document, with_template
from tests.compiler.test_shipped_catalogue import CATALOGUE, PATHS

SOURCES = read_sources(PATHS)


def compiled(**stages: Any) -> Any:
    return compile_workflow(image_request(model="sdxl-turbo", size=Size(512, 512), stages=stages), CATALOGUE)


def test_stages_stand_between_the_pictures_and_the_answer_in_the_order_of_the_catalogue() -> None:
    both = compiled(background="transparent", upscale=2)
    nodes = both.graphs[0].nodes
    assert nodes["picture"]["inputs"]["images"] == ["stage_transparent", 0]
    assert nodes["stage_transparent"]["inputs"]["image"] == ["stage_scaled", 0]
    assert nodes["stage_subject"]["inputs"]["image"] == ["stage_scaled", 0]
    assert nodes["stage_scaled"]["inputs"] == {
        "image": ["stage_upscaled", 0],
        "upscale_method": "area",
        "scale_by": 0.5,
    }
    assert nodes["stage_upscaled"]["inputs"]["image"] == ["decoded", 0]
    assert (both.plan.size, both.plan.final_size) == (Size(512, 512), Size(1024, 1024))
    assert both.plan.is_transparent


def test_a_request_without_stages_has_the_graph_of_its_template() -> None:
    assert not any(name.startswith("stage_") for name in compiled().graphs[0].nodes)
    # The same values, so that the shape of the graph is not shared.
    assert "stage_upscaled" in compiled(upscale=4).graphs[0].nodes
    assert not any(name.startswith("stage_") for name in compiled().graphs[0].nodes)


@pytest.mark.parametrize(
    ("stages", "said"),
    [
        ({"upscale": 3}, "`upscale` is 3; it must be one of 2, 4"),
        ({"background": "blue"}, '`background` is "blue"; it must be one of transparent'),
        ({"sharpen": 1}, "`sharpen` is 1; no stage does that"),
    ],
)
def test_a_value_that_no_stage_has_is_refused(stages: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidValue, match=said):
        compiled(**stages)


def test_a_graph_whose_answer_gets_no_pictures_cannot_have_a_stage() -> None:
    nodes = {"9": {"class_type": "MySave", "inputs": {"clip": ["1", 0]}}}
    stage = PlannedStage(CATALOGUE.stages["upscale"], 2)
    with pytest.raises(TemplateInvalid, match="node '9', which is the answer, has no input 'images'"):
        with_stages(nodes, "9", [stage], CATALOGUE, "mine.json.j2")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("{{ value / 4 }}", "0.5", "4 gives the same graph as another value|2 gives the same graph"),
        ("{{ files.upscaler }}", '"x.pth"', "does not use it; write {{ files.upscaler }}"),
        ('"ImageScaleBy"', '"ImageScaleBi"', "ImageScaleBi"),
        ("{{ pictures }}", '["nothing", 0]', "a node that does not exist"),
        ("{% if value != 4 %}", "{% if valve != 4 %}", "'valve' is undefined"),
    ],
)
def test_a_stage_that_does_not_do_what_it_says_is_refused(old: str, new: str, said: str) -> None:
    text = SOURCES.templates["stage_upscale.json.j2"]
    assert old in text
    if "0.5" in new:
        text = text.replace("{% if value != 4 %}", "{% if true %}")
    sources = with_template(text.replace(old, new), name="stage_upscale.json.j2", sources=SOURCES)
    with pytest.raises(CatalogueInvalid, match=rf"catalogue.yaml:\d+: stages\.upscale.*({said})"):
        load_catalogue(sources, proved=())


def test_a_file_or_licence_of_a_stage_must_exist() -> None:
    def change(document: Any) -> None:
        document["stages"]["upscale"]["files"]["upscaler"] = "realesrgan"

    with pytest.raises(
        CatalogueInvalid, match=r"there is no file .realesrgan. under `files:` \(did you mean"
    ):
        load_catalogue(with_document(change, SOURCES), proved=())


def test_the_files_of_stages_are_files_of_the_catalogue() -> None:
    document = yaml.safe_load(SOURCES.catalogue)
    names = {
        document["files"][name]["name"]
        for stage in document["stages"].values()
        for name in stage["files"].values()
    }
    assert names <= {name for group in CATALOGUE.files.values() for name in group}


def test_a_stage_is_refused_if_its_licence_is(tmp_path: Path) -> None:
    policy = LicencePolicy(deny=frozenset({"bsd-3-clause"}), accept="required")
    rules = Licences(policy, Acceptances(tmp_path / "licences.json"))
    catalogue = replace(CATALOGUE, licences=rules)
    rules.check_settings(catalogue)

    def compile_with(**stages: Any) -> Any:
        request = image_request(model="z-image-turbo", size=Size(512, 512), stages=stages)
        return compile_workflow(request, catalogue)

    compile_with()
    with pytest.raises(
        LicenceNotAccepted, match=r"stage 'upscale' .*licences\.deny has bsd-3-clause"
    ) as denied:
        compile_with(upscale=2)
    assert denied.value.param == "upscale"
    with pytest.raises(LicenceNotAccepted, match="easel accept-licence background"):
        compile_with(background="transparent")
    rules.accept([catalogue.stages["background"]], by="me")
    compile_with(background="transparent")
