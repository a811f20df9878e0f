"""Licences as policy: what the settings allow and deny, what was accepted, and what that means for pulls and drawing."""

from __future__ import annotations

import json
import multiprocessing
from dataclasses import replace
from pathlib import Path

import pytest

from compiler import Licence, Model, compile_workflow
from compiler.catalogue import OwnFileNote
from errors import LicenceNotAccepted, SettingsInvalid, StateUnwritable
from licences import Acceptances, LicencePolicy, Licences
from tests.compiler.catalogues import CATALOGUE, image_request

APACHE = Licence("Apache License 2.0", True, "https://example.org/apache", id="Apache-2.0", key="apache-2.0")
FLUX = Licence("FLUX Non-Commercial", False, "https://example.org/flux", key="flux-nc")
UNKNOWN = Licence("unknown", "unknown", key="unknown")


def model(licence: Licence, name: str = "mine") -> Model:
    return replace(next(iter(CATALOGUE.models.values())), id=name, licence=licence)


def licences(folder: Path, allow: str = "commercial", deny: str = "", accept: str = "ask") -> Licences:
    policy = LicencePolicy(frozenset(allow.split()), frozenset(deny.split()), accept)  # type: ignore[arg-type]
    return Licences(policy, Acceptances(folder / "licences.json"), clock=lambda: 0.0)


def allowed_purposes(rules: Licences, holder: Model) -> set[str]:
    found = set()
    for purpose in ("draw", "pull"):
        try:
            rules.check(holder, purpose)  # type: ignore[arg-type]
            found.add(purpose)
        except LicenceNotAccepted:
            pass
    return found


@pytest.mark.parametrize(
    ("licence", "settings", "purposes"),
    [
        (APACHE, {}, {"draw", "pull"}),
        (FLUX, {}, {"draw"}),
        (UNKNOWN, {}, {"draw"}),
        (FLUX, {"deny": "non-commercial"}, set()),
        (FLUX, {"deny": "non-commercial", "allow": "commercial flux-nc"}, {"draw", "pull"}),
        (FLUX, {"deny": "flux-nc", "allow": "non-commercial"}, set()),
        (UNKNOWN, {"deny": "unknown"}, set()),
        (UNKNOWN, {"allow": "unknown"}, {"draw", "pull"}),
        (APACHE, {"deny": "Apache-2.0"}, set()),
        (FLUX, {"accept": "required"}, set()),
        (UNKNOWN, {"accept": "required"}, set()),
        (FLUX, {"accept": "never"}, set()),
        (APACHE, {"accept": "never"}, {"draw", "pull"}),
        (APACHE, {"accept": "required", "allow": ""}, set()),
    ],
)
def test_settings_say_what_a_model_may_be_used_for(
    tmp_path: Path, licence: Licence, settings: dict[str, str], purposes: set[str]
) -> None:
    assert allowed_purposes(licences(tmp_path, **settings), model(licence)) == purposes


def test_an_accepted_licence_is_recorded_with_who_and_when_and_holds_for_all_models_with_this_text(
    tmp_path: Path,
) -> None:
    rules = licences(tmp_path, accept="required")
    rules.accept([model(FLUX)], by="anna")
    other = licences(tmp_path, accept="required")  # another process
    assert allowed_purposes(other, model(FLUX, "other")) == {"draw", "pull"}
    assert other.state(model(FLUX)) == "accepted"
    assert json.loads((tmp_path / "licences.json").read_text())["accepted"] == [
        {
            "licence": "FLUX Non-Commercial",
            "url": "https://example.org/flux",
            "model": None,
            "by": "anna",
            "at": "1970-01-01T00:00:00Z",
        }
    ]
    changed = replace(FLUX, url="https://example.org/flux-2")
    assert other.state(model(changed)) == "not_accepted"


def test_an_unknown_licence_is_accepted_for_one_model_only(tmp_path: Path) -> None:
    rules = licences(tmp_path)
    rules.accept([model(UNKNOWN, "one")], by="anna")
    assert [rules.state(model(UNKNOWN, name)) for name in ("one", "two")] == ["accepted", "not_accepted"]


def test_a_denied_licence_cannot_be_accepted_and_an_earlier_acceptance_does_not_count(tmp_path: Path) -> None:
    licences(tmp_path).accept([model(FLUX)], by="anna")
    rules = licences(tmp_path, deny="non-commercial")
    assert allowed_purposes(rules, model(FLUX)) == set()
    with pytest.raises(LicenceNotAccepted, match=r"licences.deny has non-commercial"):
        rules.accept([model(UNKNOWN), model(FLUX)], by="anna")
    assert rules.state(model(UNKNOWN)) == "not_accepted"


def test_a_vanished_or_damaged_file_means_that_nothing_is_accepted(tmp_path: Path) -> None:
    rules = licences(tmp_path)
    rules.accept([model(FLUX)], by="anna")
    (tmp_path / "licences.json").unlink()
    assert rules.state(model(FLUX)) == "not_accepted"
    for damage in ("{", "[]", '{"accepted": [{"licence": 1}]}', '{"accepted": 7}', ""):
        rules.accept([model(FLUX)], by="anna")
        assert rules.state(model(FLUX)) == "accepted"
        (tmp_path / "licences.json").write_text(damage)
        assert rules.state(model(FLUX)) == "not_accepted", damage
    assert list(tmp_path.glob("licences.json.*.corrupt"))


def _accept(folder: str, number: int) -> None:
    licences(Path(folder)).accept([model(UNKNOWN, f"model-{number}")], by="anna")


def test_processes_that_accept_at_the_same_time_lose_nothing(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_accept, args=(str(tmp_path), number)) for number in range(8)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    rules = licences(tmp_path)
    assert {rules.state(model(UNKNOWN, f"model-{number}")) for number in range(8)} == {"accepted"}


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("a file in place of the folder")
    with pytest.raises(StateUnwritable):
        licences(tmp_path / "state").accept([model(FLUX)], by="anna")


def test_unknown_names_in_the_settings_are_refused_with_the_nearest(tmp_path: Path) -> None:
    licences(tmp_path, deny="non-commercial").check_settings(CATALOGUE)
    with pytest.raises(
        SettingsInvalid, match=r"licences.deny: .*'non-comercial' \(did you mean non-commercial\?\)"
    ):
        licences(tmp_path, deny="non-comercial").check_settings(CATALOGUE)
    # Its file may be left out because of a mistake, and all else is served.
    faulty = replace(CATALOGUE, own_faults=(OwnFileNote("catalogue.d/mine.yaml", "a mistake"),))
    licences(tmp_path, deny="my-licence").check_settings(faulty)
    with pytest.raises(SettingsInvalid, match="both have unknown"):
        licences(tmp_path, allow="unknown", deny="unknown").check_settings(CATALOGUE)


def test_a_denied_model_and_a_denied_lora_are_not_compiled(tmp_path: Path) -> None:
    rules = licences(tmp_path, deny="commercial", allow="")
    catalogue = replace(CATALOGUE, licences=rules)
    model_id = next(id for id, each in CATALOGUE.models.items() if each.licence.commercial is True)
    for name in CATALOGUE.models[model_id].names:
        with pytest.raises(LicenceNotAccepted) as caught:
            compile_workflow(image_request(model=name), catalogue)
        assert caught.value.details["state"] == "denied"
    assert catalogue.drawable_tasks(CATALOGUE.models[model_id]) == ()
    lora = next(iter(CATALOGUE.loras.values()))
    with pytest.raises(LicenceNotAccepted, match="The LoRA"):
        rules.check(lora)
