"""Which upstream has which model. Upstreams are asked for their models in the background of requests, at most every few
seconds; being asked loads no model. An upstream that does not answer costs only its own models."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from conversation.problems import connection_problem, key_problem
from conversation.routes import Route
from conversation.upstream_config import Alias
from conversation.upstreams import Upstream
from deadline import time_limit
from errors import MAX_NAMED, ModelMissing, NoRoute, UpstreamUnavailable, list_names, shorten

log = logging.getLogger("easel.llm")

MAX_AGE_S = 5.0
"""Models are listed again if the last list is older"""
ANSWER_TIMEOUT_S = 1.5
"""How long a request waits for the lists; what an upstream lists later counts from then on"""
LISTING_TIMEOUT_S = 10.0
MAX_LISTING_BYTES = 16_000_000
MAX_MODELS = 10_000
_DEFAULT_TAG = ":latest"
_CONTEXT_FIELDS = ("context_length", "max_model_len", "max_context_length", "loaded_context_length")


@dataclass(frozen=True)
class ListedModel:
    """A model of an upstream. `created`: Unix time, None if unknown. `entry`: as the upstream lists it; it may hold command
    lines, so no client gets it whole."""

    id: str
    upstream: str
    created: int | None = None
    context_length: int | None = None
    entry: Mapping[str, Any] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class Target:
    """Where a request goes. `asked_for`: the name in the request, or the alias that it means."""

    upstream: Upstream
    model: str
    path: str
    asked_for: str


@dataclass
class _Listing:
    """What is known of one upstream's models. `models` are those of the last answer, also while it does not answer now."""

    models: Mapping[str, ListedModel] = field(default_factory=dict)
    was_answered: bool = False
    problem: str = ""
    asked_at: float | None = None
    is_asking: bool = False


@dataclass(frozen=True)
class UpstreamStatus:
    """One upstream for display. `problem`: why its models cannot be listed; empty if they can, or were never asked for."""

    name: str
    url: str
    preset: str
    stack: str | None
    models: int
    problem: str


