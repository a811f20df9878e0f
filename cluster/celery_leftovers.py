"""What Celery keeps in Redis for a host, and its removal once the host is forgotten: queue, bindings, and messages that it
took and did not finish. kombu names these keys."""

from __future__ import annotations

from typing import Any

import redis

from cluster import names

_BINDINGS = ("_kombu.binding.", "_kombu.binding_permanent.")
_PIDBOX = "celery.pidbox"
_SEPARATOR = "\x06\x16"
_PRIORITIES = (3, 6, 9)
"""For each of them but the first, 0, a queue has a list of its own"""
_FORGET = """
if redis.call('exists', KEYS[1], KEYS[2]) > 0 then return 0 end
redis.call('srem', KEYS[3], ARGV[1])
redis.call('srem', KEYS[4], ARGV[1])
redis.call('srem', KEYS[5], ARGV[3])
redis.call('srem', KEYS[6], ARGV[3])
local taken = redis.call('hgetall', KEYS[7])
for i = 1, #taken, 2 do
  local is_message, message = pcall(cjson.decode, taken[i + 1])
  if is_message and type(message) == 'table' and message[3] == ARGV[2] then
    redis.call('hdel', KEYS[7], taken[i])
    redis.call('zrem', KEYS[8], taken[i])
  end
end
for i = 9, #KEYS do redis.call('del', KEYS[i]) end
return 1"""
"""Unless the host is there: its heartbeat and what says that it was there lately come before all that Celery keeps for it.
Keys: these two; the sets of hosts and of queues; bindings of the pidbox; messages that were taken, and their index; what is
only for this host. Arguments: the host, its queue, its member of the bindings"""


class CeleryLeftovers:
    """Of hosts that have ended."""

    def __init__(self, client: redis.Redis) -> None:
        self._forget = client.register_script(_FORGET)

    def forget(self, host: str) -> bool:
        """Remove a host with all that Celery keeps for it, unless it was there in the last hour. Returns whether it was
        removed. Raises redis' errors."""
        queue = names.queue(host)
        keys = [names.host(host), names.seen(host), names.HOSTS, names.QUEUES]
        keys += [f"{prefix}{_PIDBOX}" for prefix in _BINDINGS]
        keys += ["unacked", "unacked_index"]
        keys += [queue, *(f"{queue}{_SEPARATOR}{priority}" for priority in _PRIORITIES)]
        keys += [f"{prefix}{queue}" for prefix in _BINDINGS]
        member = f"{_SEPARATOR}{_SEPARATOR}easel@{host}.{_PIDBOX}"
        was_removed: Any = self._forget(keys=keys, args=[host, queue, member])
        return bool(was_removed)
