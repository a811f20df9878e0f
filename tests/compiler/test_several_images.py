"""Workflows that take several images: the catalogue's key, what the check proves, and how many a request may have."""

from __future__ import annotations

import re
from typing import Any

import pytest

from compiler import Catalogue, Compiled, Size, SourceImage, compile_workflow, load_catalogue, sample_requests
from compiler.values import Task
from errors import CatalogueInvalid, ImageCountNotAllowed
from tests.compiler.catalogues import (
    CATALOGUE,
    ENCODED,
    IMAGES,
    STITCHED,
    faults_of,
    image_request,
    with_document,
    with_workflow,
)

REFERENCES = (
    ENCODED.replace(
        """{ {{ "loaded" ~ loop.index }}: {"class_type": "LoadImage", "inputs": {"image": {{ name }}}} }
""",
        """{
  {{ "loaded" ~ loop.index }}: {"class_type": "LoadImage", "inputs": {"image": {{ name }}}},
  {{ "latent" ~ loop.index }}: {
    "class_type": "VAEEncode", "inputs": {"pixels": [{{ "loaded" ~ loop.index }}, 0], "vae": ["model", 2]}
  },
  {{ "reference" ~ loop.index }}: {
    "class_type": "ReferenceLatent",
    "inputs": {"conditioning": [{{ at.positive }}, 0], "latent": [{{ "latent" ~ loop.index }}, 0]}
  }
}
{% set at.positive = "reference" ~ loop.index %}
""",
    )
    .replace(
        """{% for _ in images %}{{ "image" ~ loop.index }}: [{{ "loaded" ~ loop.index }}, 0], {% endfor %}""",
        "",
    )
    .replace('"positive": ["positive", 0]', '"positive": [{{ "reference" ~ (images | length) }}, 0]')
)
REFERENCES = '{% set at = namespace(positive="positive") %}' + REFERENCES
"""A chain of ReferenceLatent nodes, as FLUX.2 has"""

BATCHED = (
    ENCODED.replace(
        """{% for _ in images %}{{ "image" ~ loop.index }}: [{{ "loaded" ~ loop.index }}, 0], {% endfor %}""",
        """"image1": ["batch", 0], """,
    )
    + """
{"batch": {"class_type": "BatchImagesNode", "inputs": {
  {% for _ in images %}{{ "images.image" ~ loop.index0 }}: [{{ "loaded" ~ loop.index }}, 0]{{ "" if loop.last else "," }}
  {% endfor %}
}}}
"""
)
BATCHED = BATCHED.replace('{{ "" if loop.last else "," }}', "{% if not loop.last %},{% endif %}")

TEMPLATES = {"stitched": STITCHED, "encoded": ENCODED, "references": REFERENCES, "batched": BATCHED}


def with_images(template: str = ENCODED, images: Any = IMAGES, **fields: Any) -> Catalogue:
    return load_catalogue(
        with_workflow(template, tasks=fields.pop("tasks", ["edit"]), images=images, **fields)
    )


def source(number: int, *, mask: str | None = None) -> SourceImage:
    first, *more = (f"easel/{index}.png [temp]" for index in range(1, number + 1))
    return SourceImage(Size(256, 256), first, mask, tuple(more))


def compiled(number: int, catalogue: Catalogue, task: Task = "edit", **fields: Any) -> Compiled:
    request = image_request(task=task, source=source(number), **{"model": "mine", **fields})
    return compile_workflow(request, catalogue)


def loaded(result: Compiled) -> list[str]:
    """The files that the graph loads, in the order of its nodes."""
    nodes = result.graphs[0].nodes.values()
    return sorted(node["inputs"]["image"] for node in nodes if node["class_type"] == "LoadImage")


