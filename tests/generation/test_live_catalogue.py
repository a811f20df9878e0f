"""Reloading the catalogue when its files change, with a fake clock."""

from __future__ import annotations

import json
import os
import re
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from filelock import FileLock

from bench.compiling import multiply_models
from compiler import Catalogue, SourcePaths, load_catalogue, read_sources
from compiler.values import TASKS
from errors import CatalogueInvalid, SettingsInvalid
from generation.live_catalogue import LiveCatalogue, installation_choices
from tests.compiler.catalogues import OWN_MODEL, exported
from tests.conftest import ROOT, SMALL_CATALOGUE
from tests.waiting import TIMEOUT_S, wait_until


@dataclass
class Clock:
    now: float = 2e9

    def __call__(self) -> float:
        return self.now


@dataclass
class Installation:
    """A copy of the project's own catalogue files that can be edited."""

    root: Path
    clock: Clock

    @property
    def paths(self) -> SourcePaths:
        folders = (self.root / "templates_wf", self.root / "schemas")
        return SourcePaths(self.root / "catalogue.yaml", *folders, own_folder=self.own)

    @property
    def own(self) -> Path:
        return self.root / "catalogue.d"

    def write_own(self, name: str, text: str) -> None:
        """Write a file of the owner's folder; it has settled afterwards."""
        self.own.mkdir(exist_ok=True)
        (self.own / name).write_text(text)
        self.clock.now += 10
        os.utime(self.own / name, (self.clock.now, self.clock.now))
        self.clock.now += 1

    @property
    def last_good(self) -> Path:
        return self.root / "state/last_good.json"

    def load(
        self, during_check: Callable[[], None] = lambda: None, paths: SourcePaths | None = None
    ) -> LiveCatalogue:
        """`during_check` is called between reading the files and storing them."""

        def apply_choices(catalogue: Catalogue) -> Catalogue:
            during_check()
            return catalogue

        return LiveCatalogue(
            paths or self.paths, self.last_good, apply_choices=apply_choices, clock=self.clock
        )

    def set_title(self, text: str) -> None:
        """Edit the title of SDXL Turbo; the file has settled afterwards. `text` "" makes the catalogue invalid."""
        path = self.root / "catalogue.yaml"
        titles = r'(?m)^    title: (SDXL Turbo|v\d|"")$'
        replacement = "    title: " + (text or '""')
        path.write_text(re.sub(titles, replacement, path.read_text(), count=1))
        self.clock.now += 10
        os.utime(path, (self.clock.now, self.clock.now))
        self.clock.now += 1

    def edit(self, name: str, old: str, new: str) -> None:
        path = self.root / name
        path.write_text(path.read_text().replace(old, new))
        os.utime(path, (self.clock.now, self.clock.now))


@pytest.fixture
def installation(tmp_path: Path) -> Installation:
    shutil.copytree(SMALL_CATALOGUE, tmp_path, dirs_exist_ok=True)
    shutil.copytree(ROOT / "schemas", tmp_path / "schemas")
    return Installation(tmp_path, Clock())


def title(live: LiveCatalogue) -> str:
    return live.current().models["sdxl-turbo"].title


def test_a_change_is_loaded_once_the_file_has_settled(installation: Installation) -> None:
    live = installation.load()
    installation.clock.now += 10
    installation.edit("catalogue.yaml", "title: SDXL Turbo\n", "title: New\n")
    assert title(live) == "SDXL Turbo"
    installation.clock.now += 0.15
    installation.edit("catalogue.yaml", "title: New\n", "title: Newer\n")
    installation.clock.now += 0.15
    assert title(live) == "SDXL Turbo"
    installation.clock.now += 0.1
    assert title(live) == "Newer"


def compiled_templates(catalogue: Catalogue) -> set[str]:
    return {name for _, name in catalogue.renderer._environment.cache.keys()}  # noqa: SIM118  Jinja's cache is no mapping


