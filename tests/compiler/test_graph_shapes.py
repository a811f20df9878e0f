"""A graph that is filled in is the same as one that is rendered, whatever the template does with the request's values."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compiler import MAX_SEED, Catalogue, Graph, ImageRequest, compile_workflow, load_catalogue
from compiler.graph_shapes import MAX_SHAPES, GraphShapes, ShapeKey
from errors import EaselError, GraphInvalid
from tests.compiler.catalogues import CATALOGUE, image_request, with_template

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40) | st.sampled_from(
    [
        '"',
        "\\",
        "{{ 7*7 }}",
        "{% raw %}",
        '"}}, "evil": {',
        "\0prompt\0",
        "\0seed\0",
        "null",
        "1",
        "\u2028",
        "🐈",
        "a" * 999,
    ]
)
REQUESTS = st.builds(
    lambda prompt, negative, seed, n, id: image_request(
        f"{prompt}.", seed=seed, n=n, id=id, inputs={"negative_prompt": negative}
    ),
    *(TEXTS, TEXTS, st.integers(0, MAX_SEED), st.integers(1, 3), st.uuids().map(str)),
)


class NoShapes(GraphShapes):
    """Every graph is rendered."""

    def get(self, key: Any) -> None:
        return None


def graphs_of(request: ImageRequest, catalogue: Catalogue) -> tuple[Graph, ...] | str:
    """The graphs, or the error."""
    try:
        return compile_workflow(request, catalogue).graphs
    except EaselError as error:
        return error.message


def is_filled(catalogue: Catalogue) -> bool:
    return any(shape is not None for shape in catalogue.shapes._shapes.values())


@pytest.mark.parametrize("model", list(CATALOGUE.models))
@given(requests=st.lists(REQUESTS, min_size=4, max_size=6))
@settings(max_examples=20, deadline=None)
def test_the_graphs_of_every_model_are_the_same_filled_in_as_rendered(
    model: str, requests: list[ImageRequest]
) -> None:
    catalogue = replace(CATALOGUE, shapes=GraphShapes())
    for request in requests:
        asked = replace(request, model=model)
        filled = graphs_of(asked, catalogue)
        assert filled == graphs_of(asked, replace(CATALOGUE, shapes=NoShapes()))
        # The order too: the client of a ComfyUI sees it.
        assert repr(filled) == repr(graphs_of(asked, replace(CATALOGUE, shapes=NoShapes())))
    assert is_filled(catalogue)


PLAIN = CATALOGUE.renderer._texts["sd15_simple.json.j2"]


def text_of(prompt: str) -> str:
    return PLAIN.replace("{{ prompt }}", prompt)


USES = {
    "upper": text_of("{{ prompt | upper }}"),
    "joined": text_of("{{ prompt ~ ', sharp' }}"),
    "added": text_of("{{ prompt + ', sharp' }}"),
    "method": text_of("{{ prompt.strip() }}"),
    "formatted": text_of("{{ '%s, sharp' | format(prompt) }}"),
    "percent": text_of("{{ '%s, sharp' % prompt }}"),
    "sliced": text_of("{{ prompt[:3] }}"),
    "default": text_of("{{ prompt | default('x', true) }}"),
    "truth": text_of("{% if negative_prompt %}{{ prompt }}{% else %}{{ 'none' }}{% endif %}"),
    "or": text_of("{{ negative_prompt or prompt }}"),
    "equal": text_of("{% if prompt == negative_prompt %}{{ 'same' }}{% else %}{{ prompt }}{% endif %}"),
    "in": text_of("{% if 'a' in prompt %}{{ 'a' }}{% else %}{{ prompt }}{% endif %}"),
    "in a list": text_of("{% if prompt in ['1.', 'x'] %}{{ 'a' }}{% else %}{{ prompt }}{% endif %}"),
    "key of a dict": text_of("{{ {'1.': 'one'}.get(prompt, 'other') }}"),
    "length": text_of("{{ prompt | length | string }}"),
    "is string": text_of("{% if prompt is string %}{{ prompt }}{% else %}{{ 'no text' }}{% endif %}"),
    "is none": text_of("{% if negative_prompt is none %}{{ 'none' }}{% else %}{{ prompt }}{% endif %}"),
    "loop": text_of("{% for letter in prompt %}{% if loop.first %}{{ letter }}{% endif %}{% endfor %}"),
    "list": text_of("{{ [prompt, 'x'] | join(' ') }}"),
    "in a list value": text_of("{{ [prompt] | first }}"),
    "assigned": text_of("{% set other = prompt %}{{ other }}"),
    "macro": text_of("{% macro shown(value) %}{{ value }}{% endmacro %}{{ shown(prompt) | trim('\"') }}"),
    "swapped": PLAIN.replace("{{ negative_prompt }}", "{{ prompt }}"),
    "twice": PLAIN.replace("{{ negative_prompt }}", "{{ prompt }}").replace("{{ prompt }}", "{{ negative_prompt }}", 1),
    "seed plus one": PLAIN.replace("{{ seed }}", "{{ seed + 1 }}"),
    "seed modulo": PLAIN.replace("{{ seed }}", "{{ seed % 1000 }}"),
    "seed is even": PLAIN.replace("{{ seed }}", "{{ 2 if seed is even else 1 }}"),
    "seed beside a digit": PLAIN.replace("{{ seed }}", "1{{ seed }}"),
    "seed twice": PLAIN.replace("{{ seed }}", "{{ seed }}{{ seed }}"),
    "negative seed": PLAIN.replace("{{ seed }}", "-{{ seed }}"),
    "seed as steps": PLAIN.replace("{{ steps }}", "{{ seed }}"),
    "prompt as sampler": PLAIN.replace("{{ sampler }}", "{{ prompt }}"),
    "prompt as file": PLAIN.replace("{{ files.checkpoint }}", "{{ prompt }}"),
    "prompt as a node": PLAIN + '\n{ {{ prompt }}: {"class_type": "SaveImage", "inputs": {}} }',
    "prompt as a title": PLAIN.replace('"class_type": "VAEDecode"', '"_meta": {"title": {{ prompt }}}, "class_type": "VAEDecode"'),
    "prompt in quotes": PLAIN.replace("{{ prompt }}", '"{{ prompt }}"'),
    "number in quotes": PLAIN.replace("{{ prompt }}", '"seed {{ seed }}"'),
}  # fmt: skip


@pytest.mark.parametrize("template", USES.values(), ids=USES)
@given(requests=st.lists(REQUESTS, min_size=4, max_size=5))
@settings(max_examples=10, deadline=None)
def test_a_template_that_uses_the_values_in_any_way_gives_the_graphs_that_it_renders_to(
    template: str, requests: list[ImageRequest]
) -> None:
    loaded = load_cached(template)
    catalogue = replace(loaded, shapes=GraphShapes())
    for request in requests:
        asked = replace(request, model="sd-1.5-pruned-emaonly")
        assert repr(graphs_of(asked, catalogue)) == repr(graphs_of(asked, replace(loaded, shapes=NoShapes())))


_loaded: dict[str, Catalogue] = {}


def load_cached(template: str) -> Catalogue:
    if template not in _loaded:
        # Undrawable ones too: only the graph counts here.
        _loaded[template] = replace(load_catalogue(with_template(template)), proofs={})
    return _loaded[template]


READS_OUTPUT = {
    "macro": "{% macro m(x) %}{{ x }}{% endmacro %}{% set found = 'dog' in m(prompt) %}",
    "block set": "{% set text %}{{ prompt }}{% endset %}{% set found = 'dog' in text %}",
    "recursive loop": "{% for x in [[1]] recursive %}{% if x is iterable %}{% set found = 'dog' in loop(x) %}"
    "{% endif %}{% endfor %}",
}
FILTERED = "{% filter replace('dog', 'cat') %}" + PLAIN + "{% endfilter %}"


@pytest.mark.parametrize(
    "template",
    [
        *(text + text_of("{{ 'found' if found is true else prompt }}") for text in READS_OUTPUT.values()),
        FILTERED,
    ],
    ids=[*READS_OUTPUT, "filter block"],
)
def test_a_template_that_reads_its_output_is_rendered_for_each_request(template: str) -> None:
    """The first two prompts would make the shape."""
    loaded = load_cached(template)
    catalogue = replace(loaded, shapes=GraphShapes())
    for prompt in ("a cat", "a bird", "a dog", "a dog in a basket with a cat beside it"):
        request = image_request(prompt, model="sd-1.5-pruned-emaonly", seed=1, id="x")
        assert graphs_of(request, catalogue) == graphs_of(request, replace(loaded, shapes=NoShapes()))
    assert not is_filled(catalogue)


def test_a_value_that_its_input_does_not_take_is_refused_with_the_same_error() -> None:
    template = PLAIN.replace("{{ steps }}", "{{ seed }}")
    catalogue = load_cached(template)
    catalogue = replace(catalogue, shapes=GraphShapes())
    for seed in (1, 2, 3):
        (graph,) = compile_workflow(image_request(model="sd-1.5-pruned-emaonly", seed=seed), catalogue).graphs
        assert graph.nodes["sampler"]["inputs"]["steps"] == seed
    assert is_filled(catalogue)
    with pytest.raises(GraphInvalid, match=r"steps.*out of range"):
        compile_workflow(image_request(model="sd-1.5-pruned-emaonly", seed=10_000_001), catalogue)


def test_filled_in_graphs_do_not_share_the_values_of_each_other() -> None:
    catalogue = replace(CATALOGUE, shapes=GraphShapes())
    graphs = [graphs_of(image_request(f"cat {number}"), catalogue) for number in range(5)]
    assert len({repr(graph) for graph in graphs}) == 5


def test_the_number_of_shapes_is_limited() -> None:
    catalogue = replace(CATALOGUE, shapes=GraphShapes())
    for steps in range(1, 40):
        for cfg in range(8):
            for _ in range(2):
                inputs = {"steps": steps, "cfg": cfg + 1.0}
                compile_workflow(image_request(model="sdxl-base-1.0", inputs=inputs), catalogue)
    assert len(catalogue.shapes._shapes) == MAX_SHAPES
    assert len(catalogue.shapes._seen) <= MAX_SHAPES


def test_threads_that_add_and_drop_shapes_at_once_do_not_disturb_each_other() -> None:
    shapes = GraphShapes()

    def add(thread: int) -> None:
        for number in range(3 * MAX_SHAPES):
            key = ShapeKey("t", "w", (), f"{thread} {number}")
            shapes.add(key, {}, {}, "x", {}, lambda slots: {})

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(add, range(8)))
    assert len(shapes._shapes) == MAX_SHAPES


def test_a_value_that_could_be_taken_for_a_slot_gives_no_shape() -> None:
    plan = compile_workflow(image_request(), CATALOGUE).plan
    values = {"prompt": "\0seed\0", "crop": None}
    assert ShapeKey.of(plan, {**values, "style": "seed"}) is not None
    assert ShapeKey.of(plan, {**values, "style": "\0prompt\0"}) is None
