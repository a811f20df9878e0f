"""Which scope each route needs: the only permission check. A route that is not in the table needs `operate`, and a test
fails."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from access import SCOPES, Caller, Scope
from api.image_requests import PATHS
from api.paths import (
    EVENTS,
    GALLERY,
    GPUSTACK_IMAGE_JOBS,
    GRAPH,
    IMAGE_JOBS,
    MODEL_PATHS,
    SAVED_GRAPH,
    STORED_IMAGES,
    TAGS_PATH,
    VERSION_PATH,
)
from conversation import ROUTES
from errors import ScopeMissing


@dataclass(frozen=True)
class Permission:
    """`scopes`: one of them is needed; None: anybody may, also without a key. `is_counted`: the request counts for the
    limits of its key. `takes_place`: from its arrival on it is always one of those that run or wait; else its route
    says when, for requests that may outlive their connection."""

    scopes: tuple[Scope, ...] | None
    is_counted: bool = False
    takes_place: bool = True


OPEN = Permission(None)
ANY_KEY = Permission(SCOPES)
DRAW = Permission(("draw",), is_counted=True)
DRAW_IMAGES = Permission(("draw",), is_counted=True, takes_place=False)
"""A request that is answered later, or that joins another one, takes no place when it arrives"""
SEE_MODELS = Permission(("view", "operate", "draw"))
"""Clients that draw ask for the models first"""
VIEW = Permission(("view", "operate"))
METRICS = Permission(("metrics", "operate"))
"""Not `view`, which every key has unless it is made without: the metrics have the name and the use of each key"""
CANCEL = Permission(("draw", "operate"))
"""With `draw` only the requests of the same key"""
JOBS = CANCEL
"""The same for image jobs"""
SEE_IMAGES = Permission(("draw", "view", "operate"))
"""Without `operate` only those that the same key has made"""
CHANGE_IMAGES = CANCEL
"""The same"""
OPERATE = Permission(("operate",))

PERMISSIONS: Mapping[tuple[str, str], Permission] = {
    ("GET", "/health"): OPEN,
    ("GET", "/ready"): OPEN,
    ("GET", "/openapi.json"): OPEN,
    ("GET", "/"): OPEN,  # the page asks for a key itself
    ("GET", "/page/<version>/<path:name>"): OPEN,
    ("GET", f"{STORED_IMAGES}<name>"): OPEN,  # its name cannot be guessed
    ("GET", f"{GALLERY}/<name>/thumbnail"): OPEN,
    ("GET", GALLERY): SEE_IMAGES,
    ("GET", f"{GALLERY}/<name>"): SEE_IMAGES,
    ("PATCH", f"{GALLERY}/<name>"): CHANGE_IMAGES,
    ("DELETE", f"{GALLERY}/<name>"): CHANGE_IMAGES,
    **{("POST", path): DRAW_IMAGES for paths in PATHS.values() for path in paths},
    **{("POST", route.path): DRAW for route in ROUTES},
    **{("GET", path): SEE_MODELS for base in MODEL_PATHS for path in (base, f"{base}/<path:name>")},
    ("GET", TAGS_PATH): SEE_MODELS,
    ("GET", VERSION_PATH): SEE_MODELS,
    **{
        (method, base + path): JOBS
        for base in (IMAGE_JOBS, GPUSTACK_IMAGE_JOBS)
        for method, path in (
            ("GET", ""),
            ("GET", "/<job_id>"),
            ("GET", "/<job_id>/events"),
            ("DELETE", "/<job_id>"),
            ("POST", "/<job_id>/cancel"),
        )
    },
    ("GET", "/api/comfyui/status"): VIEW,
    ("GET", EVENTS): SEE_MODELS,  # each caller gets what it may see
    ("POST", GRAPH): SEE_MODELS,
    ("POST", SAVED_GRAPH): OPERATE,
    ("GET", "/metrics"): METRICS,
    ("POST", "/api/comfyui/switchover"): OPERATE,
    ("POST", "/api/comfyui/pin"): OPERATE,
    ("POST", "/api/comfyui/render/cancel"): CANCEL,
    ("POST", "/api/models/pull"): OPERATE,
    ("GET", "/api/models/pulls"): VIEW,
    ("GET", "/api/models/pulls/<pull_id>"): VIEW,
    ("DELETE", "/api/models/pulls/<pull_id>"): OPERATE,
    ("GET", "/api/keys"): OPERATE,
    ("GET", "/api/keys/me"): ANY_KEY,
}
"""(method, rule of the route) -> what it needs. HEAD is as GET; OPTIONS needs any key, if GET needs one."""


def permission_of(method: str, rule: str | None) -> Permission:
    """What a request needs. `rule`: None if there is no such route, which only a caller with a key may find out."""
    if rule is None:
        return ANY_KEY
    if method == "OPTIONS":
        return OPEN if PERMISSIONS.get(("GET", rule)) == OPEN else ANY_KEY
    return PERMISSIONS.get(("GET" if method == "HEAD" else method, rule), OPERATE)


def require(caller: Caller, *scopes: Scope, to: str = "") -> None:
    """Raises ScopeMissing unless `caller` has one of `scopes`. `to`: for what the first of them is needed."""
    if caller.may(*scopes):
        return
    names = " or ".join(scopes)
    raise ScopeMissing(
        f"The key {caller.name} lacks the scope {names}{f', which is needed to {to}' if to else ''}; it has "
        f"{', '.join(sorted(caller.scopes))}.",
        scope=scopes[0],
        scopes=sorted(caller.scopes),
    )
