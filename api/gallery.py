"""/api/images: the stored images with what made them, newest first; favourites, deletion, thumbnails."""

from __future__ import annotations

import contextlib
import math
from typing import Any

from flask import Blueprint, Response, g, request

from access import Caller
from api.audit import recording
from api.compression import compressed
from api.image_requests import links_of
from api.images import image_response
from api.json_body import json_request
from api.json_responses import json_response
from api.list_budget import ListBudget
from api.paths import GALLERY, STORED_IMAGES
from api.responses import Links
from api.services import Services
from compiler.values import TASKS
from errors import ImageNotFound, InvalidValue, list_names, shorten
from image_store import Cursor, ImageFilter, ImageRecord
from image_store.names import mime_and_etag
from schemas.explain import given_value

_DEFAULT_LIMIT, _MAX_LIMIT = 50, 200
_MAX_QUERY_CHARS = 1000
_PARAMETERS = ("limit", "cursor", "q", "model", "from", "to", "favourite", "task")
_BOOLEANS = {"true": True, "1": True, "false": False, "0": False}
_SHARE_OF_KEYS = 0.75
"""Of the image store, which the favourites may use if a key without `operate` adds one: else such a key could leave no room
for the pictures of all others, which only an operator could end"""
_SHOWN_NAME_CHARS = 8
"""As in the log: not enough to see the image"""


def gallery_blueprint(services: Services) -> Blueprint:
    """The routes of the list, of one image and of its thumbnail."""
    routes = Blueprint("gallery", __name__)
    one = f"{GALLERY}/<name>"
    budget = ListBudget()
    routes.add_url_rule(GALLERY, "list", lambda: _list(services, budget))
    routes.add_url_rule(one, "get", lambda name: _get(services, name))
    routes.add_url_rule(one, "change", lambda name: _change(services, name), methods=["PATCH"])
    routes.add_url_rule(one, "delete", lambda name: _delete(services, name), methods=["DELETE"])
    routes.add_url_rule(
        f"{one}/thumbnail", "thumbnail", lambda name: image_response(services.store.thumbnail(name))
    )
    return routes


def visible_owner(caller: Caller) -> str | None:
    """Whose images the caller may see and change, as the index has it; None: everybody's."""
    return None if caller.may("operate") else caller.owner_hash


def image_document(record: ImageRecord, links: Links) -> dict[str, Any]:
    """An image as the API shows it."""
    facts = record.facts
    known = mime_and_etag(record.name)
    return {
        "name": record.name,
        "url": f"{links.prefix}{STORED_IMAGES}{record.name}",
        "thumbnail": f"{links.prefix}{GALLERY}/{record.name}/thumbnail",
        "width": facts.width,
        "height": facts.height,
        "size_bytes": record.size_bytes,
        "mime": known[0] if known else None,
        "created": record.created,
        "model": facts.model,
        "task": facts.task,
        "prompt": facts.prompt,
        "negative_prompt": facts.negative_prompt,
        "seed": facts.seed,
        "settings": facts.settings,
        "adjusted": facts.adjusted,
        "ignored": facts.ignored,
        "favourite": record.is_favourite,
        "request_id": facts.request_id,
        "index": facts.index,
        "sources": facts.sources,
        "engine": facts.engine,
    }


def _list(services: Services, budget: ListBudget) -> Response:
    unknown = sorted(set(request.args) - set(_PARAMETERS))
    if unknown:
        raise InvalidValue(
            f"There is no parameter {shorten(unknown[0])!r}; known are {list_names(_PARAMETERS)}.",
            param=shorten(unknown[0]),
        )
    with budget.spending(g.caller.owner):
        return _page(services)


def _page(services: Services) -> Response:
    cursor = request.args.get("cursor")
    page = services.store.page(
        _filter(g.caller), limit=_limit(), after=Cursor.parse(cursor) if cursor else None
    )
    links = links_of(services.options)
    document = {
        "images": [image_document(record, links) for record in page.images],
        "next": str(page.next) if page.next is not None else None,
        "total": page.total,
    }
    return compressed(json_response(document), is_for_all=False)


def _filter(caller: Caller) -> ImageFilter:
    text = request.args.get("q", "")
    if len(text) > _MAX_QUERY_CHARS:
        raise InvalidValue(
            f"`q` has {len(text)} characters; at most {_MAX_QUERY_CHARS} are allowed.", param="q"
        )
    task = request.args.get("task") or None
    if task is not None and task not in TASKS:
        raise InvalidValue(
            f"`task` is {given_value(task)}; it must be one of {list_names(TASKS)}.", param="task"
        )
    return ImageFilter(
        owner=visible_owner(caller),
        text=text,
        model=request.args.get("model") or None,
        task=task,
        is_favourite=_boolean("favourite"),
        since=_time("from"),
        until=_time("to"),
    )


def _limit() -> int:
    text = request.args.get("limit", str(_DEFAULT_LIMIT))
    if not text.isascii() or not text.isdecimal() or len(text) > 9 or not 1 <= int(text) <= _MAX_LIMIT:
        raise InvalidValue(f"`limit` must be a number from 1 to {_MAX_LIMIT}.", param="limit")
    return int(text)


def _boolean(name: str) -> bool | None:
    text = request.args.get(name, "").lower()
    if text and text not in _BOOLEANS:
        raise InvalidValue(f"`{name}` is {given_value(text)}; it must be true or false.", param=name)
    return _BOOLEANS.get(text)


def _time(name: str) -> float | None:
    text = request.args.get(name, "")
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise InvalidValue(
            f"`{name}` is {given_value(text)}; it must be a Unix time in seconds, such as 1790000000.",
            param=name,
        )
    return value


def _get(services: Services, name: str) -> Response:
    return json_response(image_document(_own_image(services, name), links_of(services.options)))


def _change(services: Services, name: str) -> Response:
    body = json_request(request)
    wanted = body.get("favourite")
    others = sorted(set(body) - {"favourite"})
    if others:
        raise InvalidValue(
            f"Only `favourite` of an image can be changed, not {shorten(others[0])!r}.",
            param=shorten(others[0]),
        )
    if not isinstance(wanted, bool):
        raise InvalidValue(
            f"`favourite` is {given_value(wanted)}; it must be true or false.", param="favourite"
        )
    _own_image(services, name)
    share = 1.0 if g.caller.may("operate") else _SHARE_OF_KEYS
    record = services.store.set_favourite(name, wanted, share=share)
    return json_response(image_document(record, links_of(services.options)))


def _delete(services: Services, name: str) -> Response:
    record = _own_image(services, name)
    with contextlib.ExitStack() as stack:
        if g.caller.may("operate"):
            stack.enter_context(recording(services, "images.delete", image=record.name[:_SHOWN_NAME_CHARS]))
        services.store.delete(name)
    return Response(status=204)


def _own_image(services: Services, name: str) -> ImageRecord:
    """Raises ImageNotFound, also for an image of another key."""
    record = services.store.find(name)
    owner = visible_owner(g.caller)
    if owner is not None and record.facts.owner != owner:
        raise ImageNotFound(f"There is no image named {name[:80]!a}.")
    return record
