"""What a process that waits for jobs knows of hosts, and says of those whose heartbeat it cannot use."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster import names
from cluster.sealing import Seal
from compiler import Catalogue
from errors import ClusterMessageInvalid, NoHosts
from status.host_readiness import host_entries
from tests.cluster.hosts_in_process import MODEL, Joined, joined_in_process
from tests.waiting import wait_until


@pytest.fixture
def joined(tmp_path: Path, shipped_catalogue: Catalogue) -> Iterator[Joined]:
    with joined_in_process(shipped_catalogue, tmp_path) as found:
        yield found


def add_unreadable_hosts(joined: Joined) -> None:
    facts = joined.add_host("foreign").as_json()
    joined.client.set(names.host("foreign"), Seal(b"x" * 32).close(names.host("foreign"), facts))
    joined.add_host("newer")
    newer = joined.seal.close(names.host("newer"), {"form": 9, "called": "newer"})
    joined.client.set(names.host("newer"), newer)


def test_a_host_with_another_key_or_version_is_told_from_one_that_is_gone(
    joined: Joined, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "easel.cluster")
    add_unreadable_hosts(joined)
    joined.client.sadd(names.HOSTS, "ended")
    joined.client.set(names.seen("ended"), "1")
    hosts = joined.front.hosts
    with pytest.raises(
        NoHosts, match="The host foreign is there, and its heartbeat was not made with the EASEL"
    ):
        hosts.host_for(MODEL)
    joined.add_host("one")
    wait_until(lambda: "one" in hosts.known_hosts())
    assert hosts.host_for(MODEL).name == "one"
    reports = {report["name"]: (report["state"], report["problem"]) for report in hosts.reports()}
    assert reports["foreign"] == (
        "unreadable",
        "its heartbeat was not made with the EASEL_CLUSTER_KEY of this machine",
    )
    state, problem = reports["newer"]
    assert state == "unreadable"
    assert problem.startswith("its heartbeat has a form that this version of Easel cannot read")
    assert (reports["one"][0], reports["ended"][0]) == ("ready", "gone")
    problems = {entry["name"]: (entry["problem"] or {}).get("code") for entry in host_entries(hosts)}
    assert problems == {
        "foreign": ClusterMessageInvalid.code,
        "newer": ClusterMessageInvalid.code,
        "ended": NoHosts.code,
        "one": None,
    }
    wait_until(lambda: "The host newer is there" in caplog.text)
    for _ in range(3):
        joined.front._beat()
    assert caplog.text.count("The host foreign is there") == caplog.text.count("The host newer is there") == 1
