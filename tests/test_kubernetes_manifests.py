"""What can be said of the manifests for Kubernetes and KEDA by reading them. deploy/kubernetes/README.md says what else was
checked."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from api.permissions import OPEN, PERMISSIONS
from compiler import Catalogue
from easel.command_line import SECTIONS
from metrics import families
from server import GRACEFUL_TIMEOUT_S
from settings import SETTINGS, load_settings
from tests.conftest import ROOT

FOLDER = ROOT / "deploy/kubernetes"
README = (FOLDER / "README.md").read_text()
GROUPS = ("large", "small")
Manifest = dict[str, Any]
COMMANDS = {command for entries in SECTIONS.values() for command in entries}
IS_SECRET = {setting.variable: setting.secret for setting in SETTINGS}
METRICS = {each.name for each in vars(families).values() if isinstance(each, families.Family)}


def read(file: Path) -> list[Manifest]:
    return [document for document in yaml.safe_load_all(file.read_text()) if document]


FILES = {file.relative_to(FOLDER).as_posix(): read(file) for file in sorted(FOLDER.rglob("*.yaml"))}
KUSTOMIZATIONS = {name: docs[0] for name, docs in FILES.items() if name.endswith("kustomization.yaml")}
PATCHES = {f"hosts/{group}/host.yaml": group for group in GROUPS}
MANIFESTS = [
    document
    for name, docs in FILES.items()
    if name not in KUSTOMIZATIONS and name not in PATCHES
    for document in docs
]


def of_kind(kind: str) -> dict[str, Manifest]:
    return {document["metadata"]["name"]: document for document in MANIFESTS if document["kind"] == kind}


WORKLOADS = of_kind("Deployment") | of_kind("StatefulSet")
SCALED = {name.removeprefix("easel-host-"): entry["spec"] for name, entry in of_kind("ScaledObject").items()}


def pod(workload: str) -> Manifest:
    spec: Manifest = WORKLOADS[workload]["spec"]["template"]["spec"]
    return spec


def containers(workload: str) -> list[Manifest]:
    return [*pod(workload).get("initContainers", ()), *pod(workload)["containers"]]


ALL_CONTAINERS = [(workload, each) for workload in WORKLOADS for each in containers(workload)]


def of_easel() -> Iterator[tuple[str, Manifest]]:
    yield from ((workload, each) for workload, each in ALL_CONTAINERS if each["image"] == "easel")


def engines_of(group: str) -> str:
    """What a group of hosts adds to the environment: its engine and the models of it."""
    [patch] = FILES[f"hosts/{group}/host.yaml"]
    [container] = patch["spec"]["template"]["spec"]["containers"]
    assert container["name"] == pod("easel-host")["containers"][0]["name"]
    [variable] = container["env"]
    assert variable["name"] == "EASEL_ENGINES"
    return str(variable["value"])


def test_every_file_is_used_by_a_kustomization_and_every_named_one_exists() -> None:
    named = {"kustomization.yaml", "keda/kustomization.yaml"}  # those that the README applies
    for name, kustomization in KUSTOMIZATIONS.items():
        folder = (FOLDER / name).parent
        for entry in [
            *kustomization["resources"],
            *(patch["path"] for patch in kustomization.get("patches", ())),
        ]:
            path = (folder / entry).resolve()
            named.add((path / "kustomization.yaml" if path.is_dir() else path).relative_to(FOLDER).as_posix())
    assert named == set(FILES)
    assert "kubectl apply -k deploy/kubernetes\n" in README
    assert "kubectl apply -k deploy/kubernetes/keda\n" in README


def test_no_two_manifests_have_one_name() -> None:
    names = [(document["kind"], document["metadata"]["name"]) for document in MANIFESTS]
    assert len(set(names)) == len(names)


def test_images_have_a_version_and_easels_is_that_of_the_project() -> None:
    [renamed] = KUSTOMIZATIONS["kustomization.yaml"]["images"]
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert (renamed["name"], renamed["newTag"]) == ("easel", version)
    for workload, each in ALL_CONTAINERS:
        name, _, tag = each["image"].partition(":")
        assert (tag and tag != "latest") or name == "easel", workload
    assert f"{renamed['newName']}:{version}" in README


def test_the_image_of_comfyui_is_the_one_of_compose() -> None:
    compose = yaml.safe_load((ROOT / "compose.nvidia.yaml").read_text())
    assert containers("easel-host")[0]["image"] == compose["services"]["comfyui"]["image"]


def test_easels_containers_run_commands_that_exist() -> None:
    arguments = {workload: each["args"] for workload, each in of_easel()}
    assert arguments == {"easel": ["run"], "easel-host": ["worker"]}
    assert {command for [command] in arguments.values()} <= COMMANDS


def test_variables_are_settings_and_secrets_come_by_reference() -> None:
    for workload, each in of_easel():
        names = [variable["name"] for variable in each["env"]]
        assert set(names) <= set(IS_SECRET), workload
        assert len(set(names)) == len(names)
        for variable in each["env"]:
            is_reference = "secretKeyRef" in variable.get("valueFrom", {})
            assert is_reference == IS_SECRET[variable["name"]], variable["name"]
            assert ("value" in variable) != ("valueFrom" in variable), variable["name"]


def test_every_secret_is_made_by_a_command_of_the_readme() -> None:
    assert not of_kind("Secret")
    for _, each in ALL_CONTAINERS:
        for variable in each.get("env", ()):
            if "secretKeyRef" in variable.get("valueFrom", {}):
                reference = variable["valueFrom"]["secretKeyRef"]
                assert re.search(
                    rf"create secret generic {reference['name']}\b[^`]*--from-literal={reference['key']}=",
                    README,
                ), reference


def test_the_settings_are_valid(tmp_path: Path) -> None:
    for workload, each in of_easel():
        given = {
            variable["name"]: variable.get("value", "k" * 40)
            for variable in each["env"]
            if "fieldRef" not in variable.get("valueFrom", {})
        }
        groups = [engines_of(group) for group in GROUPS] if workload == "easel-host" else [""]
        for engines in groups:
            load_settings({**given, "EASEL_ENGINES": engines}, tmp_path)


def test_only_comfyui_is_root_and_nothing_gets_more_rights() -> None:
    for workload, each in ALL_CONTAINERS:
        context = {**pod(workload).get("securityContext", {}), **each["securityContext"]}
        assert context["allowPrivilegeEscalation"] is False
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not context.get("privileged")
        if each["name"] == "comfyui":
            continue
        assert context["runAsNonRoot"] is True
        assert context["runAsUser"] > 0
        assert context["readOnlyRootFilesystem"] is True
        assert context["capabilities"] == {"drop": ["ALL"]}
    for workload in WORKLOADS:
        assert pod(workload)["automountServiceAccountToken"] is False
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod(workload))


def test_easel_runs_as_the_user_of_its_image_in_folders_that_it_may_write() -> None:
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    [user] = [line.split()[1] for line in lines if line.startswith("USER ")]
    [volume] = [line.split()[1] for line in lines if line.startswith("VOLUME ")]
    for workload, each in of_easel():
        context = {**pod(workload)["securityContext"], **each["securityContext"]}
        assert f"{context['runAsUser']}:{context['runAsGroup']}" == user
        assert {mount["mountPath"] for mount in each["volumeMounts"]} == {volume, "/tmp"}


def test_every_container_says_what_it_needs_and_a_host_has_one_gpu() -> None:
    gpus = {}
    for workload, each in ALL_CONTAINERS:
        resources = each["resources"]
        assert {"cpu", "memory"} <= set(resources["requests"]), each["name"]
        assert "memory" in resources["limits"], each["name"]
        if "nvidia.com/gpu" in resources["limits"]:
            gpus[workload, each["name"]] = resources["limits"]["nvidia.com/gpu"]
    assert gpus == {("easel-host", "comfyui"): 1}


def test_probes_ask_ports_and_routes_that_exist() -> None:
    for _, each in ALL_CONTAINERS:
        ports = {port["name"]: port["containerPort"] for port in each.get("ports", ())}
        for kind in ("startupProbe", "livenessProbe", "readinessProbe"):
            if "httpGet" not in each.get(kind, {}):
                continue
            asked = each[kind]["httpGet"]
            assert asked["port"] in ports
            if each["image"] == "easel":
                assert PERMISSIONS["GET", asked["path"]] == OPEN
            else:
                assert (each["name"], asked["path"]) == ("comfyui", "/system_stats")


def test_comfyui_outlives_the_worker_and_both_have_the_time_of_a_request() -> None:
    """A sidecar ends after the containers of its pod; an ordinary container would end in mid-job."""
    [comfyui] = pod("easel-host")["initContainers"]
    assert comfyui["restartPolicy"] == "Always"
    times = {setting.name: setting.default for setting in SETTINGS}
    assert pod("easel-host")["terminationGracePeriodSeconds"] > times["request_timeout_s"]
    assert pod("easel")["terminationGracePeriodSeconds"] > 2 * GRACEFUL_TIMEOUT_S


def labels_of(workload: str) -> dict[str, str]:
    labels: dict[str, str] = WORKLOADS[workload]["spec"]["template"]["metadata"]["labels"]
    return labels


def test_services_lead_to_ports_of_one_workload() -> None:
    for name, service in of_kind("Service").items():
        selector = service["spec"]["selector"].items()
        found = [workload for workload in WORKLOADS if selector <= labels_of(workload).items()]
        assert found == [name]
        ports = {port["name"] for each in containers(name) for port in each["ports"]}
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports
    for workload in WORKLOADS:
        assert WORKLOADS[workload]["spec"]["selector"]["matchLabels"] == labels_of(workload)


def test_all_know_the_service_of_redis() -> None:
    [port] = of_kind("Service")["easel-redis"]["spec"]["ports"]
    for _, each in of_easel():
        values = {variable["name"]: variable.get("value") for variable in each["env"]}
        assert values["EASEL_CLUSTER_REDIS"] == f"redis://easel-redis:{port['port']}/0"


def test_redis_is_reached_by_the_front_end_and_the_hosts_alone_and_hosts_by_nobody() -> None:
    policies = {name: document["spec"] for name, document in of_kind("NetworkPolicy").items()}
    by_component = {labels["app.kubernetes.io/component"]: labels for labels in map(labels_of, WORKLOADS)}
    assert set(by_component) == {"redis", "front-end", "host"}
    assert policies["easel-redis"]["podSelector"]["matchLabels"] == by_component["redis"]
    assert policies["easel-redis"]["policyTypes"] == ["Ingress", "Egress"]
    assert "egress" not in policies["easel-redis"]
    [rule] = policies["easel-redis"]["ingress"]
    [source] = rule["from"]
    assert source["podSelector"]["matchLabels"] == {"app.kubernetes.io/name": "easel"}
    [expression] = source["podSelector"]["matchExpressions"]
    assert (expression["key"], expression["operator"]) == ("app.kubernetes.io/component", "In")
    assert set(expression["values"]) == {"front-end", "host"}
    assert policies["easel-host"] == {
        "podSelector": {"matchLabels": by_component["host"]},
        "policyTypes": ["Ingress"],
    }


def test_redis_keeps_what_waits_and_refuses_when_it_is_full() -> None:
    lines = of_kind("ConfigMap")["easel-redis"]["data"]["redis.conf"].splitlines()
    assert {"appendonly yes", "maxmemory-policy noeviction", "dir /data"} <= set(lines)
    [claim] = WORKLOADS["easel-redis"]["spec"]["volumeClaimTemplates"]
    mounts = {mount["mountPath"]: mount["name"] for mount in containers("easel-redis")[0]["volumeMounts"]}
    assert mounts["/data"] == claim["metadata"]["name"]


def test_a_host_is_named_after_its_pod() -> None:
    [name] = [variable for variable in containers("easel-host")[1]["env"] if "NAME" in variable["name"]]
    assert name["valueFrom"]["fieldRef"]["fieldPath"] == "metadata.name"


def test_each_group_of_hosts_has_models_of_its_own_that_exist(shipped_catalogue: Catalogue) -> None:
    groups = [set(yaml.safe_load(engines_of(group))[0]["models"]) for group in GROUPS]
    assert all(groups)
    assert not set.intersection(*groups)
    assert set.union(*groups) <= set(shipped_catalogue.models)
    for group in GROUPS:
        kustomization = KUSTOMIZATIONS[f"hosts/{group}/kustomization.yaml"]
        assert kustomization["nameSuffix"] == f"-{group}"
        assert kustomization["labels"] == [{"pairs": {"easel/group": group}, "includeSelectors": True}]


@pytest.mark.parametrize("group", GROUPS)
def test_a_group_grows_with_the_jobs_that_wait_for_its_models(group: str) -> None:
    assert set(SCALED) == set(GROUPS)
    assert SCALED[group]["scaleTargetRef"] == {"name": f"easel-host-{group}"}
    for_models, for_hosts = (trigger["metadata"]["query"] for trigger in SCALED[group]["triggers"])
    [pattern] = re.findall(r'easel_cluster_waiting_jobs\{model=~"([^"]+)"\}', for_models)
    models = yaml.safe_load(engines_of(group))[0]["models"]
    assert pattern.split("|") == [model.replace(".", r"\\.") for model in models]
    for state in ("running", "waiting"):
        assert f'easel_engines_{state}_jobs{{engine=~"easel-host-{group}-.+"}}' in for_hosts


@pytest.mark.parametrize("group", GROUPS)
def test_what_keda_asks_prometheus_for_is_measured(group: str) -> None:
    for trigger in SCALED[group]["triggers"]:
        assert trigger["type"] == "prometheus"
        assert set(trigger["metadata"]) == {"serverAddress", "query", "threshold", "ignoreNullValues"}
        assert all(isinstance(value, str) for value in trigger["metadata"].values())
        asked = set(re.findall(r"\beasel_\w+", trigger["metadata"]["query"]))
        assert asked
        assert asked <= METRICS


@pytest.mark.parametrize("group", GROUPS)
def test_a_host_outlasts_a_pause_that_is_longer_than_any_load(group: str) -> None:
    """A load that takes longer counts as stalled. The period of KEDA is only for the last host."""
    longest_load_s = {setting.name: setting.default for setting in SETTINGS}["engine.stall_timeout_s"]
    behaviour = SCALED[group]["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
    assert SCALED[group]["cooldownPeriod"] > longest_load_s
    assert behaviour["scaleDown"]["stabilizationWindowSeconds"] == SCALED[group]["cooldownPeriod"]
    assert 1 <= SCALED[group]["minReplicaCount"] < SCALED[group]["maxReplicaCount"]
    assert "replicas" not in WORKLOADS["easel-host"]["spec"]