def test_only_a_server_compiles_the_templates_before_a_request_and_those_of_an_edit_too(
    installation: Installation,
) -> None:
    live = installation.load()
    assert compiled_templates(live.current()) == set()
    live.compile_ahead()
    templates = {workflow.template for workflow in live.current().workflows.values()}
    assert compiled_templates(live.current()) >= templates
    before = live.current()
    installation.write_own("mine.yaml", json.dumps({"models": {"mine": OWN_MODEL}}))
    assert live.current() is not before
    assert compiled_templates(live.current()) >= templates


def test_an_older_edit_is_loaded_at_the_next_call(installation: Installation) -> None:
    live = installation.load()
    installation.edit("catalogue.yaml", "title: SDXL Turbo\n", "title: New\n")
    installation.clock.now += 60
    assert title(live) == "New"


def test_a_replacement_with_an_older_modification_time_is_loaded_at_once(installation: Installation) -> None:
    live = installation.load()
    path = installation.root / "catalogue.yaml"
    other = installation.root / "other.yaml"
    other.write_text(path.read_text().replace("title: SDXL Turbo\n", "title: Old\n"))
    os.utime(other, (1e9, 1e9))
    other.replace(path)
    assert title(live) == "Old"


def test_an_edited_template_is_loaded_too(installation: Installation) -> None:
    live = installation.load()
    before = live.current()
    installation.edit("templates_wf/sd15_simple.json.j2", '"coeff": 1.2', '"coeff": 1.3')
    for _ in range(2):
        installation.clock.now += 0.3
        live.current()
    assert live.current() is not before


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("catalogue.yaml", "min_vram_gb: 8", "min_vram_gb: x"),
        ("catalogue.yaml", "models:", "models: ["),
        ("schemas/nodes.json", '"inputs"', '"inptus"'),
        ("schemas/nodes.json", '"versions"', "nonsense"),
        ("catalogue.yaml", "default_model:", "? [a]\n: 1\ndefault_model:"),
        ("catalogue.yaml", "min_vram_gb: 8", "min_vram_gb: .nan"),
    ],
)
def test_an_invalid_edit_is_refused_and_reported_until_it_is_fixed(
    installation: Installation, name: str, old: str, new: str
) -> None:
    live = installation.load()
    before = live.current()
    installation.edit(name, old, new)
    for _ in range(3):
        installation.clock.now += 0.3
        assert live.current() is before
    assert live.error is not None
    installation.edit(name, new, old)
    for _ in range(2):
        installation.clock.now += 0.3
        live.current()
    assert live.error is None
    assert live.current().models.keys() == before.models.keys()


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("schemas/nodes.json", '"KSampler"', '"KSampler2"'),
        (
            "catalogue.yaml",
            "title: Stable Diffusion 1.x checkpoint\n",
            "title: Stable Diffusion 1.x checkpoint\n    template: gone.json.j2\n",
        ),
    ],
)
def test_a_node_or_template_that_is_gone_makes_models_undrawable_until_it_is_there_again(
    installation: Installation, name: str, old: str, new: str
) -> None:
    live = installation.load()
    installation.edit(name, old, new)
    installation.clock.now += 0.3
    assert "sd-1.5-pruned-emaonly" in live.current().undrawable
    assert "sdxl-turbo" not in live.current().undrawable
    assert live.error is None
    installation.edit(name, new, old)
    installation.clock.now += 0.3
    assert live.current().undrawable == {}


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("{{ promt }}", "'promt' is undefined"),
        ('{% include "sd15_simple.json.j2" %}', "recursion"),
        ("{% include 'gone.json.j2' %}", "no template 'gone.json.j2'"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "recursion"),
        ("{{ '%(a)s' % {} }}", "'a'"),
        ('"a fixed text"', "write {{ prompt }}"),
    ],
)
def test_a_template_that_fails_makes_its_model_undrawable_until_it_is_fixed_and_the_others_serve(
    installation: Installation, caplog: pytest.LogCaptureFixture, text: str, fault: str
) -> None:
    live = installation.load()
    for old, new, undrawable in (
        ("{{ prompt }}", text, ["sd-1.5-pruned-emaonly"]),
        (text, "{{ prompt }}", []),
    ):
        installation.edit("templates_wf/sd15_simple.json.j2", old, new)
        for _ in range(2):
            installation.clock.now += 0.3
            live.current()
        assert list(live.current().undrawable) == undrawable
        assert live.error is None
        assert any(fault in record.getMessage() for record in caplog.records)


