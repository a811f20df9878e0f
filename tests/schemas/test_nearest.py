"""Names that are suggested to somebody who misspelt one."""

from __future__ import annotations

import pytest

from schemas import nearest

FILE = ("name", "folder", "url", "size", "sha256")
SAMPLER = (
    "seed",
    "steps",
    "cfg",
    "sampler_name",
    "scheduler",
    "positive",
    "negative",
    "latent_image",
    "denoise",
)
MODEL = (
    "title",
    "family",
    "workflow",
    "files",
    "licence",
    "disk_gb",
    "size",
    "defaults",
    "limits",
    "aliases",
)


@pytest.mark.parametrize(
    ("given", "known", "expected"),
    [
        ("cgf", SAMPLER, "cfg"),
        ("Seed", SAMPLER, "seed"),
        ("step", SAMPLER, "steps"),
        ("sampler", SAMPLER, "sampler_name"),
        ("latent", SAMPLER, "latent_image"),
        ("negative_prompt", SAMPLER, "negative"),
        ("filename", FILE, "name"),
        ("license", MODEL, "licence"),
        ("disk", MODEL, "disk_gb"),
    ],
)
def test_a_misspelt_name_gets_the_one_that_was_meant(
    given: str, known: tuple[str, ...], expected: str
) -> None:
    assert nearest(given, known) == expected


@pytest.mark.parametrize(
    ("given", "known"),
    [
        ("role", FILE),
        ("file", FILE),
        ("directory", FILE),
        ("scale", SAMPLER),
        ("image", SAMPLER),
        ("steps", MODEL),
    ],
)
def test_a_name_that_means_something_else_gets_none(given: str, known: tuple[str, ...]) -> None:
    assert nearest(given, known) is None
