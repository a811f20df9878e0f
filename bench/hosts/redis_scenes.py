"""Scenes of bad input around Redis: away, full, locked, behind TLS, or at the other end of a network that drops."""

from __future__ import annotations

import contextlib
import subprocess
import tempfile
import time
from collections import Counter
from pathlib import Path

from bench.hosts.cluster import Cluster, is_host_ready
from bench.hosts.programs import FrontEnd, Program
from bench.hosts.proxy import OneWayProxy
from bench.hosts.redis_calls import redis_call, used_mb
from bench.hosts.scene import LIMIT_S, Drawn, Pending, Scene, draw, start_and_check, start_and_say

_SLOW_MS = 3000.0


def front_end_without_redis(scene: Scene) -> None:
    """Redis is away when the front end starts, and comes later."""
    with scene.cluster() as cluster:
        cluster.redis.kill()
        front = cluster.new_front()
        front.start()
        if not scene.wait("the front end serves without Redis", front.answers, front, LIMIT_S):
            return
        drawn = draw(front, 1)
        scene.say(f"a request without Redis: {drawn}")
        scene.check("it is refused with 503 and soon", "503" in drawn.outcome and drawn.took_s < 15)
        scene.check("/ready says no", not front.is_ready())
        scene.say(f"status: cluster {front.get('/api/comfyui/status').get('cluster')}")
        scene.say_log(front, "redis", "cluster")
        _start_redis(cluster)
        host = cluster.new_host(render_ms=50)
        host.start()
        scene.wait("host and front end find Redis", lambda: is_host_ready(front, host.name), host, LIMIT_S)
        scene.check_drawn("a request then", draw(front, 2))


def host_without_redis(scene: Scene) -> None:
    """Redis is away when a host starts, and comes later."""
    with scene.cluster() as cluster:
        front = cluster.new_front()
        front.start()
        scene.wait("the front end serves", front.answers, front, LIMIT_S)
        cluster.redis.kill()
        host = cluster.new_host(render_ms=50)
        host.start()
        time.sleep(10)
        state = "runs" if host.alive() else f"ended with {host.exit_code}"
        scene.say(f"10 s after its start without Redis the host {state}")
        scene.say_log(host, "redis", "connect")
        _start_redis(cluster)
        if not host.alive():
            host.start()  # as systemd would
        scene.wait("it is ready once Redis is there", lambda: is_host_ready(front, host.name), host, LIMIT_S)
        scene.check_drawn("a request then", draw(front, 3))


def redis_away_in_mid_job(scene: Scene) -> None:
    """Redis is killed while a picture is drawn, and is back after two seconds."""
    with scene.cluster() as cluster:
        cluster.start_all(1, render_ms=_SLOW_MS)
        front, host = cluster.fronts[0], cluster.hosts[0]
        pending = Pending(lambda: draw(front, 4))
        scene.wait("the job is being drawn", lambda: bool(host.engine.running()), host, LIMIT_S)
        cluster.redis.kill()
        time.sleep(2)
        _start_redis(cluster)
        drawn = scene.check_drawn("the request", pending.result())
        again = scene.check_drawn("the same seed again", draw(front, 4))
        scene.check("both have the same pixels", drawn.digest == again.digest)


def redis_full(scene: Scene) -> None:
    """Redis may use 3 MB and evicts nothing; then it may use more."""
    with scene.cluster() as cluster:
        cluster.start_all(1, render_ms=50)
        front, host = cluster.fronts[0], cluster.hosts[0]
        redis_call(cluster, "CONFIG", "SET", "maxmemory-policy", "noeviction")
        redis_call(cluster, "CONFIG", "SET", "maxmemory", "3mb")
        scene.say(f"used at the start: {used_mb(cluster):.1f} MB")
        waiting = [Pending(lambda seed=seed: draw(front, seed, size=1024)) for seed in range(10, 26)]  # type: ignore[misc]
        results = [each.result() for each in waiting]
        scene.say(f"16 requests at once: {dict(Counter(each.outcome for each in results))}")
        _say_first_message(scene, results)
        scene.check(
            "each gets a picture or a 5xx or 429",
            all(each.outcome.startswith(("200", "5", "429")) for each in results),
        )
        redis_call(cluster, "CONFIG", "SET", "maxmemory", "1mb")  # less than it has already
        drawn = draw(front, 30)
        scene.say(f"a request when nothing fits any more: {drawn}")
        scene.say(f"status: cluster {front.get('/api/comfyui/status').get('cluster')}")
        scene.say_log(front, "oom", "memory", "redis")
        redis_call(cluster, "CONFIG", "SET", "maxmemory", "0")
        scene.wait("host ready again", lambda: is_host_ready(front, host.name), host, LIMIT_S)
        scene.check_drawn("a request then", draw(front, 31))
        scene.check("the host was never restarted", host.alive())


def password(scene: Scene) -> None:
    """Redis wants a password; front end and host have a wrong one, none, and the right one."""
    right = "the right password of a bench"
    with scene.cluster(redis_options={"requirepass": right}) as cluster:
        for name, given in (("wrong", {"EASEL_CLUSTER_PASSWORD": "wrong"}), ("no", {})):
            front, host = cluster.new_front(given), cluster.new_host(render_ms=50, settings=given)
            start_and_say(scene, front, host, f"{name} password")
            for program in (front, host):
                scene.check(f"no log of {program.name} has the password", right not in program.log_tail(9999))
                program.stop()
        given = {"EASEL_CLUSTER_PASSWORD": right}
        front, host = cluster.new_front(given), cluster.new_host(render_ms=50, settings=given)
        start_and_check(scene, front, host, 40)
        for program in (front, host):
            scene.check(f"no log of {program.name} has the password", right not in program.log_tail(9999))


