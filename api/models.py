"""GET /v1/models and /v1/models/{id}."""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from flask import Blueprint, Response, g, jsonify, request

from access import Caller
from api.compression import compressed
from api.key_limits import may_use_llm, may_use_model
from api.model_inputs import inputs_of
from api.paths import MODEL_PATHS
from api.services import Services
from compiler import Catalogue, Model
from compiler.openai_names import SLOT_NAME
from compiler.size import SizeRule
from conversation import ListedModel, ModelDirectory, id_of
from errors import InvalidValue, LicenceNotAccepted, ModelNotCurated, shorten
from generation import ModelState, StageState

_DIGITS = re.compile(r"[0-9]{1,9}")


def models_blueprint(services: Services) -> Blueprint:
    """The model routes."""
    routes, listings = Blueprint("models", __name__), _Listings(services)
    routes.after_request(compressed)
    for path in MODEL_PATHS:
        routes.add_url_rule(path, path, lambda: _list_models(listings.current(), _allowed(services)))
        # Ids may contain slashes, such as stabilityai/sdxl-turbo.
        routes.add_url_rule(
            f"{path}/<path:name>",
            f"{path}/one",
            lambda name: listings.current().one(name, _allowed(services)),
        )
    return routes


@dataclass(frozen=True)
class _Allowed:
    """Which models the key of `caller` allows."""

    caller: Caller
    directory: ModelDirectory

    def allows(self, name: str, model: Model | None, catalogue: Catalogue) -> bool:
        """`model`: None for an LLM"""
        if model is None:
            return may_use_llm(self.caller, name, self.directory)
        return may_use_model(self.caller, model, catalogue)


def _allowed(services: Services) -> _Allowed | None:
    """None: all, which is the usual case."""
    if g.caller.limits.models is None:
        return None
    return _Allowed(g.caller, services.models_of_llms)


