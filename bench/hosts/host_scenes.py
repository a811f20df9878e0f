"""Scenes of bad input around hosts: a wrong clock, a name twice, an engine that never draws, another catalogue, clients that
hang up, a large picture, forged messages."""

from __future__ import annotations

import contextlib
import io
import os
import time
from pathlib import Path

import requests
from PIL import Image

from bench.clients import session
from bench.hosts.cluster import is_host_ready
from bench.hosts.forged import forged_messages, tampered_job
from bench.hosts.programs import Host
from bench.hosts.redis_calls import memory_mb, used_mb
from bench.hosts.scene import LIMIT_S, Pending, Scene, draw, outcomes

_NEVER_MS = 10_000_000.0
_LARGE_MB = 40


def wrong_clock(scene: Scene) -> None:
    """Hosts whose clock is an hour fast and an hour slow."""
    library = scene.libfaketime
    if library is None:
        scene.check("libfaketime is there", False, "install Debian's libfaketime or use --libfaketime")
        return
    with scene.cluster() as cluster:
        front = cluster.new_front()
        front.start()
        scene.wait("the front end serves", front.answers, front, LIMIT_S)
        for offset in ("+1h", "-1h"):
            prefix = ["env", f"LD_PRELOAD={library}", f"FAKETIME={offset}", "DONT_FAKE_MONOTONIC=1"]
            host = cluster.new_host(
                render_ms=50,
                name=f"clock{offset[0].replace('+', 'plus').replace('-', 'minus')}",
                prefix=prefix,
            )
            host.start()
            is_ready = scene.wait(
                f"a host whose clock is off by {offset} is ready",
                lambda host=host: is_host_ready(front, host.name),  # type: ignore[misc]
                host,
                LIMIT_S,
            )
            if is_ready:
                for seed in range(60, 63):
                    scene.check_drawn(f"a request with {offset}", draw(front, seed))
            status = front.get("/api/comfyui/status")
            scene.say(
                f"the front end shows: {[each for each in status['engines'] if each['name'] == host.name]}"
            )
            scene.say_log(host, "clock", "expired", "drift")
            host.stop()


def two_hosts_with_one_name(scene: Scene) -> None:
    """The second one comes while the first one draws."""
    with scene.cluster() as cluster:
        cluster.start_all(1, render_ms=500)
        front, first = cluster.fronts[0], cluster.hosts[0]
        second = cluster.new_host(render_ms=500, name=first.name, folder="second")
        second.start()
        time.sleep(10)
        state = "runs" if second.alive() else f"ended with {second.exit_code}"
        scene.say(f"10 s after its start the second host of this name {state}")
        scene.say_log(second, "name", "error")
        scene.say(f"hosts in the status: {front.host_states()}")
        waiting = [Pending(lambda seed=seed: draw(front, seed)) for seed in range(70, 78)]  # type: ignore[misc]
        results = [each.result() for each in waiting]
        scene.check("8 requests give pictures", all(each.is_picture for each in results), outcomes(results))
        scene.check("they are eight different ones", len({each.digest for each in results}) == 8)
        first.stop()
        if not second.alive():
            time.sleep(6)
            second.start()
        scene.wait(
            "once the first is gone, one of this name is ready",
            lambda: is_host_ready(front, first.name),
            second,
            LIMIT_S,
        )
        scene.check_drawn("a request then", draw(front, 79))


def engine_that_never_draws(scene: Scene) -> None:
    """One host's engine takes jobs and never ends one; another host draws."""
    settings = {"EASEL_ENGINE_STALL_TIMEOUT_S": "10", "EASEL_REQUEST_TIMEOUT_S": "60"}
    with scene.cluster(settings=settings) as cluster:
        cluster.new_host(render_ms=_NEVER_MS).start()
        front = cluster.new_front()
        front.start()
        cluster.wait_ready()
        alone = draw(front, 80)
        scene.say(f"a request when there is only this host: {alone}")
        scene.check("it is refused within the request's time", not alone.is_picture and alone.took_s < 65)
        good = cluster.new_host(render_ms=50)
        good.start()
        scene.wait("a good host is ready", lambda: is_host_ready(front, good.name), good, LIMIT_S)
        for seed in range(81, 85):
            scene.check_drawn("a request with a good host beside it", draw(front, seed))


def hang_up(scene: Scene) -> None:
    """A client that hangs up, and POST /api/comfyui/render/cancel, while a host draws."""
    with scene.cluster() as cluster:
        cluster.start_all(1, render_ms=20_000)
        front, host = cluster.fronts[0], cluster.hosts[0]
        body = {"prompt": "x", "model": "small-a", "size": "256x256", "seed": 100}
        with contextlib.suppress(requests.Timeout), session() as http:
            pending = Pending(lambda: draw(front, 101))
            scene.wait("a job is being drawn", lambda: bool(host.engine.running()), host, 20)
            http.post(f"{front.url}/api/comfyui/render/cancel", json={"all": True}, timeout=10)
            scene.wait("its engine is idle after a cancel", lambda: not host.engine.running(), host, 1.5)
            scene.say(f"the cancelled request: {pending.result()}")
            http.post(f"{front.url}/v1/images/generations", json=body, timeout=3)
        scene.wait("its engine is idle after a hang-up", lambda: not host.engine.running(), host, 1.5)


