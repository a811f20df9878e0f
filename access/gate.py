"""Who may enter, and what each request may use: the keys of the settings, the named keys, and the key of this installation's
commands."""

from __future__ import annotations

import contextlib
import hmac
import logging
import math
import secrets
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

from access.caller import ANONYMOUS, COMMAND, Caller, settings_caller
from access.clock import Now, read_clock
from access.keys import Key, KeyFile, digest_of
from access.limits import Limits
from access.ownership import keep_owner
from access.places import Place, Places
from access.usage import Counts, Level, UsageFiles
from atomic_file import create_atomic
from errors import EaselError, InvalidKey, InvalidValue, KeyEnded, KeyLimit, KeyLimitReached, KeysUnreadable
from state_files import read_file
from system_errors import write_error

log = logging.getLogger("easel.access")

_COMMAND_PREFIX = "easel_command_"
_RETRY_AFTER_S = 5
"""When a place becomes free is not known"""
_LOG_INTERVAL_S = 60.0
_PICTURES = ("pictures_per_minute", "pictures_per_day")
_REQUESTS = ("requests_per_minute", "requests_per_day")


class Gate:
    """One per process; thread-safe. `folder`: the state directory. `settings_keys`: those of the setting `api_keys`.
    `always_closed`: a key is needed although there is none."""

    def __init__(
        self,
        folder: Path,
        settings_keys: Sequence[str] = (),
        *,
        always_closed: bool = False,
        clock: Callable[[], Now] = read_clock,
    ) -> None:
        self.keys = KeyFile(folder / "keys.json", lambda: clock().wall)
        self._usage = UsageFiles(folder / "keys", clock)
        self._places = Places(folder / "keys")
        self._command_key_file = folder / "command.key"
        self._settings_keys = {
            digest_of(key.encode()): settings_caller(number)
            for number, key in enumerate(settings_keys, start=1)
        }
        self._always_closed, self._clock = always_closed, clock
        self._logged_at = -math.inf

    @property
    def needs_key(self) -> bool:
        """Whether requests need a key."""
        return bool(self._settings_keys) or self.keys.is_used or self._always_closed

    def has_several_keys(self) -> bool:
        """Whether more than one key may be in use."""
        now = self._clock().wall
        active = (key for key in self.keys.current().keys if key.state(now) == "active")
        return len(self._settings_keys) + len(list(islice(active, 2))) > 1

    @property
    def problem(self) -> KeysUnreadable | None:
        """Why the key file does not count; None if it does, or if there is none."""
        self.keys.current()
        return self.keys.problem

    def caller_of(self, sent: bytes) -> Caller:
        """The caller who sent this key; empty: none. Takes the same time for every key. Raises InvalidKey, KeyEnded, and
        KeysUnreadable if the key could be a named one but none can be read."""
        if not self.needs_key:
            return ANONYMOUS
        if not sent:
            raise InvalidKey("This server requires an API key: send `Authorization: Bearer KEY`.")
        digest = digest_of(sent)
        if (caller := self._settings_keys.get(digest)) is not None:
            return caller
        table = self.keys.current()
        if (key := table.by_digest.get(digest)) is not None:
            self._require_active(key)
            return key.caller
        if sent.startswith(_COMMAND_PREFIX.encode()) and self._is_command_key(sent):
            return COMMAND
        if not table.keys and (problem := self.keys.problem) is not None:
            raise KeysUnreadable(problem.message)
        raise InvalidKey(
            "The API key is not valid. Send one of this server's keys: `Authorization: Bearer KEY`."
        )

    def ended(self, caller: Caller) -> KeyEnded | None:
        """Why a request of `caller` must stop; None as long as its key is valid. Cheap."""
        if not caller.id:
            return None
        key = self.keys.current().by_id.get(caller.id)
        if key is None:
            return KeyEnded(f"The key {caller.name} is not valid any more.", name=caller.name)
        try:
            self._require_active(key)
        except KeyEnded as error:
            return error
        return None

    def is_current(self, caller: Caller) -> bool:
        """Whether who sends the same key now is the same caller, with the same rights. Not so after the first key was added,
        for those who needed none before."""
        if not caller.id:
            return bool(caller.key) or not self.needs_key
        key = self.keys.current().by_id.get(caller.id)
        return key is not None and key.caller == caller

    def name_of(self, owner: str) -> str:
        """The name of the key of an owner, see `Caller.owner`."""
        key = self.keys.current().by_id.get(owner)
        return owner if key is None else key.name

    def _require_active(self, key: Key) -> None:
        state = key.state(self._clock().wall)
        if state != "active":
            raise KeyEnded(
                f"The key {key.name} {'was revoked' if state == 'revoked' else 'has expired'}.", name=key.name
            )

    # --- the key of commands -----------------------------------------------------------------------

    def command_key(self) -> str | None:
        """The key with which a command of this installation calls its server: whoever can read it could also change the key
        file. Made if it is not there; None if no key is needed or it cannot be read or written."""
        if not self.needs_key:
            return None
        with contextlib.suppress(OSError, ValueError):
            if not self._command_key_file.exists():
                with contextlib.suppress(FileExistsError):
                    text = _COMMAND_PREFIX + secrets.token_urlsafe(32)
                    create_atomic(self._command_key_file, text.encode(), mode=0o600)
                    keep_owner(self._command_key_file)
            text = read_file(self._command_key_file).decode("ascii").strip()
            return text if len(text) > len(_COMMAND_PREFIX) and text.startswith(_COMMAND_PREFIX) else None
        return None

    def _is_command_key(self, sent: bytes) -> bool:
        try:
            kept = read_file(self._command_key_file).strip()
        except OSError:
            return False
        return len(kept) > len(_COMMAND_PREFIX) + 32 and hmac.compare_digest(kept, sent)

    # --- use ---------------------------------------------------------------------------------------

    def admit(self, caller: Caller, *, takes_place: bool = True) -> Use:
        """Count a request of `caller`. `takes_place`: it runs or waits from now on; else call `Use.take_place` when it does.
        Raises KeyLimitReached; StateUnwritable or StoreFull if a key has limits and its use cannot be counted."""
        if not caller.id:
            return Use(self, caller)
        place: Place | None = None
        try:
            if takes_place and caller.limits.concurrent is not None:
                place = self._take_place(caller, caller.limits.concurrent)
            try:
                levels = self._count_request(caller)
            except BaseException:
                if place is not None:
                    place.leave()
                raise
        except OSError as error:  # TimeoutError, too
            self._require_unlimited(caller, error)
            levels = ()
        return Use(self, caller, place, levels)

    def admit_later(
        self,
        owner: str,
        *,
        counted: Mapping[str, Any] | None = None,
        on_counted: Callable[[Mapping[str, Any]], None] = lambda counted: None,
    ) -> Use:
        """What a request uses that was counted before and is drawn now, without its connection. `owner`: as `Caller.owner`.
        `on_counted`: told, as JSON, that its pictures were counted; `counted`: what it was told by a process that was killed
        while it drew this request, whose pictures are not counted again.
        Raises KeyEnded, KeysUnreadable while nobody can say whether its key is valid, KeyLimitReached while too many
        requests of its key run, and as `admit`."""
        table = self.keys.current()
        key = table.by_id.get(owner)
        if key is None:
            caller = next((each for each in self._settings_keys.values() if each.owner == owner), None)
            if owner and caller is None and owner != COMMAND.owner:
                if not table.keys and (problem := self.keys.problem) is not None:
                    raise KeysUnreadable(problem.message)
                raise KeyEnded("The key of this request is not valid any more.", name=owner)
            return Use(self, caller or ANONYMOUS)
        self._require_active(key)
        limit = key.caller.limits.concurrent
        if limit is None:
            return Use(self, key.caller, counted=counted, on_counted=on_counted)
        place: Place | None = None
        try:
            place = self._places.take(key.caller.id, limit)
            if place is None:
                raise _limit_reached(key.caller, Level("concurrent", limit, limit, None))
        except OSError as error:
            self._require_unlimited(key.caller, error)
        return Use(self, key.caller, place, counted=counted, on_counted=on_counted)

    def _take_place(self, caller: Caller, limit: int) -> Place:
        place = self._places.take(caller.id, limit)
        if place is None:
            self._count_refusal(caller)
            raise _limit_reached(caller, Level("concurrent", limit, limit, None))
        return place

    def _count_request(self, caller: Caller) -> tuple[Level, ...]:
        with self._usage.changing(caller.id) as (record, now):
            refused = record.take(caller.limits, now, 1, *_REQUESTS)
            record.add(Counts(refused=1) if refused else Counts(requests=1))
            record.last_used = now.wall
            levels = tuple(record.levels(caller.limits, now))
        if refused:
            raise _limit_reached(caller, refused, levels)
        return levels

    def _count_refusal(self, caller: Caller) -> None:
        with contextlib.suppress(OSError), self._usage.changing(caller.id) as (record, now):
            record.add(Counts(refused=1))
            record.last_used = now.wall

    def _require_unlimited(self, caller: Caller, error: OSError) -> None:
        """The use of a key without limits is not worth a refusal."""
        if caller.limits.counts:
            raise write_error(error, "the state directory") from error
        now = time.monotonic()
        if now - self._logged_at >= _LOG_INTERVAL_S:
            self._logged_at = now
            log.warning("the use of the key %s cannot be counted: %s", caller.name, error.strerror or error)

    # --- changes -----------------------------------------------------------------------------------

    def add_key(
        self, name: str, scopes: Sequence[str], limits: dict[str, Any], *, expires: float | None = None
    ) -> tuple[Key, str]:
        """As `KeyFile.add`. `limits`: the fields of Limits that are limited."""
        try:
            checked = Limits.from_json(limits)
        except ValueError as error:
            field, _, rule = str(error).removeprefix("limits.").partition(": ")
            raise InvalidValue(f"`{field}`: {rule}.", param=field) from error
        key, text = self.keys.add(name, scopes, checked, expires=expires)
        with contextlib.suppress(OSError):
            self._usage.prepare(key.id)
        return key, text

    def revoke_key(self, name: str) -> Key:
        """As `KeyFile.revoke`."""
        return self.keys.revoke(name)

    # --- display -----------------------------------------------------------------------------------

    def reports(self) -> list[dict[str, Any]]:
        """All named keys with their use, as plain JSON without secrets."""
        return [self.report(key) for key in self.keys.current().keys]

    def report(self, key: Key) -> dict[str, Any]:
        """One of `reports`."""
        record, now = self._usage.read(key.id)
        return {
            "id": key.id,
            "name": key.name,
            "state": key.state(now.wall),
            "scopes": list(key.scopes),
            "limits": key.limits.as_json(),
            "created": key.created,
            "expires": key.expires,
            "revoked": key.revoked,
            "last_used": record.last_used or None,
            "usage": {
                "today": _rounded(record.today),
                "total": _rounded(record.total),
                "windows": [_level_json(level) for level in record.levels(key.limits, now)],
            },
        }

    def report_of(self, caller: Caller) -> dict[str, Any]:
        """What a caller may know about its own key."""
        key = self.keys.current().by_id.get(caller.id)
        if key is not None:
            return self.report(key)
        return {
            "id": None,
            "name": caller.name,
            "state": "active",
            "scopes": sorted(caller.scopes),
            "limits": {},
        }


