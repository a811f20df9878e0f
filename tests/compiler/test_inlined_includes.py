"""A template that is rendered often has its includes inlined. That must change nothing but the time."""

from __future__ import annotations

from typing import Any

import pytest

from compiler import SourcePaths, compile_workflow, load_catalogue, read_sources, sample_requests
from compiler.render import TemplateRenderer
from errors import TemplateInvalid
from tests.conftest import ROOT

OFTEN = 12
"""Renderings, of which the last ones are of the inlined template"""


def outcomes(templates: dict[str, str], **values: Any) -> list[Any]:
    """What each of many renderings of `main` gives: nodes, or the message of the error."""
    renderer, found = TemplateRenderer(templates), []
    for _ in range(OFTEN):
        try:
            found.append(renderer.render("main.json.j2", values))
        except TemplateInvalid as error:
            found.append(error.message)
    return found


def node(name: str, value: str) -> str:
    return f'{{"{name}": {{"class_type": "A", "inputs": {{"x": {value}}}}}}}\n'


MAIN = '{% set a = 1 %}\n{% include "part.json.j2" %}\n' + node("main", "{{ a }}")


@pytest.mark.parametrize(
    "templates",
    [
        {"main.json.j2": MAIN, "part.json.j2": "{% set a = 2 %}" + node("part", "{{ a }}")},
        {"main.json.j2": MAIN, "part.json.j2": node("part", "{{ a }}") + "{% set a = a + 1 %}"},
        {"main.json.j2": MAIN, "part.json.j2": node("part", "{{ absent }}")},
        {"main.json.j2": MAIN, "part.json.j2": "\n\n" + node("part", "{{ a / 0 }}")},
        {"main.json.j2": MAIN, "part.json.j2": "\n{" + node("part", "1")},
        {"main.json.j2": MAIN, "part.json.j2": "{% macro m() %}1{% endmacro %}" + node("part", "{{ m() }}")},
        {"main.json.j2": MAIN, "part.json.j2": '{% include "main.json.j2" %}'},
        {"main.json.j2": MAIN, "part.json.j2": '{% include "part.json.j2" %}'},
        {"main.json.j2": MAIN, "part.json.j2": "{% if %}"},
        {"main.json.j2": MAIN},
        {
            "main.json.j2": "{% set at = namespace(a=1) %}{% for i in range(2) %}{% set n = i %}"
            '{% if i %}{% include "part.json.j2" %}{% else %}{% include "part.json.j2" %}{% endif %}{% endfor %}'
            + node("main", "{{ at.a }}"),
            "part.json.j2": "{% set at.a = at.a + 1 %}" + '{"{{ n }}{{ loop.index }}": {{ {"a": [n, a|default(0)]} }}}',
        },
        {
            "main.json.j2": '{% with b = 3 %}{% include "part.json.j2" %}{% endwith %}' + node("main", "1"),
            "part.json.j2": node("part", "{{ b }}"),
        },
        {"main.json.j2": MAIN, "part.json.j2": node("part", "{{ values.items }}")},
        {"main.json.j2": MAIN, "part.json.j2": node("part", "{{ values.__class__ }}")},
        {"main.json.j2": MAIN, "part.json.j2": node("part", "{{ values.own }}")},
    ],
)  # fmt: skip
def test_every_rendering_gives_the_same_nodes_or_the_same_error(templates: dict[str, str]) -> None:
    first, *others = outcomes(templates, values={"items": 1, "own": 2})
    assert all(other == first for other in others)


def test_parts_are_looked_for_beside_the_template_that_includes_them() -> None:
    renderer = TemplateRenderer(
        {
            "own/main.json.j2": '{% include "middle.json.j2" %}{% include "part.json.j2" %}',
            "own/part.json.j2": node("own", "1"),
            "middle.json.j2": '{% include "part.json.j2" %}',
            "part.json.j2": node("shipped", "2"),
        }
    )
    for _ in range(OFTEN):
        assert list(renderer.render("own/main.json.j2", {})) == ["shipped", "own"]


def test_parts_that_include_each_other_again_and_again_are_not_all_inlined() -> None:
    double = {
        f"p{n}.json.j2": f'{{% if off %}}{{% include "p{n + 1}.json.j2" %}}{{% include "p{n + 1}.json.j2" %}}{{% endif %}}'
        for n in range(40)
    }
    main = '{% include "p0.json.j2" %}' + node("main", "1")
    first, *others = outcomes({"main.json.j2": main, **double, "p40.json.j2": ""}, off=False)
    assert list(first) == ["main"]
    assert all(other == first for other in others)


def test_the_shipped_templates_render_to_the_same() -> None:
    paths = SourcePaths(ROOT / "catalogue.yaml", ROOT / "templates_wf", ROOT / "schemas")
    catalogue = load_catalogue(read_sources(paths))
    tried = set()
    for model in catalogue.models.values():
        for request in sample_requests(model, catalogue):
            workflow = model.workflows[request.task]
            if workflow in tried:
                continue
            tried.add(workflow)
            graphs = [
                [graph.nodes for graph in compile_workflow(request, catalogue, shares_shapes=False).graphs]
                for _ in range(OFTEN)
            ]
            assert all(each == graphs[0] for each in graphs)
    assert len(tried) > 30
