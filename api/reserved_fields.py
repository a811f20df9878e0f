"""The names that fields of image requests have on some endpoint: an input of a workflow would never get their values."""

from __future__ import annotations

from api.field_names import ALIASES
from api.request_fields import API_FIELDS, FIELDS_WITHOUT_EFFECT
from schemas import load_yaml

_FORMS = ("EditForm", "EditRequest", "LlmRequest")


def reserved_reason(name: str) -> str | None:
    """Why no input of a workflow can have this name; None if one can."""
    for canonical, aliases in ALIASES.items():
        if name in aliases:
            return f"requests also write {canonical} in this way"
    if name in FIELDS_WITHOUT_EFFECT:
        return "clients send this field with another meaning"
    forms = load_yaml("openapi")["components"]["schemas"]
    of_endpoints = {key for form in _FORMS for key in forms[form].get("properties", ())}
    return "it is a field of the API" if name in API_FIELDS | of_endpoints else None
