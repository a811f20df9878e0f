"""easel accept-licence: records that the owner accepts the licences of models. Other commands ask with
`ask_for_licences`."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping

import click

from commands.audit import command_actor, user_name
from commands.context import check_state_is_ours, handle_errors, services
from compiler import Licence, LicenceHolder, Model
from errors import InvalidValue
from schemas import did_you_mean


@click.command("accept-licence", short_help="Accept the licence of models.")
@click.argument("names", nargs=-1, required=True, metavar="NAME|MODEL...")
@click.option("--yes", "is_agreed", is_flag=True, help="Do not ask.")
@handle_errors
def accept_licence(names: tuple[str, ...], is_agreed: bool) -> None:
    """Show the licence NAME of the catalogue, or the licence of MODEL (a LoRA or stage, too), and record that you accept
    it: who, when and which text, in licences.json in the state directory. A running server knows it at once.

    An unknown licence is accepted for each model of its own. Exit code: 0 if all are accepted, 2 if you refuse.
    """
    check_state_is_ours()
    holders = [holder for name in names for holder in _holders(name)]
    if not ask_for_licences(holders, is_agreed=is_agreed):
        sys.exit(2)
    click.secho("accepted", fg="green")


def show_licences(holders: Iterable[LicenceHolder], *, to_stderr: bool = False) -> bool:
    """Show the licences of `holders`, and return true. Raises LicenceNotAccepted for one that the settings deny."""
    licences, shown = services().licences, list(holders)
    for holder in shown:
        if licences.state(holder) == "denied":
            licences.check(holder, "pull")
    for licence, models in _by_licence(shown).items():
        name = "licence unknown" if licence.name == "unknown" else licence.name
        click.echo(f"{name}: {', '.join(models)}", err=to_stderr)
        for text in (licence.url, _COMMERCIAL[licence.commercial], licence.note):
            if text:
                click.echo(f"  {text}", err=to_stderr)
    return True


def ask_for_licences(
    holders: Iterable[LicenceHolder], *, is_agreed: bool = False, to_stderr: bool = False
) -> bool:
    """Show the licences of `holders`, ask about those that were not accepted yet, and record the answer. False if the
    answer is no, which is not recorded. `is_agreed`: as if it was yes. Raises LicenceNotAccepted for a licence that the
    settings deny, StateUnwritable."""
    licences, asked = services().licences, list(holders)
    show_licences(asked, to_stderr=to_stderr)
    needed = [holder for holder in asked if licences.state(holder) == "not_accepted"]
    if not needed:
        return True
    if not is_agreed and not _is_confirmed():
        return False
    target = {
        "licences": sorted({str(each.licence.key or each.licence.id) for each in needed}),
        "for": [each.id for each in needed],
    }
    with services().audit.recording(command_actor(), "licences.accept", target):
        licences.accept(needed, by=user_name())
    return True


def _is_confirmed() -> bool:
    try:
        return click.confirm("Do you accept these terms?", err=True)
    except click.Abort:  # no input, or Ctrl-C
        click.echo("\nNot accepted: there was no answer. With --yes nothing is asked.", err=True)
        return False


_COMMERCIAL: Mapping[bool | str, str] = {
    True: "Commercial use is allowed.",
    False: "Commercial use is not allowed.",
    "conditional": "Commercial use is allowed under conditions.",
    "unknown": "The terms are not known here: read those of the publisher.",
}


def _by_licence(holders: Iterable[LicenceHolder]) -> dict[Licence, list[str]]:
    found: dict[Licence, list[str]] = {}
    for holder in holders:
        found.setdefault(holder.licence, []).append(holder.id)
    return found


def _holders(name: str) -> list[LicenceHolder]:
    """What has the licence `name`, or the model or LoRA of this name. Raises InvalidValue."""
    catalogue = services().catalogue()
    everything: list[LicenceHolder] = [
        *catalogue.models.values(),
        *catalogue.loras.values(),
        *catalogue.stages.values(),
    ]
    having = [each for each in everything if name in (each.licence.key, each.licence.id)]
    if any(each.licence.commercial == "unknown" for each in having):
        names = ", ".join(each.id for each in having)
        raise InvalidValue(
            f"Nobody can accept terms that are not known, for all models at once. Name the models: {names}. The setting "
            "licences.allow takes the group unknown.",
            param="NAME",
        )
    if having:
        return having
    named: list[LicenceHolder] = [each for each in everything if name.casefold() in _names(each)]
    if not named:
        known = [*catalogue.named.licences, *(each for holder in everything for each in _names(holder))]
        raise InvalidValue(
            f"The catalogue has no licence, model, LoRA or stage {name!r}{did_you_mean(name, known)}.",
            param="NAME",
        )
    return named


def _names(holder: LicenceHolder) -> list[str]:
    names = holder.names if isinstance(holder, Model) else (holder.id,)
    return [name.casefold() for name in names]