class _Listing:
    """The models of one catalogue and of the LLM servers as clients see them. `loaded_at`: Unix time at which the catalogue
    was loaded."""

    def __init__(
        self,
        catalogue: Catalogue,
        loaded_at: int,
        llms: Mapping[str, ListedModel],
        states: tuple[ModelState, ...],
        stages: tuple[StageState, ...],
        lists_all: bool,
    ) -> None:
        """`llms`: by id or alias. `states`, `stages`: what the engine lacks for the image models and for the stages, as far
        as that is known. `lists_all`: also models that it cannot draw"""
        self._lists_all = lists_all
        self.catalogue, self.loaded_at, self.llms, self.states = catalogue, loaded_at, llms, states
        self._states = {state.id: state for state in states}
        self.stages = stages
        self.licences_version = catalogue.licences.version
        self._lock = threading.Lock()
        self._all: bytes | None = None

    @cached_property
    def ids(self) -> tuple[str, ...]:
        """Every id in the order of the list: first the image models and hal0's name of its image slot, unless a model has
        that, in upper or lower case; then the LLMs, without those that have the id of an image model."""
        ids = tuple(model.id for model in self.catalogue.visible_models if self._is_listed(model))
        images = ids if SLOT_NAME in map(str.casefold, ids) else (*ids, SLOT_NAME)
        taken = set(map(str.casefold, images))
        return (*images, *(id for id in self.llms if id.casefold() not in taken))

    def _is_listed(self, model: Model) -> bool:
        """A list of what nobody can draw here is of no use to clients that show it; but a model of which nothing is known
        yet may be drawable."""
        state = self._states.get(model.id)
        is_default = model.id == self.catalogue.default_model
        return self._lists_all or state is None or state.is_drawable or is_default

    @cached_property
    def positions(self) -> dict[str, int]:
        """id -> its place in `ids`"""
        return {model_id: index for index, model_id in enumerate(self.ids)}

    @cached_property
    def _folded(self) -> dict[str, int]:
        """id of an image model in lower case -> its place in `ids`. The ids of LLMs may differ only in case."""
        return {id.casefold(): index for index, id in enumerate(self.ids) if id in self.image_ids}

    def position(self, name: str) -> int | None:
        """The place in `ids` of the model `name`, as requests for it find it; None if there is none."""
        if found := id_of(name, self.positions):
            return self.positions[found]
        return self._folded.get(name.casefold())

    @cached_property
    def image_ids(self) -> frozenset[str]:
        """Those of `ids` that draw"""
        return frozenset(id for id in self.ids if id == SLOT_NAME or id in self.catalogue.models)

    def all(self) -> Response:
        """The whole list. Its text is built once, because that takes 0.5 s for 10,000 models."""
        with self._lock:
            if self._all is None:
                self._all = self.page(self.ids, 0, None).get_data()
        return Response(self._all, mimetype="application/json")

    def page(self, ids: tuple[str, ...], start: int, limit: int | None) -> Response:
        """At most `limit` models of `ids` from the one at place `start`."""
        page = ids[start:] if limit is None else ids[start : start + limit]
        body = {
            "object": "list",
            "data": [self._entry(model_id) for model_id in page],
            "first_id": page[0] if page else None,
            "last_id": page[-1] if page else None,
            "has_more": start + len(page) < len(ids),
        }
        return jsonify(body)

    def allowed_ids(self, allowed: _Allowed | None) -> tuple[str, ...]:
        """Those of `ids` that a key allows."""
        return self.ids if allowed is None else tuple(id for id in self.ids if self._is_allowed(id, allowed))

    def _is_allowed(self, model_id: str, allowed: _Allowed) -> bool:
        model = self.catalogue.find(model_id) if model_id in self.image_ids else None
        return allowed.allows(model_id, model, self.catalogue)

    def one(self, name: str, allowed: _Allowed | None = None) -> Response:
        """The model of this id or alias. Raises ModelNotCurated, also if the key does not allow it."""
        position = self.position(name)
        if position is not None:
            if allowed is not None and not self._is_allowed(self.ids[position], allowed):
                raise ModelNotCurated(f"The key {allowed.caller.name} may not use this model.", param="model")
            return jsonify(self._with_details(self._entry(self.ids[position])))
        if name.strip():
            model = self.catalogue.find(name)
            if allowed is not None and not allowed.allows(name, model, self.catalogue):
                raise ModelNotCurated(f"The key {allowed.caller.name} may not use this model.", param="model")
            return jsonify(self._with_details(self._image_entry(model)))
        raise ModelNotCurated("The model name is empty.", param="model")

    def _entry(self, model_id: str) -> dict[str, Any]:
        if model_id not in self.image_ids:
            return _llm_entry(model_id, self.llms[model_id], self.loaded_at)
        model = self.catalogue.models.get(model_id)
        if model is not None and model_id not in self.catalogue.hidden:
            return self._image_entry(model)
        drawn = self.catalogue.find(SLOT_NAME)  # the default model, unless this is an alias of another one
        return {
            **self._image_entry(drawn),
            "id": SLOT_NAME,
            "slot_of": drawn.id,
        }

    def _with_details(self, entry: dict[str, Any]) -> dict[str, Any]:
        """`entry` of one model with what a list does not repeat for each: what a request may set, its files, and what can be
        done with its pictures. A model whose workflow has an input of that name does it in its own way."""
        model = self.catalogue.models.get(entry.get("slot_of", entry["id"]))
        if model is None:
            return entry
        inputs = {name for each in model.workflows.values() for name in self.catalogue.workflows[each].inputs}
        known = {stage.id: stage for stage in self.stages}
        return {
            **entry,
            "stages": {
                name: known[name].facts if name in known else None
                for name in self.catalogue.stages
                if name not in inputs
            },
            "inputs": inputs_of(model, self.catalogue, known),
            "files": _files(model, self._states.get(model.id)),
            "pull": f"easel pull-model {model.id}" if model.files else None,
        }

    def _image_entry(self, model: Model) -> dict[str, Any]:
        return model_entry(model, self.catalogue, self.loaded_at, self._states.get(model.id))