def is_command_key(key: str | None) -> bool:
    """Whether `key` is one of those that `Gate.command_key` returns."""
    return key is not None and key.startswith(_COMMAND_PREFIX)


def _level_json(level: Level) -> dict[str, Any]:
    """A level as plain JSON."""
    values = asdict(level)
    reset_s = values.pop("reset_s")
    return {**values, "reset": None if reset_s is None else math.ceil(reset_s)}


def _rounded(counts: Counts) -> dict[str, Any]:
    return {**asdict(counts), "gpu_s": round(counts.gpu_s, 3)}


def _limit_reached(caller: Caller, level: Level, levels: Sequence[Level] = ()) -> KeyLimitReached:
    what = level.name.replace("_", " ")
    if level.reset_s is None:
        text = f"{level.limit} requests of the key {caller.name} run or wait already; more may not at the same time."
        retry_after_s = _RETRY_AFTER_S
    else:
        retry_after_s = max(1, math.ceil(level.reset_s))
        text = (
            f"The key {caller.name} may use {level.limit} {what}; {level.used} are used. It begins anew in "
            f"{retry_after_s} s."
        )
    windows = [_level_json(other) for other in levels]
    return KeyLimitReached(text, **_level_json(level), windows=windows, retry_after_s=retry_after_s)


