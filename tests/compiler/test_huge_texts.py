"""Templates that would make more text than there is memory end with an error that names file and line."""

from __future__ import annotations

import time
import tracemalloc
from typing import Any

import pytest

from compiler.render import TemplateRenderer
from errors import TemplateInvalid

DOUBLING = (
    "{% set at = namespace(x='xxxxxxxx') %}{% for i in range(60) %}{% set at.x = EXPRESSION %}{% endfor %}"
)
KEEPING = (
    "{% set at = namespace(x=[0] * 900000, text=prompt * 500, kept=[]) %}"
    "{% for i in range(1000) %}{% set at.kept = at.kept + [EXPRESSION] %}{% endfor %}"
)
LISTS = (
    "{% set a = [prompt] * 1000 %}{% set b = [a] * 1000 %}{% set c = [b] * 1000 %}{% set d = [c] * 1000 %}"
)


@pytest.mark.parametrize(
    "text",
    [
        '{{ "x" * 10000000000 }}',
        "{{ 10000000000 * [1] }}",
        '{% set x = "x" * seed %}',
        "{{ 10 ** (10 ** 10) }}",
        "{% set at = namespace(x=10) %}{% for i in range(60) %}{% set at.x = at.x * at.x %}{% endfor %}",
        *(
            DOUBLING.replace("EXPRESSION", each)
            for each in (
                "at.x ~ at.x",
                "at.x + at.x",
                '"%s%s" % (at.x, at.x)',
                '"{0}{0}".format(at.x)',
                '"%s%s"|format(at.x, at.x)',
                "[at.x, at.x]|join",
                "at.x.join([at.x, at.x])",
                'at.x.replace("x", "xx")',
                'at.x|replace("x", "xx")',
                "at.x|list + at.x|list",
                "{'a': at.x, 'b': at.x}|string",
                "at.x.translate({120: 'xx'})",
            )
        ),
        "{% set at = namespace(x=prompt) %}{% for i in range(60) %}{% set at.x = [at.x, at.x] %}{% endfor %}{{ at.x }}",
        "{% set at = namespace(x=prompt) %}{% for i in range(60) %}{% set at.x = [at.x, at.x] %}{% endfor %}{{ at.x|string }}",
        "{% set at = namespace(x=prompt) %}{% for i in range(60) %}{% set at.x = [at.x, at.x] %}{% endfor %}{{ '' ~ at.x }}",
        '{{ "x".center(9999999999) }}',
        '{{ "x".ljust(9999999999) }}',
        '{{ "x".rjust(9999999999) }}',
        '{{ "x".zfill(9999999999) }}',
        '{{ ("\t" * 1000).expandtabs(9999999) }}',
        '{{ "x"|center(9999999999) }}',
        '{{ "x"|indent(9999999999, true) }}',
        '{{ [1]|batch(9999999999, 0)|list }}',
        '{{ [1]|slice(9999999999)|list }}',
        '{{ [1]|tojson(9999999999) }}',
        '{{ 1.5|round(999999999, "ceil") }}',
        '{{ "%9999999999d" % 1 }}',
        '{{ "%*d" % (9999999999, 1) }}',
        '{{ "%9999999999d"|format(1) }}',
        '{{ "{:9999999999}".format(1) }}',
        '{{ "{:{}}".format(1, 9999999999) }}',
        '{{ "{0:{1}}".format("x", 9999999999) }}',
        '{{ "{a:{b}}".format(a="x", b=9999999999) }}',
        '{{ "{a:9999999999}".format_map({"a": 1}) }}',
        "{{ (5).to_bytes(9999999999, 'big') }}",
        '{{ ("x" * 10000)|wordwrap(1, true, "y" * 10000) }}',
        '{{ ("x" * 999)|map("center", 9999999999)|list }}',
        '{{ ("x" * 999999)|map("center", 10000)|list }}',
        '{{ range(99999)|join("x" * 9999) }}',
        '{{ ("x" * 9999).join(range(99999)|map("string")) }}',
        '{{ ("x" * 9999).replace("", "y" * 9999) }}',
        f"{LISTS}{{{{ d }}}}",
        f"{LISTS}{{{{ d|string }}}}",
        f"{LISTS}{{{{ d|join }}}}",
        f"{LISTS}{{{{ namespace(d=d)|string }}}}",
        f"{LISTS}{{{{ 'a' ~ d }}}}",
        f"{LISTS}{{{{ '%s' % (d,) }}}}",
        f"{LISTS}{{{{ '{{}}'.format(d) }}}}",
        "{% for i in range(19000) %}{{ prompt * 30 }}{% endfor %}",
        "{% for i in range(19000) %}" + "x" * 1000 + "{% endfor %}",
        "{% macro m(x) %}{{ x }}{{ x }}{% endmacro %}{% set at = namespace(x=prompt) %}"
        "{% for i in range(60) %}{% set at.x = m(at.x) %}{% endfor %}",
        '{{ ([range(99999)] * 1000)|map("list")|list|length }}',
        *(
            KEEPING.replace("EXPRESSION", each)
            for each in ("at.x[:]", "at.x.copy()", "dict.fromkeys(range(99999))", "at.text[1:]")
        ),
        "{% set at = namespace(x=prompt) %}{% for i in range(60) %}{% set x %}{{ at.x }}{{ at.x }}{% endset %}"
        "{% set at.x = x %}{% endfor %}",
    ],
)  # fmt: skip
def test_a_template_that_would_make_a_huge_text_is_refused(text: str) -> None:
    renderer = TemplateRenderer({"a.json.j2": f"\n{text}"})
    began_at = time.thread_time()
    tracemalloc.start()
    try:
        with pytest.raises(TemplateInvalid) as raised:
            renderer.render("a.json.j2", {"prompt": "a cat" * 200, "seed": 1 << 53})
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert raised.value.message.startswith("a.json.j2:2: the template makes "), raised.value.message
    assert most < 300_000_000
    assert time.thread_time() - began_at < 30


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ('"a " ~ prompt ~ 1', "a cat1"),
        ('"image" ~ n', "image3"),
        ("seed % 4294967296", 5),
        ("n * 2 + 1", 7),
        ("2 ** 10", 1024),
        ('"-" * 3', "---"),
        ("[1] * 2 + [2]", [1, 1, 2]),
        ('"%05.1f/%s" % (2.5, prompt)', "002.5/cat"),
        ('"{:>5}|{a}".format(n, a=prompt)', "    3|cat"),
        ('"%s-%s"|format(n, prompt)', "3-cat"),
        ('["a", "b"]|join(", ")', "a, b"),
        ('", ".join(["a", "b"]|map("upper"))', "A, B"),
        ('prompt.replace("c", "b")|upper', "BAT"),
        ('prompt|replace("c", "b")', "bat"),
        ("prompt|center(7)", "  cat  "),
        ("prompt.center(7)", "  cat  "),
        ("2.567|round(1)", 2.6),
        ("range(3)|map('string')|list", ["0", "1", "2"]),
        ("[3, 1]|sort|first", 1),
        ("seed|string", "9007199254740997"),
        ('[1, 2, 3][1:] + ["b"][:1]', [2, 3, "b"]),
        ("prompt[:-1]", "ca"),
        ("[[1, 2], [3]]|sum(start=[])", [1, 2, 3]),
    ],
)
def test_ordinary_expressions_are_as_they_were(expression: str, value: Any) -> None:
    text = f'{{"a": {{"class_type": "A", "inputs": {{"b": {{{{ {expression} }}}}}}}}}}'
    renderer = TemplateRenderer({"a.json.j2": text})
    values = {"prompt": "cat", "n": 3, "seed": (1 << 53) + 5}
    for _ in range(8):  # the later ones have their includes inlined
        assert renderer.render("a.json.j2", values)["a"]["inputs"]["b"] == value


def test_each_rendering_is_counted_anew() -> None:
    text = '{% set x = "x" * 900000 %}{"a": {"class_type": "A", "inputs": {}}}'
    renderer = TemplateRenderer({"a.json.j2": text})
    for _ in range(40):
        assert list(renderer.render("a.json.j2", {})) == ["a"]
