"""Templates that would render for hours end with an error."""

from __future__ import annotations

import pytest

from compiler.render import TemplateRenderer
from errors import TemplateInvalid

TWICE = {f"part{n}.json.j2": f'{{% include "part{n + 1}.json.j2" %}}' * 2 for n in range(40)}


@pytest.mark.parametrize(
    "text",
    [
        "{% for i in range(90000) %}{% for j in range(90000) %}{% endfor %}{% endfor %}",
        "{% for i in range(90000) %}{% for j in range(90000) if false %}{% endfor %}{% endfor %}",
        "{% for i in 'xxx' * 300000 if false %}{% endfor %}",
        "{% macro m(n) %}{% if n %}{% set x = m(n - 1) %}{% set x = m(n - 1) %}{% endif %}{% endmacro %}{{ m(40) }}",
        '{% include "part0.json.j2" %}',
    ],
)
def test_a_template_that_takes_too_many_steps_is_refused(text: str) -> None:
    renderer = TemplateRenderer({"a.json.j2": text, "part40.json.j2": "", **TWICE})
    with pytest.raises(TemplateInvalid, match=r"json.j2:1: the template takes more than 20,000 steps"):
        renderer.render("a.json.j2", {})


def test_each_rendering_is_counted_anew() -> None:
    text = '{% for i in range(9000) %}{% endfor %}{"a": {"class_type": "Node", "inputs": {}}}'
    renderer = TemplateRenderer({"a.json.j2": text})
    for _ in range(8):  # the later ones have their includes inlined
        assert renderer.render("a.json.j2", {}) == {"a": {"class_type": "Node", "inputs": {}}}