def other_catalogue(scene: Scene) -> None:
    """A host whose catalogue lacks a model."""
    with scene.cluster() as cluster:
        front = cluster.new_front()
        host = cluster.new_host(render_ms=50)
        catalogue = Path(host.environment["EASEL_CATALOGUE"])
        text = catalogue.read_text("utf-8")
        start, end = text.index("  small-b:"), text.index("  small-c:")
        catalogue.write_text(text[:start] + text[end:], "utf-8")
        front.start()
        host.start()
        scene.wait("it is ready", lambda: is_host_ready(front, host.name), host, LIMIT_S)
        scene.check_drawn("a request for a model that it has", draw(front, 110))
        missing = draw(front, 111, model="small-b")
        scene.say(f"a request for a model that it lacks: {missing}")
        scene.check("it is refused", not missing.is_picture)
        whole = cluster.new_host(render_ms=50)
        whole.start()
        scene.wait("a host with it is ready", lambda: is_host_ready(front, whole.name), whole, LIMIT_S)
        for seed in range(112, 116):
            scene.check_drawn("a request for it", draw(front, seed, model="small-b"))


def picture_of_40_mb(scene: Scene) -> None:
    """A picture that does not compress, 4096 x 4096."""
    with scene.cluster() as cluster:
        cluster.start_all(1, render_ms=0)
        front, host = cluster.fronts[0], cluster.hosts[0]
        _upload_noise(host, 4096)
        before = used_mb(cluster)
        drawn = scene.check_drawn("the request", draw(front, 120, model="large", size=4096))
        if drawn.is_picture:
            size_mb = len(drawn.document["data"][0]["b64_json"]) * 3 / 4 / 1e6
            scene.check(f"it has {_LARGE_MB} MB", size_mb >= _LARGE_MB, f"{size_mb:.1f} MB")
        time.sleep(1)
        peak = memory_mb(cluster, "used_memory_peak")
        scene.say(f"Redis: {before:.1f} MB before, {used_mb(cluster):.1f} MB after, {peak:.1f} MB at most")
        scene.check("Redis keeps nothing of it", used_mb(cluster) < before + 5)


def forged(scene: Scene) -> None:
    """Messages that nobody of the cluster has sent."""
    with scene.cluster() as cluster:
        cluster.start_all(1, render_ms=1500)
        front, host = cluster.fronts[0], cluster.hosts[0]
        pid, children = host.pid, host.children()
        scene.check_drawn("a request before", draw(front, 130))
        for name, send in forged_messages(cluster.redis.url, host.name).items():
            try:
                scene.say(f"{name}: {send()}")
            except Exception as error:
                scene.say(f"{name}: Redis refused it: {error!r}")
            drawn = draw(front, 131)
            scene.check(f"after {name} a request gives a picture", drawn.is_picture, drawn)
            scene.check("the host runs", host.alive() and host.pid == pid)
        scene.say(f"the host's children before and after: {children}, {host.children()}")
        first, second = Pending(lambda: draw(front, 140)), Pending(lambda: draw(front, 141))
        scene.wait("a job is being drawn", lambda: bool(host.engine.running()), host, 20)
        scene.say(tampered_job(cluster.redis.url))
        results = [first.result(), second.result()]
        scene.say(f"two requests whose job keys were changed: {outcomes(results)}")
        again = [draw(front, 140), draw(front, 141)]
        scene.check(
            "none has other pixels than its seed gives",
            all(
                not one.is_picture or one.digest == two.digest
                for one, two in zip(results, again, strict=True)
            ),
        )
        scene.check_drawn("a request after that", draw(front, 142))
        scene.say_log(host, "forged", "mac", "sign", "refus", "invalid", "ignored", count=6)
        scene.say_log(front, "forged", "mac", "sign", "invalid", "ignored", count=6)


def _upload_noise(host: Host, size: int) -> None:
    """The picture from which the model `large` takes a part, into the folder for temporary files of the host's engine."""
    side = size + 64
    noise = Image.frombytes("RGB", (side, side), os.urandom(side * side * 3))
    buffer = io.BytesIO()
    noise.save(buffer, "JPEG", quality=90)
    fields = {"subfolder": "easel-bench", "type": "temp", "overwrite": "true"}
    with session() as http:
        http.post(
            f"{host.engine.url}/upload/image",
            files={"image": (f"photo-{size}.jpg", buffer.getvalue())},
            data=fields,
            timeout=60,
        ).raise_for_status()