def other_key(scene: Scene) -> None:
    """A host with another EASEL_CLUSTER_KEY than the front end."""
    with scene.cluster() as cluster:
        front = cluster.new_front()
        other = {"EASEL_CLUSTER_KEY": "another key of another cluster, long enough"}
        host = cluster.new_host(render_ms=50, settings=other)
        start_and_say(scene, front, host, "another key")
        scene.check("the front end does not call it ready", not is_host_ready(front, host.name))
        good = cluster.new_host(render_ms=50)
        good.start()
        scene.wait("a host with the key is ready", lambda: is_host_ready(front, good.name), good, LIMIT_S)
        for seed in range(41, 45):
            scene.check_drawn("a request beside it", draw(front, seed))


def tls(scene: Scene) -> None:
    """Redis speaks TLS only, with a certificate that no authority has signed."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(_temporary_folder()))
        good = _certificate(folder, "good", "IP:127.0.0.1,DNS:localhost")
        options = {
            "tls-cert-file": str(good / "cert.pem"),
            "tls-key-file": str(good / "key.pem"),
            "tls-ca-cert-file": str(good / "cert.pem"),
            "tls-auth-clients": "no",
        }
        cluster = stack.enter_context(scene.cluster())
        tls_port = cluster.port()
        server = Program(
            "redis with TLS",
            [cluster.redis.command[0], "--port", "0", "--tls-port", str(tls_port), "--bind", "127.0.0.1"]
            + [part for name, value in options.items() for part in (f"--{name}", value)],
            {},
            cluster.folder / "redis-tls.log",
        )
        stack.enter_context(server)
        time.sleep(1)
        if not server.alive():
            scene.check("this redis-server can do TLS", False, server.log_tail(2))
            return
        url = f"rediss://127.0.0.1:{tls_port}/0"
        trusted = {"EASEL_CLUSTER_REDIS": url, "EASEL_CLUSTER_CA_FILE": str(good / "cert.pem")}
        unknown = {"EASEL_CLUSTER_REDIS": url}
        plain = {"EASEL_CLUSTER_REDIS": f"redis://127.0.0.1:{tls_port}/0"}
        for name, given in (
            ("a certificate that nobody vouches for", unknown),
            ("redis:// to a TLS port", plain),
        ):
            front, host = cluster.new_front(given), cluster.new_host(render_ms=50, settings=given)
            start_and_say(scene, front, host, name)
            scene.check("it does not connect", not is_host_ready(front, host.name))
            front.stop()
            host.stop()
        front, host = cluster.new_front(trusted), cluster.new_host(render_ms=50, settings=trusted)
        start_and_check(scene, front, host, 50)
        other = _certificate(folder, "other", "DNS:elsewhere.example")
        wrong = {**trusted, "EASEL_CLUSTER_CA_FILE": str(other / "cert.pem")}
        late = cluster.new_host(render_ms=50, settings=wrong)
        late.start()
        time.sleep(8)
        scene.check("a host with another ca_file does not connect", not is_host_ready(front, late.name))
        scene.say_log(late, "certificate", "ssl", "redis")


def one_direction(scene: Scene) -> None:
    """The network drops what a host sends, then what it should receive."""
    with scene.cluster() as cluster, OneWayProxy(cluster.port(), cluster.redis.port) as proxy:
        front = cluster.new_front()
        behind = {"EASEL_CLUSTER_REDIS": f"redis://127.0.0.1:{proxy.port}/0"}
        host = cluster.new_host(render_ms=2000, settings=behind)
        for program in (front, host, cluster.new_host(render_ms=2000)):
            program.start()
        cluster.wait_ready()
        for seed, drop, what in (
            (91, proxy.drop_to_target, "sends"),
            (96, proxy.drop_to_client, "should receive"),
        ):
            waiting = [Pending(lambda each=each: draw(front, each)) for each in range(seed, seed + 4)]  # type: ignore[misc]
            scene.wait("the host draws", lambda: bool(host.engine.running()), host, LIMIT_S)
            drop()
            scene.wait(
                f"when the network drops what the host {what}, that is noticed",
                lambda: not is_host_ready(front, host.name),
                None,
                5.5,
            )
            for each in waiting:
                scene.check_drawn("a request of that time", each.result())
            proxy.heal()
            scene.wait("it is ready again", lambda: is_host_ready(front, host.name), host, LIMIT_S)
        time.sleep(3)
        counts = _stored(front)
        scene.check("each request has one stored picture", set(counts.values()) == {1}, len(counts))


def _start_redis(cluster: Cluster) -> None:
    cluster.redis.start()
    cluster.redis.wait_ready()


def _say_first_message(scene: Scene, results: list[Drawn]) -> None:
    if messages := [each.message for each in results if each.message]:
        scene.say(f"the first message: {messages[0]}")


def _stored(front: FrontEnd) -> dict[str, int]:
    return dict(Counter(image["request_id"] for image in front.get("/api/images?limit=200", 30)["images"]))


def _temporary_folder() -> contextlib.AbstractContextManager[str]:
    return tempfile.TemporaryDirectory(prefix="easel-bench-tls-")


def _certificate(folder: Path, name: str, names: str) -> Path:
    """A folder with cert.pem and key.pem, signed by nobody else."""
    result = folder / name
    result.mkdir()
    files = ["-keyout", str(result / "key.pem"), "-out", str(result / "cert.pem")]
    subject = ["-subj", f"/CN={name}", "-addext", f"subjectAltName={names}"]
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *subject, *files],
        check=True,
        capture_output=True,
    )
    return result
