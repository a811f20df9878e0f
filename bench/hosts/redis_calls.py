"""What the scenes ask Redis themselves. The client's library comes with the extra `cluster`."""

from __future__ import annotations

from bench.hosts.cluster import Cluster


def redis_call(cluster: Cluster, *command: str, is_expected_to_fail: bool = False) -> object:
    import redis

    with redis.Redis.from_url(cluster.redis.url) as client:
        try:
            return client.execute_command(*command)
        except redis.ResponseError:
            if is_expected_to_fail:
                return None
            raise


def fill(cluster: Cluster) -> None:
    """With keys, until Redis refuses even small ones."""
    import redis

    with redis.Redis.from_url(cluster.redis.url) as client:
        for size in (100_000, 10_000, 1_000):
            for _ in range(1000):
                try:
                    client.rpush("filler", "x" * size)
                except redis.ResponseError:
                    break


def memory_mb(cluster: Cluster, name: str) -> float:
    import redis

    with redis.Redis.from_url(cluster.redis.url) as client:
        return float(client.info("memory")[name]) / 1e6


def used_mb(cluster: Cluster) -> float:
    return memory_mb(cluster, "used_memory")