def _read_counted(counted: Mapping[str, Any] | None) -> tuple[int, dict[str, float]] | None:
    """The number of pictures, and when their windows began; None if that was damaged."""
    number, began = (counted or {}).get("number"), (counted or {}).get("began")
    if (
        not isinstance(number, int)
        or number < 1
        or not isinstance(began, dict)
        or set(began) != set(_PICTURES)
    ):
        return None
    return number, began


class Use:
    """What one request uses. `close` it when its response has been sent; its place stays taken until its pictures have
    ended, too. Thread-safe."""

    def __init__(
        self,
        gate: Gate,
        caller: Caller,
        place: Place | None = None,
        levels: Sequence[Level] = (),
        *,
        counted: Mapping[str, Any] | None = None,
        on_counted: Callable[[Mapping[str, Any]], None] = lambda counted: None,
    ) -> None:
        self._gate, self.caller, self._place = gate, caller, place
        self._counted, self._on_counted = _read_counted(counted), on_counted
        self.levels = tuple(levels)
        """How far the limits were used when this was counted last"""
        self._lock = threading.Lock()
        self._waiting: set[PictureUse] = set()
        self._drawing = 0
        self._is_closed = False

    def ended(self) -> KeyEnded | None:
        """As `Gate.ended`."""
        return self._gate.ended(self.caller)

    def take_place(self) -> None:
        """The request runs or waits from now on. Raises KeyLimitReached, and as `Gate.admit`."""
        limit = self.caller.limits.concurrent
        if not self.caller.id or limit is None or self._place is not None:
            return
        try:
            place = self._gate._take_place(self.caller, limit)
        except OSError as error:
            self._gate._require_unlimited(self.caller, error)
            return
        with self._lock:
            self._place = place
        self._leave()  # it may have been closed meanwhile

    def take_pictures(self, number: int) -> PictureUse:
        """Count pictures before they are drawn. Raises KeyLimit if so many are never allowed at once, KeyLimitReached, and
        as `Gate.admit`."""
        pictures = PictureUse(self, number)
        counted, self._counted = self._counted, None
        if counted is not None and counted[0] == number:
            pictures.began = counted[1]
        elif self.caller.id:
            if counted is not None:
                self._settle(counted[1], counted[0], 0.0)
            try:
                pictures.began = self._count(number)
                self._on_counted({"number": number, "began": pictures.began})
            except OSError as error:
                self._gate._require_unlimited(self.caller, error)
        with self._lock:
            self._waiting.add(pictures)
        return pictures

    def _count(self, number: int) -> dict[str, float]:
        limits = self.caller.limits
        highest = min(
            (limit for name in _PICTURES if (limit := getattr(limits, name)) is not None), default=None
        )
        with self._gate._usage.changing(self.caller.id) as (record, now):
            refused = (
                None
                if highest is not None and number > highest
                else record.take(limits, now, number, *_PICTURES)
            )
            is_refused = refused is not None or (highest is not None and number > highest)
            record.add(Counts(refused=1) if is_refused else Counts(pictures=number))
            self.levels = tuple(record.levels(limits, now))
            began = {name: record.windows[name].steady for name in _PICTURES}
        if refused is not None:
            raise _limit_reached(self.caller, refused, self.levels)
        if highest is not None and number > highest:
            raise KeyLimit(
                f"The key {self.caller.name} may draw at most {highest} pictures with one request; this one has {number}.",
                param="n",
                limit=highest,
            )
        return began

    def refuse(self, error: EaselError) -> EaselError:
        """Count that the request was refused with `error`, and return it."""
        if self.caller.id:
            self._gate._count_refusal(self.caller)
        return error

    def close(self) -> None:
        """See the class. A second call does nothing."""
        with self._lock:
            waiting, self._waiting = self._waiting, set()
            counted, self._counted = self._counted, None
            self._is_closed = True
        if counted is not None:
            self._settle(counted[1], counted[0], 0.0)
        for pictures in waiting:  # nobody has begun to draw them
            pictures._settle(0, 0.0)
        self._leave()

    def _begin(self, pictures: PictureUse) -> None:
        with self._lock:
            self._waiting.discard(pictures)
            self._drawing += 1

    def _end(self) -> None:
        with self._lock:
            self._drawing -= 1
        self._leave()

    def _leave(self) -> None:
        with self._lock:
            place = self._place if self._is_closed and not self._drawing else None
        if place is not None:
            place.leave()

    def _settle(self, began: dict[str, float], undrawn: int, gpu_s: float) -> None:
        if not self.caller.id or not (undrawn or gpu_s):
            return
        with contextlib.suppress(OSError), self._gate._usage.changing(self.caller.id) as (record, _):
            record.give_back(undrawn, began)
            record.add(Counts(pictures=-undrawn, gpu_s=gpu_s))


class PictureUse:
    """The pictures of one drawing, counted already; those that are not drawn are given back."""

    def __init__(self, use: Use, number: int) -> None:
        self._use, self._counted = use, number
        self._lock = threading.Lock()
        self.began: dict[str, float] = {}

    def begin(self) -> None:
        """The drawing begins. `end` must be called later."""
        self._use._begin(self)

    def ended(self) -> KeyEnded | None:
        """As `Use.ended`."""
        return self._use.ended()

    def end(self, drawn: int, gpu_s: float) -> None:
        """`drawn`: how many pictures were drawn. `gpu_s`: how many seconds the engine worked on them."""
        self._settle(drawn, gpu_s)
        self._use._end()

    def _settle(self, drawn: int, gpu_s: float) -> None:
        # A stream may be closed before its drawing begins, and be settled then and at the end of the drawing.
        with self._lock:
            undrawn, self._counted = self._counted - drawn, drawn
        self._use._settle(self.began, undrawn, gpu_s)
