"""GET /v1/models and /v1/models/{id}."""

from __future__ import annotations

import re
import threading
from functools import cached_property
from typing import Any

from flask import Blueprint, Response, jsonify, request

from api.services import Services
from compiler import Catalogue, Model
from compiler.openai_names import SLOT_NAME
from errors import InvalidValue, ModelNotCurated, shorten

MODEL_PATHS = ("/v1/models", "/v1-openai/models")
"""OpenAI's path and GPUStack's"""
_DIGITS = re.compile(r"[0-9]{1,9}")


def models_blueprint(services: Services) -> Blueprint:
    """The model routes."""
    routes, listings = Blueprint("models", __name__), _Listings(services)
    for path in MODEL_PATHS:
        routes.add_url_rule(path, path, lambda: _list_models(listings.current()))
        # Ids may contain slashes, such as stabilityai/sdxl-turbo.
        routes.add_url_rule(f"{path}/<path:name>", f"{path}/one", lambda name: listings.current().one(name))
    return routes


class _Listing:
    """The models of one catalogue as clients see them. `loaded_at`: Unix time at which the catalogue was loaded."""

    def __init__(self, catalogue: Catalogue, loaded_at: int) -> None:
        self.catalogue, self.loaded_at = catalogue, loaded_at
        self._lock = threading.Lock()
        self._all: bytes | None = None

    @cached_property
    def ids(self) -> tuple[str, ...]:
        """Every id in the order of the list. hal0's name of its image slot is the last one, unless a model has it, in
        upper or lower case."""
        ids = tuple(model.id for model in self.catalogue.visible_models)
        return ids if SLOT_NAME in map(str.casefold, ids) else (*ids, SLOT_NAME)

    @cached_property
    def positions(self) -> dict[str, int]:
        """id in lower case -> its place in `ids`"""
        return {model_id.casefold(): index for index, model_id in enumerate(self.ids)}

    def all(self) -> Response:
        """The whole list. Its text is built once, because that takes 0.5 s for 10,000 models."""
        with self._lock:
            if self._all is None:
                self._all = self.page(0, None).get_data()
        return Response(self._all, mimetype="application/json")

    def page(self, start: int, limit: int | None) -> Response:
        """At most `limit` models from the one at place `start`."""
        ids = self.ids[start:] if limit is None else self.ids[start : start + limit]
        body = {
            "object": "list",
            "data": [self._entry(model_id) for model_id in ids],
            "first_id": ids[0] if ids else None,
            "last_id": ids[-1] if ids else None,
            "has_more": start + len(ids) < len(self.ids),
        }
        return jsonify(body)

    def one(self, name: str) -> Response:
        """The model of this id or alias. Raises ModelNotCurated."""
        position = self.positions.get(name.casefold())
        if position is not None:
            return jsonify(self._entry(self.ids[position]))
        if name.strip():
            return jsonify(model_entry(self.catalogue.find(name), self.catalogue, self.loaded_at))
        raise ModelNotCurated("The model name is empty.", param="model")

    def _entry(self, model_id: str) -> dict[str, Any]:
        model = self.catalogue.models.get(model_id)
        if model is not None and model_id not in self.catalogue.hidden:
            return model_entry(model, self.catalogue, self.loaded_at)
        drawn = self.catalogue.find(SLOT_NAME)  # the default model, unless this is an alias of another one
        return {
            **model_entry(drawn, self.catalogue, self.loaded_at),
            "id": SLOT_NAME,
            "slot_of": drawn.id,
        }


class _Listings:
    """The listing of the current catalogue, made once for each."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._last: _Listing | None = None

    def current(self) -> _Listing:
        catalogue, loaded_at = self._services.catalogue(), self._services.catalogue_loaded_at()
        last = self._last
        if last is None or last.catalogue is not catalogue or last.loaded_at != loaded_at:
            last = self._last = _Listing(catalogue, loaded_at)
        return last


def _list_models(listing: _Listing) -> Response:
    limit, after = _limit(request.args.get("limit", "")), request.args.get("after", "")
    # Clients filter by kind with one of these two parameters.
    filters = (request.args.get("type", "image"), request.args.get("categories", "image"))
    if not all("image" in text.split(",") for text in filters):
        return listing.page(len(listing.ids), 0)
    if limit is None and not after:
        return listing.all()
    return listing.page(_position_after(after, listing), limit)


def _limit(text: str) -> int | None:
    """None: all. Raises InvalidValue."""
    if not text:
        return None
    if not (_DIGITS.fullmatch(text) and int(text)):
        raise InvalidValue("`limit` must be a whole number from 1, at most 9 digits long.", param="limit")
    return int(text)


def _position_after(model_id: str, listing: _Listing) -> int:
    if not model_id:
        return 0
    position = listing.positions.get(model_id.casefold())
    if position is None:
        raise InvalidValue(
            f"`after` must be the `last_id` of the page before; there is no model {shorten(model_id, 200)!r}. If the "
            "catalogue has changed meanwhile, begin with the first page.",
            param="after",
        )
    return position + 1


def model_entry(model: Model, catalogue: Catalogue, loaded_at: int) -> dict[str, Any]:
    """A model in OpenAI's format, with the additional data that a model picker shows. `loaded_at`: Unix time at which
    the catalogue was loaded."""
    size, licence = model.size, model.licence
    workflows = [catalogue.workflows[name] for name in model.workflows.values()]
    presets = [workflow.presets for workflow in workflows] + [model.presets]
    return {
        "id": model.id,
        "object": "model",
        "created": loaded_at,
        "owned_by": "easel",
        "type": "image",
        "name": model.title,
        "capabilities": ["image"],
        "tasks": sorted(catalogue.drawable_tasks(model)),
        "not_drawable": {
            task: list(faults) for task, faults in catalogue.undrawable.get(model.id, {}).items()
        },
        "family": model.family,
        "aliases": list(model.aliases),
        "licence": {
            "id": licence.id,
            "name": licence.name,
            "url": licence.url,
            "commercial": licence.commercial,
            "note": licence.note,
        },
        "size": {
            "default": str(size.default),
            "min": str(size.min),
            "max": str(size.max),
            "multiple_of": size.multiple_of,
            "max_pixels": size.max_pixels,
            "suggested": [str(suggested) for suggested in size.suggested],
        },
        "loras": list(catalogue.loras_for(model)),
        "qualities": list(dict.fromkeys(name for preset in presets for name in preset.get("quality", {}))),
        "limits": {"n": model.limit_n, "batch": model.limit_batch},
        "disk_gb": model.disk_gb,
        "min_vram_gb": model.min_vram_gb,
    }