# --- the graph -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_graph_loads_every_image_in_order(name: str) -> None:
    catalogue = with_images(TEMPLATES[name])
    assert catalogue.undrawable == {}
    for number in (1, 2, 3):
        result = compiled(number, catalogue)
        assert loaded(result) == [f"easel/{index}.png [temp]" for index in range(1, number + 1)]
        assert result.plan.values["images"].value == loaded(result)
        assert result.plan.values["image"].value == loaded(result)[0]
    inputs = compiled(3, catalogue).graphs[0].nodes
    if name == "encoded":
        links = [inputs["positive"]["inputs"][f"image{index}"] for index in (1, 2, 3)]
        assert links == [["loaded1", 0], ["loaded2", 0], ["loaded3", 0]]


def test_only_the_first_image_decides_the_size() -> None:
    plan = compiled(3, with_images()).plan
    assert (plan.size, plan.values["width"].value, plan.values["height"].value) == (Size(256, 256), 256, 256)


def test_a_request_without_an_image_has_an_empty_list() -> None:
    plan = compile_workflow(image_request(model="sd-1.5"), CATALOGUE).plan
    assert (plan.values["image"].value, plan.values["images"].value) == (None, [])


def test_the_sample_request_has_as_many_images_as_the_workflow_takes() -> None:
    catalogue = with_images()
    (request,) = sample_requests(catalogue.models["mine"], catalogue)
    assert request.source is not None
    assert len(set(request.source.images)) == 3
    assert len(loaded(compile_workflow(request, catalogue))) == 3


# --- how many --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("images", "number"), [({"min": 1, "max": 3}, 4), ({"min": 2, "max": 3}, 1), ({"min": 2}, 3)]
)
def test_another_number_of_images_is_refused(images: Any, number: int) -> None:
    template = ENCODED
    with pytest.raises(ImageCountNotAllowed) as caught:
        compiled(number, with_images(template, images))
    error = caught.value
    low, high = images["min"], images.get("max", images["min"])
    assert (error.param, error.details["min"], error.details["max"], error.details["images"]) == (
        "image",
        low,
        high,
        number,
    )
    assert (
        f"mine takes {low} to {high} images" in error.message or f"mine takes {low} images" in error.message
    )


def test_a_model_that_takes_one_image_names_those_that_take_more() -> None:
    catalogue = with_images()
    with pytest.raises(
        ImageCountNotAllowed, match=r"sd-1\.5-pruned-emaonly takes 1 image\. .* takes 2: mine"
    ) as caught:
        compiled(2, catalogue, model="sd-1.5")
    assert caught.value.details["models"] == ["mine"]


def test_the_task_is_named_if_tasks_take_different_numbers() -> None:
    def change(document: Any) -> None:
        document["models"]["mine"]["workflow"] = {"edit": "mine", "vary": "sd15_simple"}

    catalogue = load_catalogue(with_document(change, with_workflow(ENCODED, tasks=["edit"], images=IMAGES)))
    assert len(loaded(compiled(2, catalogue))) == 2
    with pytest.raises(ImageCountNotAllowed, match="mine takes 1 image for the task vary"):
        compiled(2, catalogue, "vary")
    assert {
        task: (count.min, count.max) for task, count in catalogue.image_counts(catalogue.find("mine")).items()
    } == {
        "edit": (1, 3),
        "vary": (1, 1),
    }


# --- what is proved --------------------------------------------------------------------------------


def faults(template: str, images: Any = IMAGES) -> list[str]:
    return faults_of(template, task="edit", images=images)


def test_an_input_that_few_images_do_not_use_says_how_many_images_it_needs() -> None:
    template = re.sub(r'"spacing_width": \d+', '"spacing_width": {{ gap }}', STITCHED)
    assert "{{ gap }}" in template
    inputs = {"gap": {"type": "integer", "minimum": 0, "maximum": 64, "default": 0}}
    (fault,) = faults_of(template, task="edit", images=IMAGES, inputs=inputs)
    assert "`gap` has no effect on a request with fewer than 2 images" in fault
    assert "`images: {min: 2, max: 3}` under workflows.mine" in fault
    assert faults_of(template, task="edit", images={"min": 2, "max": 3}, inputs=inputs) == []


