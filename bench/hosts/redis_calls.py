"""What the scenes ask Redis themselves. The client's library comes with the extra `cluster`."""

from __future__ import annotations

from bench.hosts.cluster import Cluster


def redis_call(cluster: Cluster, *command: str) -> object:
    import redis

    with redis.Redis.from_url(cluster.redis.url) as client:
        return client.execute_command(*command)


def memory_mb(cluster: Cluster, name: str) -> float:
    import redis

    with redis.Redis.from_url(cluster.redis.url) as client:
        return float(client.info("memory")[name]) / 1e6


def used_mb(cluster: Cluster) -> float:
    return memory_mb(cluster, "used_memory")
