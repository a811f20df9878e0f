"""The nodes that a template renders to, as ComfyUI takes them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from compiler.catalogue import Catalogue
from compiler.exports import without_editor_inputs


def render_nodes(template: str, values: Mapping[str, Any], catalogue: Catalogue) -> dict[str, Any]:
    """The nodes without inputs that only ComfyUI's editor uses. Raises TemplateInvalid."""
    return without_editor_inputs(catalogue.renderer.render(template, values), catalogue.signatures)