class ModelDirectory:
    """The models of all upstreams. One per process; thread-safe."""

    def __init__(
        self,
        upstreams: Sequence[Upstream],
        aliases: Mapping[str, Alias],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.upstreams, self.aliases = tuple(upstreams), aliases
        self._clock = clock
        self._listings = {upstream.name: _listing_of(upstream) for upstream in upstreams}
        self._changed = threading.Condition()
        self._reported: set[str] = set()

    def find(self, name: str, route: Route) -> Target:
        """Where a request for the model `name` (empty: the alias of the route) goes.

        Raises ModelMissing, NoRoute, and UpstreamUnavailable if the model may belong to an upstream that never answered.
        """
        asked_for = name or route.slot
        alias = self.aliases.get(asked_for, Alias(asked_for))
        if not name and route.slot not in self.aliases:
            raise self._model_missing(route)
        targets = self._targets(alias, asked_for, route)
        if not targets:
            self.refresh()
            targets = self._targets(alias, asked_for, route)
        for target in targets:
            if target.path:
                return target
        raise self._not_found(alias, asked_for, route, targets)

    def knows(self, name: str) -> bool:
        """Whether `name` is an alias, or a model of an upstream's last list. Asks nobody."""
        return name in self.aliases or any(id_of(name, listing.models) for listing in self._listings.values())

    def has(self, name: str) -> bool:
        """As `knows`, but upstreams whose last list is old are asked."""
        if not self.knows(name):
            self.refresh(MAX_AGE_S)
        return self.knows(name)

    def _targets(self, alias: Alias, asked_for: str, route: Route) -> list[Target]:
        """One for each upstream that has the model, with an empty path where it lacks the route."""
        return [
            Target(upstream, model, upstream.paths.get(route.name, ""), asked_for)
            for upstream in self.upstreams
            if alias.upstream in (None, upstream.name)
            and (model := id_of(alias.model, self._listings[upstream.name].models))
        ]

    def _model_missing(self, route: Route) -> ModelMissing:
        return ModelMissing(
            f"The request names no model. Send `model`, or set the alias {route.slot!r} in llm.aliases for requests "
            f"without one.{self._named_models()}",
            param="model",
            models=self._ids()[:MAX_NAMED],
        )

    def _not_found(
        self, alias: Alias, asked_for: str, route: Route, targets: Sequence[Target]
    ) -> NoRoute | UpstreamUnavailable:
        model = f"model {shorten(asked_for, 200)!r}"
        if alias.model != asked_for:
            model += f" (an alias of {alias.model!r})"
        if targets:
            names = ", ".join(target.upstream.name for target in targets)
            return NoRoute(f"The {model} is at {names}, which does not offer {route.path}.", param="model")
        silent = [upstream.name for upstream in self.upstreams if self._never_answered(upstream)]
        if silent and alias.upstream in (None, *silent):
            problems = "; ".join(self._listings[name].problem for name in silent)
            return UpstreamUnavailable(
                f"No upstream that answers has the {model}. These have not listed their models yet: {problems}",
                param="model",
                upstream=silent[0],
            )
        hint = ""
        if not self.upstreams:
            hint = (
                " No LLM server is configured: add one to llm.upstreams or llm.stacks. Pictures are drawn at POST "
                "/v1/images/generations."
            )
        return NoRoute(
            f"There is no {model}.{hint}{self._named_models()}",
            param="model",
            models=self._ids()[:MAX_NAMED],
        )

    def _never_answered(self, upstream: Upstream) -> bool:
        return not self._listings[upstream.name].was_answered

    def _named_models(self) -> str:
        ids = self._ids()
        return f" There are: {list_names(ids)}." if ids else ""

    def _ids(self) -> list[str]:
        return list(dict.fromkeys([*self.aliases, *(model.id for model in self.known())]))

    # --- listing -----------------------------------------------------------------------------------

    def current(self) -> tuple[ListedModel, ...]:
        """The models of the upstreams that answer, each id once: the first upstream that has it counts. Those of an
        upstream that is slow to answer are the last known ones."""
        self.refresh(MAX_AGE_S)
        return self._unique(lambda listing: () if listing.problem else listing.models.values())

    def listed(self) -> dict[str, ListedModel]:
        """The models of `current` by id, and by each alias whose model is among them. As in requests, an alias hides the
        model of the same name."""
        models = {model.id: model for model in self.current()}
        aliases = {name: self._aliased(alias, models) for name, alias in self.aliases.items()}
        for name, alias in self.aliases.items():
            if name in models and alias.model != name:
                self._report(
                    f"{name} is an alias of {alias.model} and a model of {models[name].upstream}; requests go to "
                    f"{alias.model}. Choose another name for the alias to use both."
                )
        return {
            **{name: model for name, model in aliases.items() if model is not None},
            **{name: model for name, model in models.items() if name not in self.aliases},
        }

    def _aliased(self, alias: Alias, models: Mapping[str, ListedModel]) -> ListedModel | None:
        if alias.upstream is not None:
            listing = self._listings[alias.upstream]
            models = {} if listing.problem else listing.models
        return models.get(id_of(alias.model, models))

    def known(self) -> tuple[ListedModel, ...]:
        """The models of the last answers, also of upstreams that do not answer any more. Asks nobody."""
        return self._unique(lambda listing: listing.models.values())

    def _unique(self, models_of: Callable[[_Listing], Iterable[ListedModel]]) -> tuple[ListedModel, ...]:
        found: dict[str, ListedModel] = {}
        for upstream in self.upstreams:
            for model in models_of(self._listings[upstream.name]):
                first = found.setdefault(model.id, model)
                if first is not model:
                    self._report(
                        f"The model {model.id} is at {first.upstream} and at {upstream.name}; requests go to "
                        f"{first.upstream}. An alias in llm.aliases can name the other one."
                    )
        return tuple(found.values())

    def status(self) -> tuple[UpstreamStatus, ...]:
        """All upstreams, as they were when they were asked last. Asks nobody."""
        return tuple(
            UpstreamStatus(
                upstream.name,
                upstream.url,
                upstream.preset,
                upstream.stack,
                len(self._listings[upstream.name].models),
                self._listings[upstream.name].problem,
            )
            for upstream in self.upstreams
        )

    def refresh(self, max_age_s: float = 1.0) -> None:
        """Ask the upstreams whose last list is older than `max_age_s`, and wait a moment for their answers."""
        now = self._clock()
        for upstream in self.upstreams:
            listing = self._listings[upstream.name]
            if upstream.models is not None:
                continue
            with self._changed:
                is_recent = listing.asked_at is not None and now - listing.asked_at < max_age_s
                if listing.is_asking or is_recent:
                    continue
                listing.is_asking, listing.asked_at = True, now
            thread = threading.Thread(
                target=self._ask, args=(upstream, listing), name="llm-models", daemon=True
            )
            try:
                thread.start()
            except RuntimeError as error:  # too many threads
                self._set(listing, None, f"{upstream.name}: {error}.")
        with self._changed:
            while (wait_s := self._expected_within_s()) > 0:
                self._changed.wait(wait_s)

    def _expected_within_s(self) -> float:
        """How long the answers of those that were asked last may still take; 0 if all have answered or are slow."""
        asked_at = [listing.asked_at or 0.0 for listing in self._listings.values() if listing.is_asking]
        return max(asked_at) + ANSWER_TIMEOUT_S - self._clock() if asked_at else 0.0

    def _ask(self, upstream: Upstream, listing: _Listing) -> None:
        models: dict[str, ListedModel] | None = None
        problem = ""
        try:
            with time_limit(LISTING_TIMEOUT_S):
                models = {model.id: model for model in _list_models(upstream)}
        except Exception as error:
            problem = f"{upstream.name} at {upstream.url} {_reason(error, upstream)}."
            self._report(f"Models cannot be listed: {problem}")
        self._set(listing, models, problem)

    def _set(self, listing: _Listing, models: dict[str, ListedModel] | None, problem: str) -> None:
        with self._changed:
            if models is not None:
                listing.models, listing.was_answered = models, True
            listing.problem, listing.is_asking = problem, False
            self._changed.notify_all()

    def _report(self, message: str) -> None:
        if message not in self._reported and len(self._reported) < MAX_NAMED:
            self._reported.add(message)
            log.warning("%s", message)


def _listing_of(upstream: Upstream) -> _Listing:
    if upstream.models is None:
        return _Listing()
    return _Listing({id: ListedModel(id, upstream.name) for id in upstream.models}, was_answered=True)


def id_of(name: str, models: Container[str]) -> str:
    """The id of the model `name`, empty if there is none; Ollama's `:latest` may be omitted."""
    return next((id for id in (name, name + _DEFAULT_TAG) if id in models), "")


def _list_models(upstream: Upstream) -> Iterator[ListedModel]:
    headers = {**upstream.default_headers, **upstream.key_headers()}
    response = upstream.connections.open(
        "GET", upstream.listing.path, timeout_s=LISTING_TIMEOUT_S, headers=headers
    )
    try:
        body = bytearray()
        while part := response.read1(65536):
            body += part
            if len(body) > MAX_LISTING_BYTES:
                raise ValueError(f"has a list of models that is longer than {MAX_LISTING_BYTES} bytes")
        if response.status in (401, 403):
            raise ValueError(key_problem(upstream))
        if response.status != 200:
            raise ValueError(f"answered {response.status} to GET {upstream.listing.path}")
    finally:
        response.close()
    document = json.loads(body)
    entries = document.get(upstream.listing.items) if isinstance(document, Mapping) else None
    if not isinstance(entries, list):
        raise ValueError(f"answered GET {upstream.listing.path} without a list `{upstream.listing.items}`")
    for entry in entries[:MAX_MODELS]:
        model_id = entry.get(upstream.listing.id) if isinstance(entry, Mapping) else None
        if isinstance(model_id, str) and model_id:
            yield ListedModel(
                model_id, upstream.name, _whole(entry.get("created")), _context_length(entry), entry
            )


def _context_length(entry: Mapping[str, Any]) -> int | None:
    return next((length for name in _CONTEXT_FIELDS if (length := _whole(entry.get(name)))), None)


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _reason(error: Exception, upstream: Upstream) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"answered GET {upstream.listing.path} with something that is not JSON"
    if isinstance(error, ValueError):
        return str(error)
    return connection_problem(error, upstream)