def test_an_image_that_is_not_used_is_named_with_its_node() -> None:
    text = STITCHED.replace('"inputs": {"image": {{ name }}}', '"inputs": {"image": "example.png"}')
    found = faults(text)
    assert found[0] == (
        "mine.json.j2: `images[1]` has no effect (with 2 images); node 'image2' (LoadImage), input 'image': write "
        "{{ images[1] }}"
    )
    assert any("`images[2]` has no effect (with 3 images)" in fault for fault in found)


def test_a_template_that_uses_only_the_first_image_is_told_so() -> None:
    text = ENCODED.replace("in images %}", "in [image] %}")
    assert faults(text) == [
        "mine.json.j2: `images` has no effect; load each of them by a LoadImage node, such as one with {{ images[1] }} inside "
        "{% if images | length > 1 %}, and use them all, or correct `images` of the workflow",
    ]


def test_a_number_that_the_template_cuts_off_is_found() -> None:
    found = faults(ENCODED.replace("in images %}", "in images[:2] %}"))
    assert found[0].startswith("mine.json.j2: `images`: 2 images and 3 images give the same graph; ")


def test_a_template_that_loads_the_same_image_twice_is_refused() -> None:
    found = faults(ENCODED.replace('{"image": {{ name }}}', '{"image": {{ images[0] }}}'))
    assert any("`images[1]` has no effect" in fault for fault in found)


def test_an_index_beyond_the_smallest_number_is_told_what_to_write() -> None:
    text = ENCODED.replace('"prompt": {{ prompt }}', '"prompt": {{ prompt ~ images[1] }}')
    (fault,) = faults(text)
    assert fault == (
        "mine.json.j2:8: list object has no element 1; a request may have fewer images: write {% if images | length > 1 %} "
        "around what needs it, or `images: {min: 2, max: 3}` under workflows.mine in catalogue.yaml"
    )


@pytest.mark.parametrize("name", ["image2", "image_2", "images_2"])
def test_a_variable_of_another_name_is_told_how_images_are_called(name: str) -> None:
    (fault,) = faults(ENCODED.replace("{{ name }}", f"{{{{ {name} }}}}"))
    assert fault.endswith(f"'{name}' is undefined; write {{{{ images[1] }}}}")


def test_a_value_that_has_no_effect_with_more_images_is_found() -> None:
    text = ENCODED.replace(
        '"seed": {{ seed }}', '"seed": {% if images | length > 2 %}5{% else %}{{ seed }}{% endif %}'
    )
    (fault,) = faults(text)
    assert "`seed` has no effect (with 3 images)" in fault


def test_sixteen_images_are_proved_in_a_moment() -> None:
    assert faults(REFERENCES, {"min": 1, "max": 16}) == []


def test_more_images_than_a_node_has_inputs_are_a_fault() -> None:
    assert any("image4" in fault for fault in faults(ENCODED, {"min": 1, "max": 4}))


# --- the key ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("images", "tasks", "said"),
    [
        ({"min": 3, "max": 2}, ["edit"], "workflows.mine.images: min 3 is larger than max 2"),
        ({"max": 17}, ["edit"], "workflows.mine.images.max: "),
        ({"min": 0}, ["edit"], "workflows.mine.images.min: "),
        ({}, ["edit"], "workflows.mine.images: "),
        (3, ["edit"], "workflows.mine.images: "),
        ({"maximum": 3}, ["edit"], "workflows.mine.images: "),
        ({"max": 3}, ["generate"], "the task generate has no image; add edit, inpaint or vary to `tasks`"),
    ],
)
def test_a_wrong_key_is_an_error_of_the_catalogue(images: Any, tasks: list[str], said: str) -> None:
    with pytest.raises(CatalogueInvalid) as caught:
        with_images(ENCODED, images, tasks=tasks)
    assert said in caught.value.message


@pytest.mark.parametrize("name", ["images", "markup"])
def test_an_input_cannot_have_the_name_of_an_image(name: str) -> None:
    with pytest.raises(CatalogueInvalid, match="none of the names that requests or templates have already"):
        with_images(ENCODED, inputs={name: {"type": "string", "default": ""}})
