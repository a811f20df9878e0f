"""Mistakes of people who write a template by hand: each is answered with its line and what to write."""

from __future__ import annotations

import json

import pytest

from compiler import load_catalogue
from compiler.json_mistakes import json_mistake
from tests.compiler.catalogues import with_template

TEXT = """{% set at = namespace(model=["model", 0]) %}
{# a comment
   of two lines #}
{"model": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": {{ files.checkpoint }}}}}
{% include "part_loras.json.j2" %}
{
  "latent": {"class_type": "EmptyLatentImage", "inputs": {"width": {{ width }}, "height": {{ height }}, "batch_size": {{ batch }}}},
  "positive": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["model", 1], "text": {{ prompt }}}},
  "sampler": {
    "class_type": "KSampler",
    "inputs": {
      "model": {{ at.model }}, "positive": ["positive", 0], "negative": ["positive", 0], "latent_image": ["latent", 0],
      "seed": {{ seed }}, "steps": {{ steps }}, "cfg": {{ cfg }},
      "sampler_name": {{ sampler }}, "scheduler": {{ schedule }}, "denoise": 1.0
    }
  },
  "decoded": {"class_type": "VAEDecode", "inputs": {"samples": ["sampler", 0], "vae": ["model", 2]}},
  "picture": {"class_type": "SaveImage", "inputs": {"images": ["decoded", 0], "filename_prefix": {{ prefix }}}}
}
"""


def faults_of(text: str) -> list[str]:
    """The faults of the first model whose template is `text`."""
    tasks = next(iter(load_catalogue(with_template(text)).undrawable.values()))
    return [fault for fault in tasks["generate"] if "sd15_simple.json.j2" in fault]


@pytest.mark.parametrize(
    ("right", "wrong", "expected"),
    [
        ('{{ prompt }}}},', '{{ prompt }}}}', ':8: does not render to JSON: a comma is missing before "sampler"'),
        ('"steps": {{ steps }},', '"steps": {{ steps }}', ':13: does not render to JSON: a comma is missing before "cfg"'),
        ('"denoise": 1.0', '"denoise": 1.0,', ":14: does not render to JSON: the comma before `}` is one too many"),
        ('"denoise": 1.0', '"denoise": .5', ":14: does not render to JSON: for .5 write 0.5"),
        ('"denoise": 1.0', '"denoise": True', ":14: does not render to JSON: for True write true"),
        ('"denoise": 1.0', '"denoise": ', ":15: does not render to JSON: a value is missing after the colon"),
        ('"denoise": 1.0', '"denoise" 1.0', ":14: does not render to JSON: a colon is missing before 1.0"),
        ('"denoise": 1.0', "'denoise': 1.0", ":14: does not render to JSON: JSON has no quotes '; write \""),
        ('"denoise": 1.0', "denoise: 1.0", ":14: does not render to JSON: the name of an input or node must be in quotes: \"denoise\""),
        ('"denoise": 1.0', '"denoise": 1.0 // all', ":14: does not render to JSON: JSON has no comments; write {# … #}"),
        ('"denoise": 1.0', '"denoise": 1.0, "steps": 3', ":14: does not render to JSON: the key 'steps' is given twice"),
        ('"picture": ', '"decoded": ', ":18: does not render to JSON: the key 'decoded' is given twice"),
        ('"picture": ', '"model": ', ":18: does not render to JSON: the node id 'model' is given twice"),
        ('"VAEDecode"', '"VAEDecode', ":17: does not render to JSON: a comma is missing before inputs"),
        ('["model", 2]', '["model", 2}', ":17: does not render to JSON: `[` is open here, so `]` must come before `}`"),
        ("{{ prompt }}", "{ prompt }", ":8: does not render to JSON: for { prompt } write {{ prompt }}, with two braces"),
        ("{{ prompt }}", "${prompt}", ":8: does not render to JSON: for ${prompt} write {{ prompt }}"),
        ("{{ prompt }}", r'"C:\x"', r":8: does not render to JSON: a backslash in a text is written twice: \\"),
        ("{{ prompt }}", '"a\nb"', r":8: does not render to JSON: a text has no closing quote in its line"),
        ("{{ prompt }}", '"a "b" c"', r':8: does not render to JSON: a comma is missing before b; if it belongs to the text'),
        ("{{ prefix }}}}\n}", "{{ prefix }}}}\n}}", ":19: does not render to JSON: this `}` is one too many"),
        ("{{ prefix }}}}\n}", "{{ prefix }}}}", ":6: does not render to JSON: one of the brackets that are opened from here on"),
        ("{{ prompt }}", "{{ promt }}", ":8: 'promt' is undefined; write {{ prompt }}"),
        ("{{ files.checkpoint }}", "{{ files.chekpoint }}", ":4: 'dict object' has no attribute 'chekpoint'"),
    ],
)  # fmt: skip
def test_a_mistake_is_answered_with_its_line_in_the_template_and_the_remedy(
    right: str, wrong: str, expected: str
) -> None:
    assert right in TEXT
    faults = faults_of(TEXT.replace(right, wrong))
    assert f"sd15_simple.json.j2{expected}" in faults[0]


def test_a_mistake_in_an_included_template_names_that_template() -> None:
    sources = with_template(TEXT)
    part = sources.templates["part_loras.json.j2"]
    sources.templates["part_loras.json.j2"] = f'{part}\n{{"x": 1,}}\n'  # type: ignore[index]
    (line,) = [
        number
        for number, text in enumerate(sources.templates["part_loras.json.j2"].splitlines(), 1)
        if text == '{"x": 1,}'
    ]
    faults = next(iter(load_catalogue(sources).undrawable.values()))["generate"]
    assert (
        f"part_loras.json.j2:{line}: does not render to JSON: the comma before `}}` is one too many"
        in faults[0]
    )


@pytest.mark.parametrize("link", ['["samplr", 0]', '["sampler", "0"]', '"sampler"', '["decoded", 0]', "5"])
def test_a_wrong_link_is_not_followed_by_everything_that_it_cuts_off(link: str) -> None:
    faults = faults_of(TEXT.replace('["sampler", 0]', link))
    assert faults
    for fault in faults:
        assert "node 'decoded'" in fault
        assert "no output needs" not in fault
        assert "has no effect" not in fault


@pytest.mark.parametrize(
    "text", ["{", "[", "}", "]", '"', '{"', '{"a"', '{"a":', '{"a":[', "{,", "[,", '{"a": "\t"}', "\\"]
)
def test_every_text_that_is_no_json_has_a_mistake_within_it(text: str) -> None:
    with pytest.raises(json.JSONDecodeError) as caught:
        json.loads(text)
    sentence, position = json_mistake(text, caught.value)
    assert sentence
    assert 0 <= position <= len(text)