class _Listings:
    """The listing of the current catalogue, made once for each."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._last: _Listing | None = None

    def current(self) -> _Listing:
        catalogue, loaded_at = self._services.catalogue(), self._services.catalogue_loaded_at()
        llms = self._services.models_of_llms.listed()
        last = self._last
        states, stages = self._states(last)
        if (
            last is None
            or last.catalogue is not catalogue
            or last.loaded_at != loaded_at
            or last.llms != llms
            or last.states != states
            or last.stages != stages
            or last.licences_version != catalogue.licences.version
        ):
            lists_all = self._services.options.lists_all_models
            last = self._last = _Listing(catalogue, loaded_at, llms, states, stages, lists_all)
        return last

    def _states(self, last: _Listing | None) -> tuple[tuple[ModelState, ...], tuple[StageState, ...]]:
        """Those of the last complete check, so that the text of a long list is not built for each step of a check."""
        known = self._services.readiness.models(0)
        if known is not None and known.is_complete:
            return known.states, known.stages
        return (last.states, last.stages) if last and known is not None else ((), ())


def _list_models(listing: _Listing, allowed: _Allowed | None) -> Response:
    limit, after = _limit(request.args.get("limit", "")), request.args.get("after", "")
    # Clients filter by kind with one of these two parameters.
    filters = [request.args[name].split(",") for name in ("type", "categories") if name in request.args]
    if not filters and limit is None and not after and allowed is None:
        return listing.all()
    kinds = [kind for kind in ("image", "llm") if all(kind in names for names in filters)]
    ids = tuple(
        id for id in listing.allowed_ids(allowed) if ("image" if id in listing.image_ids else "llm") in kinds
    )
    return listing.page(ids, _position_after(after, ids, listing), limit)


def _limit(text: str) -> int | None:
    """None: all. Raises InvalidValue."""
    if not text:
        return None
    if not (_DIGITS.fullmatch(text) and int(text)):
        raise InvalidValue("`limit` must be a whole number from 1, at most 9 digits long.", param="limit")
    return int(text)


def _position_after(model_id: str, ids: tuple[str, ...], listing: _Listing) -> int:
    """The place in `ids`, some of those in the listing, of the first one after `model_id`."""
    if not model_id:
        return 0
    position = listing.position(model_id)
    if position is None:
        raise InvalidValue(
            f"`after` must be the `last_id` of the page before; there is no model {shorten(model_id, 200)!r}. If the "
            "models have changed meanwhile, begin with the first page.",
            param="after",
        )
    return sum(1 for id in ids if listing.positions[id] <= position)


def _llm_entry(name: str, model: ListedModel, loaded_at: int) -> dict[str, Any]:
    """An LLM in OpenAI's format. `name`: its id or an alias. Of what its server says only this is passed on: some servers
    list their command lines."""
    entry: dict[str, Any] = {
        "id": name,
        "object": "model",
        "created": model.created or loaded_at,
        "owned_by": model.upstream,
        "type": "llm",
    }
    if model.context_length is not None:
        entry["context_length"] = model.context_length
    return entry if name == model.id else {**entry, "slot_of": model.id}


def model_entry(
    model: Model, catalogue: Catalogue, loaded_at: int, state: ModelState | None = None
) -> dict[str, Any]:
    """A model in OpenAI's format, with the additional data that a model picker shows. `loaded_at`: Unix time at which
    the catalogue was loaded. `state`: what the engine lacks for it; None if that is not known."""
    return {
        "id": model.id,
        "object": "model",
        "created": loaded_at,
        "owned_by": "easel",
        "type": "image",
        "name": model.title,
        "capabilities": ["image"],
        "tasks": sorted(catalogue.drawable_tasks(model)),
        "not_drawable": _not_drawable(model, catalogue),
        "family": model.family,
        "aliases": list(model.aliases),
        "licence": _licence(model, catalogue),
        "size": _size(model.size),
        "loras": list(catalogue.loras_for(model)),
        "image_inputs": list(catalogue.image_inputs(model)),
        "qualities": _qualities(model, catalogue),
        "limits": _limits(model, catalogue),
        "disk_gb": model.disk_gb,
        "min_vram_gb": model.min_vram_gb,
        "needs_comfyui": catalogue.needed_version(model),
        "unverified": list(catalogue.unverified(model)),
        "engine": state.facts if state else None,
    }


def _files(model: Model, state: ModelState | None) -> list[dict[str, Any]]:
    """The files of weights. `state`: None if it is not known what the engine has."""
    return [
        {
            "name": file.name,
            "folder": file.folder,
            "size_bytes": file.size,
            "sha256": file.sha256,
            "url": file.url,
            "gated": file.gated,
            "state": "unknown" if state is None else state.state_of(file.name),
        }
        for file in model.files.values()
    ]


def _licence(model: Model, catalogue: Catalogue) -> dict[str, Any]:
    licence = model.licence
    return {
        "id": licence.id,
        "name": licence.name,
        "url": licence.url,
        "commercial": licence.commercial,
        "note": licence.note,
        "key": licence.key,
        "state": catalogue.licences.state(model),
    }


def _size(size: SizeRule) -> dict[str, Any]:
    return {
        "default": str(size.default),
        "min": str(size.min),
        "max": str(size.max),
        "multiple_of": size.multiple_of,
        "max_pixels": size.max_pixels,
        "suggested": [str(suggested) for suggested in size.suggested],
    }


def _qualities(model: Model, catalogue: Catalogue) -> list[str]:
    presets = [catalogue.workflows[name].presets for name in model.workflows.values()] + [model.presets]
    return list(dict.fromkeys(name for preset in presets for name in preset.get("quality", {})))


def _limits(model: Model, catalogue: Catalogue) -> dict[str, Any]:
    counts = catalogue.image_counts(model).items()
    return {
        "n": model.limit_n,
        "batch": model.limit_batch,
        "images": {task: {"min": count.min, "max": count.max} for task, count in counts},
    }


def _not_drawable(model: Model, catalogue: Catalogue) -> dict[str, list[str]]:
    """task -> why the model cannot draw it"""
    faults = catalogue.undrawable.get(model.id, {})
    try:
        catalogue.licences.check(model)
    except LicenceNotAccepted as error:
        return {task: [error.message, *faults.get(task, ())] for task in model.workflows}
    return {task: list(texts) for task, texts in faults.items()}