def test_the_last_good_catalogue_stays_while_a_file_is_missing(installation: Installation) -> None:
    live = installation.load()
    path = installation.root / "catalogue.yaml"
    text = path.read_text()
    path.unlink()
    for _ in range(3):
        installation.clock.now += 0.3
        assert title(live) == "SDXL Turbo"
    path.write_text(text.replace("title: SDXL Turbo\n", "title: Back\n"))
    for _ in range(2):
        installation.clock.now += 0.3
        live.current()
    assert title(live) == "Back"


def test_a_start_with_an_invalid_catalogue_fails(installation: Installation) -> None:
    installation.edit("catalogue.yaml", "default_model: sdxl-turbo", "default_model: nope")
    with pytest.raises(CatalogueInvalid, match="nope"):
        installation.load()


def test_a_state_directory_that_is_not_writable_does_not_prevent_loading(installation: Installation) -> None:
    (installation.root / "state").write_text("a file instead of a folder")
    assert title(installation.load()) == "SDXL Turbo"


def test_files_with_an_old_content_and_a_new_time_are_not_loaded_again(installation: Installation) -> None:
    live = installation.load()
    before = live.current()
    installation.edit("catalogue.yaml", "title: SDXL Turbo\n", "title: SDXL Turbo\n")
    installation.clock.now += 1
    assert live.current() is before


# --- a process that watches the files ---------------------------------------------------------------


class SlowCheck:
    """Lets a test decide when the check of an edit ends."""

    def __init__(self) -> None:
        self.began, self.may_end = threading.Event(), threading.Event()
        self.may_end.set()

    def __call__(self) -> None:
        self.began.set()
        assert self.may_end.wait(TIMEOUT_S)


def test_a_watched_edit_is_loaded_in_a_thread_while_the_old_catalogue_serves(
    installation: Installation,
) -> None:
    check = SlowCheck()
    live = installation.load(check)
    live.watch()
    check.began.clear()
    check.may_end.clear()
    installation.set_title("v2")
    assert check.began.wait(TIMEOUT_S)
    assert title(live) == "SDXL Turbo"
    check.may_end.set()
    wait_until(lambda: live.served.models["sdxl-turbo"].title == "v2")


def test_a_watched_edit_that_is_invalid_is_reported_without_a_request(installation: Installation) -> None:
    live = installation.load()
    live.watch()
    installation.set_title("")
    wait_until(lambda: live.error)
    assert title(live) == "SDXL Turbo"
    installation.set_title("v2")
    wait_until(lambda: live.error is None and title(live) == "v2")


def test_nodes_that_were_just_learned_are_waited_for_although_a_thread_watches(
    installation: Installation,
) -> None:
    check = SlowCheck()
    paths = replace(installation.paths, learned_nodes=installation.root / "nodes.json")
    live = installation.load(check, paths)
    live.watch()
    check.began.clear()
    check.may_end.clear()
    record = {"inputs": {}, "outputs": ["IMAGE"]}
    temporary = installation.root / "new.json"
    temporary.write_text(json.dumps({"versions": {"1": {"Polish": record}}}))
    temporary.replace(paths.learned_nodes or temporary)
    with ThreadPoolExecutor(4) as pool:
        answers = [pool.submit(live.current) for _ in range(4)]
        assert check.began.wait(TIMEOUT_S)
        assert not any(answer.done() for answer in answers)
        check.may_end.set()
        assert all("Polish" in answer.result(TIMEOUT_S).signatures for answer in answers)


def test_the_watch_goes_on_after_a_look_that_failed(
    installation: Installation, caplog: pytest.LogCaptureFixture
) -> None:
    failures = [OSError("no memory")]

    def after_each_look() -> None:
        if failures:
            raise failures.pop()

    live = installation.load()
    live.watch(after_each_look)
    wait_until(lambda: "cannot look at the files" in caplog.text)
    installation.set_title("v2")
    wait_until(lambda: live.served.models["sdxl-turbo"].title == "v2")


