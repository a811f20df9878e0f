"""A server says at its start that ComfyUI has models, and none of the catalogue's."""

from __future__ import annotations

import logging
from typing import Any, cast

import pytest

from engine import Engine
from errors import EngineUnreachable
from generation import Generator, announce_unused_files
from generation.unused_files import unused_files
from tests.compiler.catalogues import CATALOGUE


class Listing:
    """An engine that lists these checkpoints, and generator of itself."""

    def __init__(self, *names: str, is_sketch: bool = False, is_new_form: bool = False) -> None:
        self.names, self.is_sketch, self.is_new_form = list(names), is_sketch, is_new_form

    def signatures(self, classes: Any) -> dict[str, Any]:
        spec = ["COMBO", {"options": self.names}] if self.is_new_form else [self.names, {}]
        return {
            "CheckpointLoaderSimple": {"input": {"required": {"ckpt_name": spec}}},
            "UNETLoader": {"input": 7},
        }

    def engine(self) -> Engine:
        return cast(Engine, self)

    def catalogue(self) -> Any:
        return CATALOGUE


KNOWN = CATALOGUE.files["checkpoints"][0]


@pytest.mark.parametrize("is_new_form", [False, True])
def test_only_files_that_the_catalogue_does_not_have_count(is_new_form: bool) -> None:
    engine = Listing("mine.safetensors", is_new_form=is_new_form).engine()
    assert unused_files(engine, CATALOGUE) == ["mine.safetensors"]
    assert unused_files(Listing("mine.safetensors", f"sub\\{KNOWN}").engine(), CATALOGUE) == []
    assert unused_files(Listing().engine(), CATALOGUE) == []


@pytest.mark.parametrize(
    ("listing", "lines"),
    [
        (Listing("mine.safetensors"), 1),
        (Listing("mine.safetensors", is_sketch=True), 0),
        (Listing(KNOWN), 0),
    ],
)
def test_it_is_one_line_of_the_log(listing: Listing, lines: int, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "easel.generation"):
        announce_unused_files(cast(Generator, listing))
    assert [record.getMessage() for record in caplog.records if "adopt-models" in record.getMessage()] == [
        "ComfyUI has 1 model files, such as 'mine.safetensors', and none of the catalogue: `easel adopt-models` makes "
        "models of them"
    ] * lines


def test_an_engine_that_is_away_is_no_error() -> None:
    class Away(Listing):
        def engine(self) -> Engine:
            raise EngineUnreachable("It is away.")

    announce_unused_files(cast(Generator, Away()))
