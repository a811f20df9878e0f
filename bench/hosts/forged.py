"""Messages in Redis that nobody of the cluster has sent, and messages that somebody has changed."""

from __future__ import annotations

import base64
import json
import uuid
from collections.abc import Callable, Mapping
from typing import Any

_TASK = "easel.draw"


def forged_messages(url: str, host: str) -> Mapping[str, Callable[[], str]]:
    """By name: a function that sends it and returns what it did."""
    queue = f"gpu.{host}"
    bodies = {
        "garbage in the queue": b"\xff\x00 not JSON",
        "JSON that is no message": json.dumps({"hello": 1}).encode(),
        "an unknown task": celery_message("os.system", ["true"]),
        "a job that does not exist": celery_message(_TASK, [str(uuid.uuid4()), 1]),
        "a job id that is a path": celery_message(_TASK, ["../../../etc/passwd", 1]),
        "a job id that is an object": celery_message(_TASK, [{"a": {"b": 1}}, 1]),
        "an attempt that is no number": celery_message(_TASK, [str(uuid.uuid4()), "x"]),
        "no arguments": celery_message(_TASK, []),
        "too many arguments": celery_message(_TASK, ["x"] * 1000),
        "a pickle": celery_message(_TASK, [], content_type="application/x-python-serialize"),
    }
    result = {name: _pusher(url, queue, body) for name, body in bodies.items()}
    result["a published message on every channel"] = lambda: _publish(url)
    result["garbage in every hash and set"] = lambda: _garbage(url)
    result["a heartbeat of a host that does not exist"] = lambda: _fake_host(url)
    return result


def celery_message(task: str, arguments: list[Any], content_type: str = "application/json") -> bytes:
    """As kombu writes it into a list of Redis."""
    task_id = str(uuid.uuid4())
    body = base64.b64encode(json.dumps([arguments, {}, {}]).encode()).decode()
    message = {
        "body": body,
        "content-encoding": "utf-8",
        "content-type": content_type,
        "headers": {"lang": "py", "task": task, "id": task_id, "root_id": task_id, "argsrepr": "()"},
        "properties": {
            "correlation_id": task_id,
            "delivery_mode": 2,
            "delivery_info": {"exchange": "", "routing_key": ""},
            "priority": 0,
            "body_encoding": "base64",
            "delivery_tag": str(uuid.uuid4()),
        },
    }
    return json.dumps(message).encode()


def _pusher(url: str, queue: str, body: bytes) -> Callable[[], str]:
    def push() -> str:
        with _client(url) as client:
            # kombu may put a prefix before the names of its lists.
            names = {
                queue,
                *(key.decode() for key in client.scan_iter(f"*{queue}*") if client.type(key) == b"list"),
            }
            for name in names:
                client.lpush(name, body)
            return f"pushed into {sorted(names)}"

    return push


def _publish(url: str) -> str:
    with _client(url) as client:
        channels = [name.decode() for name in client.pubsub_channels()]
        for name in channels:
            for body in (b"\xff\xfe", b"{}", b"[1,2", b'{"type": "done", "mac": "00"}', b"x" * 100_000):
                client.publish(name, body)
        return f"published on {channels}"


def _garbage(url: str) -> str:
    """New members with names and values that nobody expects, beside those that are there."""
    done = []
    values = [b"\xff\x00", b"[1,2", b"[]", b"{}", b"null", b"1e999", b'{"number": "x", "model": []}']
    with _client(url) as client:
        for key in [b"easel:waiting", b"easel:assigned", b"easel:turns", *client.scan_iter("easel:*")]:
            kind = client.type(key)
            if kind == b"set":
                client.sadd(key, *values, b"../x")
            elif kind == b"hash" or kind == b"none":
                client.hset(key, mapping={f"forged-{index}": value for index, value in enumerate(values)})
                client.hset(key, b"\xff\xfe", b"{}")
            done.append(f"{key.decode()} ({kind.decode()})")
    return f"all of {sorted(set(done))[:12]}"


def _fake_host(url: str) -> str:
    with _client(url) as client:
        real = next(iter(client.scan_iter("easel:host:*")), None)
        document = client.get(real) if real is not None and client.type(real) == b"string" else b"{}"
        client.set("easel:host:forged", document, ex=5)
        client.set("easel:host:garbage", b"\x00\xff", ex=5)
        return f"copied {real!r} to easel:host:forged"


def tampered_job(url: str) -> str:
    """Change a character in the middle of every string key of a job, as somebody with access to Redis could."""
    changed = []
    with _client(url) as client:
        for key in client.scan_iter("easel:job*"):
            if client.type(key) == b"string":
                content = client.get(key)
                if content:
                    client.set(key, flip(content), keepttl=True)
                    changed.append(key.decode())
    return f"changed {len(changed)} keys: {changed[:4]}"


def flip(content: bytes) -> bytes:
    """The content with another digit or letter near its middle, so that JSON stays JSON."""
    middle = len(content) // 2
    for index in [*range(middle, len(content)), *range(middle)]:
        old = content[index : index + 1]
        if old.isdigit() or old.isalpha():
            new = (
                b"7"
                if old.isdigit() and old != b"7"
                else b"3"
                if old.isdigit()
                else b"q"
                if old != b"q"
                else b"z"
            )
            return content[:index] + new + content[index + 1 :]
    return content + b" "


def _client(url: str) -> Any:
    import redis

    return redis.Redis.from_url(url)
