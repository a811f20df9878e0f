"""What the settings under `licences:` say about a licence. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from compiler import Licence
from errors import SettingsInvalid
from schemas import did_you_mean

Accept = Literal["ask", "required", "never"]
Verdict = Literal["allowed", "denied", "open"]
"""`open`: neither allowed nor denied, so somebody has to accept it"""

GROUPS = ("non-commercial", "conditional", "commercial", "unknown")
_GROUP_OF = {True: "commercial", False: "non-commercial", "conditional": "conditional", "unknown": "unknown"}


@dataclass(frozen=True)
class LicencePolicy:
    """`allow` and `deny` have names of licences under `licences:` of the catalogue, SPDX ids or GROUPS. `accept`: see the
    setting `licences.accept`."""

    allow: frozenset[str] = frozenset({"commercial"})
    deny: frozenset[str] = frozenset()
    accept: Accept = "ask"

    def verdict(self, licence: Licence) -> Verdict:
        """A name wins over a group, and `deny` over `allow`."""
        for names in (_names(licence), {_GROUP_OF[licence.commercial]}):
            if names & self.deny:
                return "denied"
            if names & self.allow:
                return "allowed"
        return "denied" if self.accept == "never" else "open"

    def denying_setting(self, licence: Licence) -> str:
        """The setting that denies the licence, and its value there."""
        for names in (_names(licence), {_GROUP_OF[licence.commercial]}):
            if found := sorted(names & self.deny):
                return f"licences.deny has {found[0]}"
        return "licences.accept is never, and licences.allow does not have it"

    def check_names(self, licences: Iterable[Licence]) -> None:
        """Raises SettingsInvalid for names that none of `licences`, those of the catalogue, has."""
        known = {*GROUPS, *(name for licence in licences for name in _names(licence))}
        lines = [
            f"licences.{setting}: there is no licence {name!r}{did_you_mean(name, known)}; known are the names under "
            f"`licences:` of the catalogue and their SPDX ids, and the groups {', '.join(GROUPS)}."
            for setting, names in (("allow", self.allow), ("deny", self.deny))
            for name in sorted(names - known)
        ]
        if both := sorted(self.allow & self.deny):
            lines.append(f"licences.allow and licences.deny both have {', '.join(both)}; remove it from one.")
        if lines:
            raise SettingsInvalid("\n".join(lines), errors=lines)


def _names(licence: Licence) -> set[str]:
    return {name for name in (licence.key, licence.id) if name} - set(GROUPS)