def test_a_look_that_keeps_failing_is_logged_once_and_again_after_it_has_succeeded(
    installation: Installation, caplog: pytest.LogCaptureFixture
) -> None:
    # MemoryError has no text, and the two actions of a look fail for different reasons.
    outcomes: list[Exception | None] = [MemoryError(), MemoryError(), MemoryError(), None, MemoryError()]

    def after_each_look() -> None:
        if outcomes and (error := outcomes.pop(0)):
            raise error

    live = installation.load()
    live.watch(after_each_look)
    wait_until(lambda: not outcomes)
    installation.set_title("v2")
    wait_until(lambda: live.served.models["sdxl-turbo"].title == "v2")
    assert caplog.text.count("cannot look at the files") == 2


def test_two_failures_of_one_look_are_logged_once_each(
    installation: Installation, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[None] = []

    def after_each_look() -> None:
        looks.append(None)
        raise MemoryError

    def refresh() -> None:
        raise OSError("no files")

    live = installation.load()
    monkeypatch.setattr(live, "refresh", refresh)
    live.watch(after_each_look)
    wait_until(lambda: len(looks) >= 3)
    assert caplog.text.count("cannot look at the files") == 2


def test_a_mistake_in_a_template_is_one_line_in_the_log_for_all_of_its_models(
    installation: Installation, caplog: pytest.LogCaptureFixture
) -> None:
    path = installation.root / "catalogue.yaml"
    path.write_text(multiply_models(path.read_text(), 500))
    template = installation.root / "templates_wf/sd15_simple.json.j2"
    template.write_text(template.read_text().replace('"inputs"', '"inputz"'))
    installation.load()
    lines = [record.getMessage() for record in caplog.records if "cannot draw" in record.getMessage()]
    assert 1 <= len(lines) <= len(TASKS)
    assert all("`inputs` is not an object" in line for line in lines)


def test_the_error_of_a_refused_edit_keeps_nothing_of_the_document(installation: Installation) -> None:
    live = installation.load()
    for text in ("default_model: [", "default_model: 1"):
        path = installation.root / "catalogue.yaml"
        path.write_text(text)
        os.utime(path, (1e9, 1e9))
        live.current()
        assert live.error is not None
        assert (live.error.__traceback__, live.error.__cause__, live.error.__context__) == (None,) * 3


# --- several processes, each with its own LiveCatalogue -------------------------------------------------


def test_after_a_good_edit_and_a_bad_one_every_process_uses_the_good_edit(installation: Installation) -> None:
    first, second = installation.load(), installation.load()
    installation.set_title("v2")
    assert title(first) == "v2"
    installation.set_title("")
    assert (title(second), title(first)) == ("v2", "v2")
    assert second.error is not None
    assert first.error is not None
    installation.set_title("v3")
    assert (title(first), title(second)) == ("v3", "v3")
    assert (first.error, second.error) == (None, None)


def test_a_process_that_refused_the_files_uses_what_another_one_stores_later(
    installation: Installation,
) -> None:
    first, second = installation.load(), installation.load()
    path, bad = installation.root / "catalogue.yaml", installation.root / "bad.yaml"
    installation.set_title("")
    assert title(first) == title(second) == "SDXL Turbo"
    path.replace(bad)
    shutil.copy(bad, path)
    installation.set_title("v2")
    assert title(second) == "v2"
    bad.replace(path)  # the same file as the one that `first` has refused: its stamp shows no change
    assert (title(first), title(second)) == ("v2", "v2")


def test_a_slow_check_never_stores_or_serves_files_that_have_changed_meanwhile(
    installation: Installation,
) -> None:
    edits: list[str] = []
    first = installation.load(lambda: installation.set_title(edits.pop()) if edits else None)
    second = installation.load()
    installation.set_title("v2")
    edits.append("v3")  # while `first` checks v2
    assert title(first) == "SDXL Turbo"
    assert title(second) == "v3"
    installation.set_title("")
    assert (title(first), title(second)) == ("v3", "v3")


def test_a_bad_edit_during_a_check_leaves_all_processes_with_what_was_stored(
    installation: Installation,
) -> None:
    edits: list[str] = []
    first = installation.load(lambda: installation.set_title(edits.pop()) if edits else None)
    second = installation.load()
    installation.set_title("v2")
    edits.append("")
    assert [title(live) for live in (first, second, first)] == ["SDXL Turbo"] * 3


@pytest.mark.parametrize("content", [None, "", '{"origin": []', "[]", '{"origin": [], "sources": {}}'])
def test_a_lost_or_damaged_last_good_file_is_restored_and_all_processes_agree(
    installation: Installation, content: str | None
) -> None:
    first, second = installation.load(), installation.load()
    installation.set_title("v2")
    assert title(first) == "v2"
    if content is None:
        installation.last_good.unlink()
    else:
        installation.last_good.write_text(content)
    installation.set_title("")
    assert (title(first), title(second)) == ("v2", "v2")
    installation.last_good.unlink()
    assert (title(second), title(first)) == ("v2", "v2")
    assert installation.last_good.exists()


def test_a_stored_catalogue_that_cannot_be_loaded_is_replaced(installation: Installation) -> None:
    first, second = installation.load(), installation.load()
    document = json.loads(installation.last_good.read_text())
    document["sources"]["catalogue"] = "of another version"
    installation.last_good.write_text(json.dumps(document))
    installation.set_title("")
    assert title(first) == title(second) == "SDXL Turbo"
    assert "of another version" not in installation.last_good.read_text()


def test_a_catalogue_from_other_files_is_not_used(installation: Installation, tmp_path: Path) -> None:
    live = installation.load()
    other = tmp_path / "other.yaml"
    other.write_text(
        (SMALL_CATALOGUE / "catalogue.yaml").read_text().replace("title: SDXL Turbo\n", "title: Other\n")
    )
    LiveCatalogue(
        SourcePaths(other, installation.paths.templates, installation.paths.schemas), installation.last_good
    )
    installation.set_title("")
    assert title(live) == "SDXL Turbo"


def test_a_process_that_cannot_lock_the_last_good_file_stays_as_it_is_until_it_can(
    installation: Installation,
) -> None:
    live = installation.load()
    installation.set_title("v2")
    with FileLock(f"{installation.last_good}.lock"):
        assert title(live) == "SDXL Turbo"
    assert title(live) == "v2"


# --- the owner's folder ---------------------------------------------------------------------------


def own_model(name: str = "mine", **changes: object) -> str:
    return json.dumps({"models": {name: {**OWN_MODEL, **changes}}})  # JSON is YAML


def test_files_of_the_own_folder_are_loaded_when_they_come_change_and_go(installation: Installation) -> None:
    live = installation.load()
    assert "mine" not in live.current().models
    installation.write_own("mine.yaml", own_model())
    assert live.current().models["mine"].title == "Mine"
    installation.write_own("mine.yaml", own_model(title="New"))
    assert live.current().models["mine"].title == "New"
    installation.write_own("mine.yaml", "models: [")
    assert "mine" not in live.current().models
    assert "sdxl-turbo" in live.current().models
    # That is no refused edit: others take effect meanwhile.
    assert live.error is None
    assert [fault.file for fault in live.current().own_faults] == ["catalogue.d/mine.yaml"]
    installation.write_own("other.yaml", own_model("other"))
    installation.set_title("v2")
    assert "other" in live.current().models
    assert title(live) == "v2"
    (installation.own / "mine.yaml").unlink()
    assert live.current().own_faults == ()
    (installation.own / "other.yaml").unlink()
    installation.own.rmdir()
    assert "other" not in live.current().models


def test_an_own_template_is_loaded_when_it_changes(installation: Installation) -> None:
    workflow = {"title": "Mine", "tasks": ["generate"], "inputs": {}}
    document = {"workflows": {"mine": workflow}, "models": {"mine": {**OWN_MODEL, "workflow": "mine"}}}
    installation.write_own("mine.yaml", json.dumps(document))
    live = installation.load()
    assert list(live.current().undrawable) == ["mine"]
    installation.write_own("mine.json.j2", exported())
    assert live.current().undrawable == {}


@pytest.mark.parametrize("repair", ["chmod", "target", "directory"])
def test_a_file_that_can_be_read_again_is_noticed_although_its_content_is_the_same(
    installation: Installation, repair: str
) -> None:
    path = installation.own / "mine.yaml"
    installation.write_own("mine.yaml", own_model())
    if repair == "chmod":
        path.chmod(0)
    else:
        path.rename(installation.root / "elsewhere.yaml")
        if repair == "target":
            path.symlink_to(installation.root / "later.yaml")
        else:
            path.mkdir()
    live = installation.load()
    if os.geteuid() or repair != "chmod":  # root reads everything
        assert [fault.file for fault in live.current().own_faults] == ["catalogue.d/mine.yaml"]
    if repair == "chmod":
        path.chmod(0o600)
    elif repair == "target":
        (installation.root / "elsewhere.yaml").rename(installation.root / "later.yaml")
    else:
        path.rmdir()
        (installation.root / "elsewhere.yaml").rename(path)
    assert "mine" in live.current().models
    assert live.current().own_faults == ()


def test_all_processes_load_the_own_files_of_the_last_good_catalogue(installation: Installation) -> None:
    first, second = installation.load(), installation.load()
    installation.write_own("mine.yaml", own_model())
    installation.write_own("wrong.yaml", "models: [")
    assert "mine" in first.current().models
    installation.set_title("")
    installation.write_own("mine.yaml", own_model(title="New"))
    for live in (first, second):
        assert live.current().models["mine"].title == "Mine"
        assert live.error is not None
        assert [fault.file for fault in live.current().own_faults] == ["catalogue.d/wrong.yaml"]


def test_the_last_good_catalogue_with_another_own_folder_is_not_used(installation: Installation) -> None:
    live = installation.load()
    installation.write_own("mine.yaml", own_model())
    other = installation.own.rename(installation.root / "other.d")
    installation.load(paths=replace(installation.paths, own_folder=other))
    installation.set_title("")
    assert "mine" not in live.current().models


def test_settings_that_name_a_model_of_a_broken_own_file_are_listed_and_the_rest_is_served(
    installation: Installation,
) -> None:
    def load() -> LiveCatalogue:
        choices = installation_choices("mine", "", ("mine", "sdxl-turbo"), ("mine",))
        path = installation.root / "state/choices.json"
        return LiveCatalogue(installation.paths, path, apply_choices=choices, clock=installation.clock)

    with pytest.raises(SettingsInvalid, match="mine is not in the catalogue"):
        load()
    installation.write_own("mine.yaml", own_model())
    live = load()
    assert live.current().find(None).id == "mine"
    installation.write_own("mine.yaml", own_model(size="none"))
    for process in (live, load()):
        catalogue = process.current()
        assert catalogue.find(None).id == "sdxl-turbo"
        assert [model.id for model in catalogue.visible_models] == ["sdxl-turbo"]
        assert [str(fault) for fault in catalogue.own_faults][1:] == [
            f"images.{name}: there is no model mine, perhaps because of these faults{effect}"
            for name, effect in (
                ("visible", ""),
                ("preload", ""),
                ("default_model", "; requests without a model use sdxl-turbo"),
            )
        ]
    installation.write_own("mine.yaml", own_model())
    assert live.current().find(None).id == "mine"


@pytest.mark.parametrize("model", [{"name": "SDXL-Turbo"}, {"aliases": ["SDXL-Turbo"]}])
def test_settings_that_name_a_shipped_model_mean_the_own_one_that_takes_its_name(
    installation: Installation, model: dict[str, object]
) -> None:
    choices = installation_choices("sdxl-turbo", "", ("sdxl-turbo", "sd-1.5"), ("sdxl-turbo",))
    live = LiveCatalogue(
        installation.paths, installation.last_good, apply_choices=choices, clock=installation.clock
    )
    installation.write_own("mine.yaml", own_model(**model))  # type: ignore[arg-type]
    own_id = model.get("name", "mine")
    catalogue = live.current()
    assert (live.error, catalogue.own_faults, catalogue.default_model) == (None, (), own_id)
    assert [model.id for model in catalogue.visible_models] == ["sd-1.5-pruned-emaonly", own_id]


# --- this installation's choices -------------------------------------------------------------------


@pytest.fixture(scope="module")
def catalogue() -> Catalogue:
    return load_catalogue(
        read_sources(
            SourcePaths(
                SMALL_CATALOGUE / "catalogue.yaml", SMALL_CATALOGUE / "templates_wf", ROOT / "schemas"
            )
        )
    )


@pytest.mark.parametrize(
    ("default_model", "default_size", "visible", "message"),
    [
        ("nope", "", (), "not in the catalogue"),
        ("", "", ("nope",), "not in the catalogue"),
        ("", "", ("flux-schnell",), "default model"),
        ("", "huge", (), "default_size"),
    ],
)
def test_choices_that_contradict_the_catalogue_are_refused(
    catalogue: Catalogue, default_model: str, default_size: str, visible: tuple[str, ...], message: str
) -> None:
    with pytest.raises(SettingsInvalid, match=message):
        installation_choices(default_model, default_size, visible)(catalogue)


def test_choices_are_applied_to_the_catalogue(catalogue: Catalogue) -> None:
    chosen = installation_choices("flux-schnell", "768x768", ("flux-schnell", "sdxl-turbo"))(catalogue)
    assert chosen.find("").id == "flux-schnell"
    assert [model.id for model in chosen.visible_models] == ["sdxl-turbo", "flux-schnell"]
    assert str(chosen.default_size) == "768x768"


def test_a_model_to_preload_must_be_in_the_catalogue(catalogue: Catalogue) -> None:
    with pytest.raises(SettingsInvalid, match="nope"):
        installation_choices("", "", (), ("nope",))(catalogue)


# --- kept proofs of the owner's entries -------------------------------------------------------------


def own_proofs(installation: Installation) -> SourcePaths:
    (installation.root / "state").mkdir(exist_ok=True)
    return replace(installation.paths, own_proofs=installation.root / "state/proofs.json")


def test_the_proofs_of_the_owners_entries_are_kept_beside_the_state(installation: Installation) -> None:
    installation.write_own(
        "mine.yaml", json.dumps({"models": {"mine": {**OWN_MODEL, "defaults": {"steps": 7}}}})
    )
    paths = own_proofs(installation)
    installation.load(paths=paths)
    kept = (installation.root / "state/proofs.json").read_text()
    assert '"generate"' in kept
    (installation.root / "state/proofs.json").write_text(kept[:-30])
    assert "mine" in installation.load(paths=paths).current().models, "a damaged file only costs time"
    assert (installation.root / "state/proofs.json").read_text() == kept, "and is written anew"
    installation.write_own(
        "mine.yaml", json.dumps({"models": {"mine": {**OWN_MODEL, "defaults": {"steps": 8}}}})
    )
    installation.load(paths=paths)
    assert (installation.root / "state/proofs.json").read_text() != kept, "with what is needed now"


def test_a_file_for_proofs_that_cannot_be_written_or_is_no_file_only_costs_time(
    installation: Installation,
) -> None:
    installation.write_own(
        "mine.yaml", json.dumps({"models": {"mine": {**OWN_MODEL, "defaults": {"steps": 9}}}})
    )
    paths = own_proofs(installation)
    (installation.root / "state/proofs.json").mkdir()
    assert "mine" in installation.load(paths=paths).current().models
    (installation.root / "state/proofs.json").rmdir()
    with (installation.root / "state/proofs.json").open("wb") as file:
        file.truncate(2**33)  # it is not read
    assert "mine" in installation.load(paths=paths).current().models


def test_processes_that_keep_proofs_at_the_same_time_leave_a_whole_file(installation: Installation) -> None:
    installation.write_own(
        "mine.yaml", json.dumps({"models": {"mine": {**OWN_MODEL, "defaults": {"steps": 6}}}})
    )
    paths = own_proofs(installation)
    with ThreadPoolExecutor(4) as pool:
        loaded = list(pool.map(lambda _: installation.load(paths=paths), range(8)))
    assert all("mine" in live.current().models for live in loaded)
    assert json.loads((installation.root / "state/proofs.json").read_text())["proofs"]
