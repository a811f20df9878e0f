"""One answer for every place that asks about a licence: the settings and the acceptances together."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable

from compiler import Catalogue, Licence, LicenceHolder, LicencePurpose, LicenceState, Lora, Model
from errors import LicenceNotAccepted, SettingsInvalid
from licences.acceptances import Acceptance, AcceptanceKey, Acceptances
from licences.policy import LicencePolicy

log = logging.getLogger("easel.licences")


class Licences:
    """The licences of one installation. Thread-safe; implements `compiler.LicenceRules`."""

    def __init__(
        self, policy: LicencePolicy, acceptances: Acceptances, *, clock: Callable[[], float] = time.time
    ) -> None:
        """`clock` gives seconds since the epoch."""
        self.policy, self._acceptances, self._clock = policy, acceptances, clock

    def state(self, holder: LicenceHolder) -> LicenceState:
        """`allowed` or `denied` by the settings; else `accepted` or `not_accepted`."""
        verdict = self.policy.verdict(holder.licence)
        if verdict != "open":
            return verdict
        return "accepted" if self.acceptance(holder) else "not_accepted"

    def acceptance(self, holder: LicenceHolder) -> Acceptance | None:
        """Who accepted the licence of `holder`; None if nobody has, or only another text."""
        return self._acceptances.current().get(_key(holder))

    @property
    def version(self) -> object:
        """Changes when `state` of something may have changed."""
        return frozenset(self._acceptances.current())

    def blocks_drawing(self, holder: LicenceHolder) -> bool:
        """Whether `holder` must not be drawn with."""
        verdict = self.policy.verdict(holder.licence)
        if verdict == "open":
            return self.policy.accept == "required" and self.acceptance(holder) is None
        return verdict == "denied"

    def check(self, holder: LicenceHolder, purpose: LicencePurpose = "draw") -> None:
        """Raises LicenceNotAccepted if `holder` must not be used for `purpose`: a denied one for nothing, one whose licence
        nobody accepted not for a pull, and not for drawing if `licences.accept` is `required`."""
        if purpose == "draw" and not self.blocks_drawing(holder):
            return
        state = self.state(holder)
        if state in ("allowed", "accepted"):
            return
        licence = holder.licence
        name = licence.name
        where = f" ({licence.url})" if licence.url else ""
        if state == "denied":
            why = f"this server's settings do not allow it: {self.policy.denying_setting(licence)}"
        else:
            why = f"nobody accepted it on this server yet; its owner does with `easel accept-licence {holder.id}`"
        if isinstance(holder, Model):
            kind, param = "model", "model"
        elif isinstance(holder, Lora):
            kind, param = "LoRA", "lora"
        else:
            kind, param = "stage", holder.id
        raise LicenceNotAccepted(
            f"The {kind} {holder.id!r} has the licence {name}{where}, and {why}.",
            param=param,
            model=holder.id,
            licence={"name": name, "url": licence.url, "commercial": licence.commercial},
            state=state,
        )

    def accept(self, holders: Iterable[LicenceHolder], *, by: str) -> None:
        """Record that `by` accepted the licences of `holders`. Raises LicenceNotAccepted for a denied one, and records
        nothing then; StateUnwritable."""
        holders = list(holders)
        for holder in holders:
            if self.state(holder) == "denied":
                self.check(holder, "pull")
        at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self._clock()))
        self._acceptances.add([Acceptance(*_key(holder), by=by, at=at) for holder in holders])

    def check_settings(self, catalogue: Catalogue) -> None:
        """Raises SettingsInvalid if the settings name a licence that the catalogue does not have. If a file in the owner's
        folder has a fault, the licence may be missing because of that: then it is only logged."""
        try:
            self._check_names(catalogue)
        except SettingsInvalid as error:
            if not catalogue.own_faults:
                raise
            log.warning(
                "%s It may be missing because of a fault in the catalogue's own folder.", error.message
            )

    def _check_names(self, catalogue: Catalogue) -> None:
        self.policy.check_names(
            [
                *(Licence(**{**entry, "key": name}) for name, entry in catalogue.named.licences.items()),
                *(model.licence for model in catalogue.models.values()),
                *(lora.licence for lora in catalogue.loras.values()),
                *(stage.licence for stage in catalogue.stages.values()),
            ]
        )


def _key(holder: LicenceHolder) -> AcceptanceKey:
    """An unknown licence is another one for each model: who read the terms of one has not read those of the others."""
    licence = holder.licence
    return licence.name, licence.url, holder.id if licence.commercial == "unknown" else None
