"""The catalogue while its files change, with a clock in hand."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from compiler import Catalogue, SourcePaths, load_catalogue, read_sources
from errors import CatalogueInvalid, SettingsInvalid
from generation.live_catalogue import LiveCatalogue, installation_choices
from tests.conftest import ROOT


@dataclass
class Clock:
    now: float = 2e9

    def __call__(self) -> float:
        return self.now


@dataclass
class World:
    """A copy of the project's own texts that can be edited, and a catalogue that watches it."""

    root: Path
    clock: Clock

    @property
    def paths(self) -> SourcePaths:
        return SourcePaths(self.root / "catalogue.yaml", self.root / "templates_wf", self.root / "schemas")

    def watch(self) -> LiveCatalogue:
        return LiveCatalogue(self.paths, self.root / "state/kept.json", clock=self.clock)

    def edit(self, name: str, was: str, becomes: str) -> None:
        path = self.root / name
        path.write_text(path.read_text().replace(was, becomes))
        os.utime(path, (self.clock.now, self.clock.now))


@pytest.fixture
def world(tmp_path: Path) -> World:
    for name in ("templates_wf", "schemas"):
        shutil.copytree(ROOT / name, tmp_path / name)
    shutil.copy(ROOT / "catalogue.yaml", tmp_path)
    return World(tmp_path, Clock())


def title(live: LiveCatalogue) -> str:
    return live.current().models["sdxl-turbo"].title


def test_a_change_counts_once_it_has_been_still_for_a_moment(world: World) -> None:
    live = world.watch()
    world.clock.now += 10
    world.edit("catalogue.yaml", "title: SDXL Turbo\n", "title: New\n")
    assert title(live) == "SDXL Turbo"
    world.clock.now += 0.15
    world.edit("catalogue.yaml", "title: New\n", "title: Newer\n")
    world.clock.now += 0.15
    assert title(live) == "SDXL Turbo"
    world.clock.now += 0.1
    assert title(live) == "Newer"


def test_the_first_look_long_after_an_edit_already_finds_it(world: World) -> None:
    live = world.watch()
    world.edit("catalogue.yaml", "title: SDXL Turbo\n", "title: New\n")
    world.clock.now += 60
    assert title(live) == "New"


def test_an_older_file_put_in_its_place_counts_at_once(world: World) -> None:
    live = world.watch()
    path = world.root / "catalogue.yaml"
    other = world.root / "other.yaml"
    other.write_text(path.read_text().replace("title: SDXL Turbo\n", "title: Old\n"))
    os.utime(other, (1e9, 1e9))
    other.replace(path)
    assert title(live) == "Old"


def test_an_edited_template_counts_too(world: World) -> None:
    live = world.watch()
    before = live.current()
    world.edit("templates_wf/sd15_simple.json.j2", '"denoise": 1.0', '"denoise": 0.9')
    for _ in range(2):
        world.clock.now += 0.3
        live.current()
    assert live.current() is not before


@pytest.mark.parametrize(
    ("name", "was", "becomes"),
    [
        ("catalogue.yaml", "min_vram_gb: 8", "min_vram_gb: x"),
        ("catalogue.yaml", "models:", "models: ["),
        ("templates_wf/sd15_simple.json.j2", "{{ prompt }}", "{{ promt }}"),
        ("schemas/nodes.json", '"KSampler"', '"KSampler2"'),
        ("schemas/nodes.json", '"versions"', "nonsense"),
        ("templates_wf/sd15_simple.json.j2", "{{ prompt }}", '{% include "sd15_simple.json.j2" %}'),
        ("templates_wf/sd15_simple.json.j2", "{{ prompt }}", "{% include 'gone.json.j2' %}"),
        (
            "templates_wf/sd15_simple.json.j2",
            "{{ prompt }}",
            "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        ),
        ("catalogue.yaml", "default_model:", "? [a]\n: 1\ndefault_model:"),
        ("catalogue.yaml", "min_vram_gb: 8", "min_vram_gb: .nan"),
    ],
)
def test_a_bad_edit_is_refused_told_and_undone_by_mending_it(
    world: World, name: str, was: str, becomes: str
) -> None:
    live = world.watch()
    before = live.current()
    world.edit(name, was, becomes)
    for _ in range(3):
        world.clock.now += 0.3
        assert live.current() is before
    assert live.error is not None
    world.edit(name, becomes, was)
    for _ in range(2):
        world.clock.now += 0.3
        live.current()
    assert live.error is None
    assert live.current().models.keys() == before.models.keys()


def test_a_file_that_goes_away_and_comes_back_does_no_harm(world: World) -> None:
    live = world.watch()
    path = world.root / "catalogue.yaml"
    text = path.read_text()
    path.unlink()
    for _ in range(3):
        world.clock.now += 0.3
        assert title(live) == "SDXL Turbo"
    path.write_text(text.replace("title: SDXL Turbo\n", "title: Back\n"))
    for _ in range(2):
        world.clock.now += 0.3
        live.current()
    assert title(live) == "Back"


def test_a_start_with_a_broken_catalogue_is_refused(world: World) -> None:
    world.edit("catalogue.yaml", "default_model: sdxl-turbo", "default_model: nope")
    with pytest.raises(CatalogueInvalid, match="nope"):
        world.watch()


def test_a_state_directory_that_cannot_be_written_costs_nothing_now(world: World) -> None:
    (world.root / "state").write_text("a file where a folder should be")
    assert title(world.watch()) == "SDXL Turbo"


# --- this installation's own choices ---------------------------------------------------------------


@pytest.fixture(scope="module")
def catalogue() -> Catalogue:
    return load_catalogue(
        read_sources(SourcePaths(ROOT / "catalogue.yaml", ROOT / "templates_wf", ROOT / "schemas"))
    )


@pytest.mark.parametrize(
    ("default_model", "default_size", "visible", "words"),
    [
        ("nope", "", (), "not in the catalogue"),
        ("", "", ("nope",), "not in the catalogue"),
        ("", "", ("flux-schnell",), "default model"),
        ("", "huge", (), "default_size"),
    ],
)
def test_choices_that_do_not_fit_the_catalogue_are_refused(
    catalogue: Catalogue, default_model: str, default_size: str, visible: tuple[str, ...], words: str
) -> None:
    with pytest.raises(SettingsInvalid, match=words):
        installation_choices(default_model, default_size, visible)(catalogue)


def test_choices_are_put_into_the_catalogue(catalogue: Catalogue) -> None:
    chosen = installation_choices("flux-schnell", "768x768", ("flux-schnell", "sdxl-turbo"))(catalogue)
    assert chosen.find("").id == "flux-schnell"
    assert [model.id for model in chosen.visible_models] == ["sdxl-turbo", "flux-schnell"]
    assert str(chosen.default_size) == "768x768"


def test_a_model_to_preload_must_be_in_the_catalogue(catalogue: Catalogue) -> None:
    with pytest.raises(SettingsInvalid, match="nope"):
        installation_choices("", "", (), ("nope",))(catalogue)
