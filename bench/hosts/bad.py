"""Bad input against a running cluster: the scenes by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from bench.hosts import host_scenes, redis_scenes
from bench.hosts.scene import Scene

SCENES: Mapping[str, Callable[[Scene], None]] = {
    "front-without-redis": redis_scenes.front_end_without_redis,
    "host-without-redis": redis_scenes.host_without_redis,
    "redis-away": redis_scenes.redis_away_in_mid_job,
    "redis-full": redis_scenes.redis_full,
    "password": redis_scenes.password,
    "other-key": redis_scenes.other_key,
    "tls": redis_scenes.tls,
    "clock": host_scenes.wrong_clock,
    "one-name": host_scenes.two_hosts_with_one_name,
    "never-draws": host_scenes.engine_that_never_draws,
    "one-direction": redis_scenes.one_direction,
    "hang-up": host_scenes.hang_up,
    "other-catalogue": host_scenes.other_catalogue,
    "large-picture": host_scenes.picture_of_40_mb,
    "forged": host_scenes.forged,
}


def libfaketime(given: str | None) -> str | None:
    """The library, where Debian has it."""
    if given:
        return given
    found = sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))
    return str(found[0]) if found else None
