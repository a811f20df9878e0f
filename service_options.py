"""Reads the settings into what the services take: options, policies, engines, LLM servers. Errors have file and line."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping

from access import Gate
from api import HttpOptions
from arbiter import Policy
from cluster.options import ClusterOptions, read_options
from conversation import ModelDirectory, read_aliases, read_upstreams
from engines import EngineEntry, credential_variables, read_engines
from errors import SettingsInvalid
from llm import Stacks, read_stacks
from loopback import is_loopback
from settings import Settings

_MAX_EVENT_STREAMS = 64


def http_options(settings: Settings) -> HttpOptions:
    """The settings of the API."""
    return HttpOptions(
        on_loopback=is_loopback(settings["host"]),
        allowed_hosts=(*settings["allowed_hosts"], settings["host"].strip("[]")),
        allowed_origins=settings["allowed_origins"],
        trusted_proxies=settings["trusted_proxies"],
        public_url=settings["public_url"],
        url_style=settings["url_style"],
        default_response_format=settings["default_response_format"],
        lists_all_models=settings["images.list"] == "all",
        max_request_bytes=int(settings["max_request_mb"] * 1_000_000),
        request_timeout_s=settings["request_timeout_s"],
        images_enabled=settings["images.enabled"],
        answers_later=settings["jobs.threads"] > 0,
        max_event_streams=_max_event_streams(settings),
    )


def _max_event_streams(settings: Settings) -> int:
    """At most half of the threads that neither pictures nor LLM requests can take, so that some stay free."""
    has_llms = settings["llm.stacks"] or settings["llm.upstreams"]
    taken = settings["max_waiting"] + (settings["llm.max_requests"] if has_llms else 0)
    return int(max(1, min(_MAX_EVENT_STREAMS, (settings["threads"] - taken) // 2)))


def gpu_policy(settings: Settings) -> Policy:
    """The settings of the arbiter."""
    is_when_done = settings["gpu.restore"] == "when_done"
    return Policy(
        llm_during_generation=settings["gpu.llm_during_generation"],
        restore="linger" if is_when_done else settings["gpu.restore"],
        linger_s=0 if is_when_done else settings["gpu.linger_s"],
        idle_restore_s=settings["gpu.idle_restore_minutes"] * 60,
        min_stay_s=settings["gpu.min_stay_s"],
        sharing=settings["gpu.sharing"],
        reserve_bytes=int(settings["gpu.reserve_gb"] * 1e9),
        min_free_bytes=int(settings["gpu.min_free_gb"] * 1e9),
        depth=settings["engine.depth"],
        on_drain_timeout=settings["gpu.on_drain_timeout"],
        drain_timeout_s=settings["gpu.drain_timeout_s"],
        release_timeout_s=settings["gpu.release_timeout_s"],
        verify_timeout_s=settings["gpu.verify_timeout_s"],
        max_retry_after_s=settings["request_timeout_s"],
    )


def event_log_bytes(settings: Settings) -> int:
    """The size at which the arbiter's event log begins a new file."""
    return int(settings["gpu.event_log_mb"] * 1e6)


def load_engines(settings: Settings) -> tuple[EngineEntry, ...]:
    """The setting `engines`; empty without it. Raises SettingsInvalid."""
    with _located_errors(settings):
        return read_engines(settings["engines"], os.environ)


def load_cluster(settings: Settings) -> ClusterOptions | None:
    """How this host reaches the others; None without `cluster.redis`. Raises SettingsInvalid."""
    with _located_errors(settings):
        return read_options(
            url=settings["cluster.redis"],
            key=settings["cluster.key"],
            name=settings["cluster.name"],
            ca_file=str(settings.path("cluster.ca_file")) if settings["cluster.ca_file"] else "",
            user=settings["cluster.user"],
            password=settings["cluster.password"],
        )


def load_stacks(settings: Settings, gpus: list[str]) -> Stacks:
    """The LLM servers that share a GPU. `gpus`: those of `engines`. Raises SettingsInvalid."""
    with _located_errors(settings):
        return read_stacks(list(settings["llm.stacks"]), os.environ, gpus)


def load_upstreams(settings: Settings) -> ModelDirectory:
    """The servers that LLM requests are forwarded to, and the aliases. Raises SettingsInvalid."""
    with _located_errors(settings):
        upstreams = read_upstreams(list(settings["llm.upstreams"]), settings["llm.stacks"], os.environ)
        return ModelDirectory(upstreams, read_aliases(settings["llm.aliases"], upstreams))


@contextlib.contextmanager
def _located_errors(settings: Settings) -> Iterator[None]:
    """Give each error of a SettingsInvalid its file and line."""
    try:
        yield
    except SettingsInvalid as error:
        lines = [settings.location(line.partition(":")[0]) + line for line in error.details["errors"]]
        raise SettingsInvalid("\n".join(lines), errors=lines) from error


def hidden_variables(settings: Settings) -> Iterator[str]:
    """The names of the variables that hold keys of LLM servers and credentials of ComfyUIs: no command that starts a ComfyUI
    gets them."""
    yield from credential_variables(settings["engines"])
    for entry in (*settings["llm.stacks"], *settings["llm.upstreams"]):
        upstream = entry.get("upstream")
        for part in (entry, upstream):
            if isinstance(part, Mapping) and "key_env" in part:
                yield part["key_env"]


def check_combination(settings: Settings, stacks: Stacks) -> None:
    """Raises SettingsInvalid if settings contradict each other that are valid each for itself."""
    if stacks and settings["images.preload"] and settings["gpu.sharing"] == "exclusive":
        raise SettingsInvalid(
            "images.preload cannot be used with gpu.sharing: exclusive, because every start would unload the LLMs; "
            "load a model with `easel gpu switch generation --model ID` instead."
        )


def refuse_public_without_keys(hosts: list[str], settings: Settings, gate: Gate) -> None:
    """Raises SettingsInvalid if one of `hosts` is public, there are no keys and `allow_open` is off."""
    public = [host for host in hosts if not is_loopback(host)]
    if public and not settings["api_keys"] and not gate.keys.is_used and not settings["allow_open"]:
        raise SettingsInvalid(
            f"Listening on {', '.join(public)} without API keys lets every machine on the network use this server. Make "
            "keys for its clients with `easel keys add NAME`, or set EASEL_API_KEYS to one or more keys, or "
            "EASEL_ALLOW_OPEN=1 to allow it."
        )
