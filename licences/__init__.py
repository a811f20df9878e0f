"""Whether a model's licence allows that it is downloaded and drawn with: what the settings say about licences (`policy.py`),
and which ones somebody accepted (`acceptances.py`). Knows no Flask, graphs or engines."""

from licences.acceptances import Acceptance, Acceptances
from licences.licences import Licences
from licences.policy import GROUPS, LicencePolicy

__all__ = ["GROUPS", "Acceptance", "Acceptances", "LicencePolicy", "Licences"]
