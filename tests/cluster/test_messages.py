"""What hosts and front ends send each other: authenticated, whole, and understood by the next version."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from arbiter import Sender
from cluster.host_facts import HostFacts
from cluster.job_documents import FORM, JobDocument, ResultDocument
from cluster.options import ClusterOptions, read_options
from cluster.sealing import Seal
from compiler import Catalogue, Compiled, ImageRequest, LoraChoice, Size, compile_workflow
from engines import Cost, Costs
from errors import ClusterMessageInvalid, EngineUnreachable, SettingsInvalid

SEAL = Seal(b"k" * 32)


def test_a_document_is_opened_only_with_its_key_for_its_purpose_and_unchanged() -> None:
    data = SEAL.close("job:1", {"a": [1, "ä"]})
    assert SEAL.open("job:1", data) == {"a": [1, "ä"]}
    forged = [
        (Seal(b"x" * 32), "job:1", data),
        (SEAL, "job:2", data),
        (SEAL, "job:1", data[:-1]),
        (SEAL, "job:1", data + b" "),
        (SEAL, "job:1", b""),
        (SEAL, "job:1", data[32:]),
    ]
    for seal, purpose, changed in forged:
        with pytest.raises(ClusterMessageInvalid):
            seal.open(purpose, changed)


def document(catalogue: Catalogue) -> JobDocument:
    request = ImageRequest(
        prompt="a cat",
        seed=7,
        id="r",
        model="sdxl-base-1.0",
        size=Size(515, 512),
        stages={"upscale": 2},
        loras=(LoraChoice(next(iter(catalogue.loras_for(catalogue.models["sdxl-base-1.0"])))),),
    )
    compiled = compile_workflow(request, catalogue)
    (graph,) = compiled.graphs
    return JobDocument(
        id="j",
        request_id="r",
        front="f",
        compiled=Compiled(compiled.plan, (graph,)),
        uploads=(("r-image.png", 2, "ab"),),
        timeout_s=30.0,
        counts_waiting=False,
        previews=True,
        sender=Sender("id", "client", "key", "trace", "owner"),
        prompt="a cat",
    )


def test_a_job_is_the_same_on_the_other_side(shipped_catalogue: Catalogue) -> None:
    sent = document(shipped_catalogue)
    received = JobDocument.read(json.loads(json.dumps(sent.as_json())))
    assert received.as_json() == sent.as_json()
    assert received.compiled.graphs == sent.compiled.graphs
    plan, expected = received.compiled.plan, sent.compiled.plan
    for name in ("model", "workflow", "template", "task", "size", "canvas", "prefix", "jobs", "stages"):
        assert getattr(plan, name) == getattr(expected, name), name
    loras = [lora["id"] for lora in expected.values["loras"].value]
    assert [lora["id"] for lora in plan.values["loras"].value] == loras
    assert loras


def test_what_a_newer_version_adds_is_ignored_and_another_form_is_refused(
    shipped_catalogue: Catalogue,
) -> None:
    found = {**document(shipped_catalogue).as_json(), "new": {"x": 1}}
    assert JobDocument.read(found).id == "j"
    for form in (FORM + 1, None, "1"):
        with pytest.raises(ClusterMessageInvalid, match="differ by one version"):
            JobDocument.read({**found, "v": form})


@pytest.mark.parametrize(
    "change",
    [{"nodes": None}, {"size": [1]}, {"seed": "x"}, {"sender": None}, {"timeout_s": None}, {"size": 3}],
)
def test_a_malformed_job_is_refused(shipped_catalogue: Catalogue, change: dict[str, Any]) -> None:
    with pytest.raises(ClusterMessageInvalid):
        JobDocument.read({**document(shipped_catalogue).as_json(), **change})


def test_results_and_their_errors_are_the_same_on_the_other_side() -> None:
    sent = ResultDocument(
        2, "h", engine="e", pictures=(("9", "image/png", 3, "ab"),), nodes={"1": {}}, waited_s=1, run_s=2
    )
    assert ResultDocument.read(json.loads(json.dumps(sent.as_json()))) == sent
    failed = replace(sent, error=EngineUnreachable("away", slow=True), is_hosts_fault=True, has_begun=True)
    received = ResultDocument.read(json.loads(json.dumps(failed.as_json())))
    assert isinstance(received.error, EngineUnreachable)
    assert (received.error.message, received.error.details) == ("away", {"slow": True})
    assert (received.is_hosts_fault, received.has_begun) == (True, True)
    for broken in ({"pictures": [[1]]}, {"attempt": None}, {"error": {}}):
        with pytest.raises(ClusterMessageInvalid):
            ResultDocument.read({**sent.as_json(), **broken})


def test_heartbeats_are_the_same_on_the_other_side() -> None:
    facts = HostFacts(
        "h", "i", version="1", comfyui="0.33.0", slots=2, loaded=("a",), memory_bytes=5, models=frozenset("ab"),
        stages={"upscale": (2, 4)}, costs=Costs(models={"a": Cost(1.0, None)}), recent={"a": 3},
    )  # fmt: skip
    assert HostFacts.read(json.loads(json.dumps(facts.as_json())), facts.models) == facts
    older = {name: value for name, value in facts.as_json().items() if name != "holds"}
    assert not HostFacts.read(older, facts.models).holds
    with pytest.raises(ClusterMessageInvalid):
        HostFacts.read({**facts.as_json(), "slots": "x"}, facts.models)


def options(**changes: str) -> ClusterOptions | None:
    given = {
        "url": "redis://h:6379/0",
        "key": "k" * 32,
        "name": "n",
        "ca_file": "",
        "user": "",
        "password": "",
    }
    return read_options(**{**given, **changes})


def test_credentials_reach_the_broker_and_are_not_shown() -> None:
    found = options(user="u", password="p@/:ss", url="rediss://h:6379/2")
    assert found is not None
    assert found.broker_url == "rediss://u:p%40%2F%3Ass@h:6379/2"
    assert "p@" not in repr(found)
    assert "kkk" not in repr(found)
    assert options(url="") is None


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"url": "http://h"}, "cluster.redis"),
        ({"url": "redis://u:p@h/0"}, "EASEL_CLUSTER_PASSWORD"),
        ({"url": "redis://h/0?x=1"}, "cluster.redis"),
        ({"url": "redis://h:abc/0"}, "cluster.redis"),
        ({"url": "redis://h:99999/0"}, "cluster.redis"),
        ({"url": "redis://[::1/0"}, "cluster.redis"),
        ({"key": "short"}, "EASEL_CLUSTER_KEY"),
        ({"ca_file": "/ca.pem"}, "cluster.ca_file"),
        ({"name": "a b"}, "cluster.name"),
        ({"name": "-"}, "cluster.name"),
    ],
)
def test_wrong_settings_are_named(change: dict[str, str], named: str) -> None:
    with pytest.raises(SettingsInvalid, match=named) as found:
        options(**change)
    assert "u:p" not in found.value.message
