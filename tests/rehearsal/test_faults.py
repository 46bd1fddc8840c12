"""Faults on a real API server: what breaks, what the cluster shows of it, and that it heals."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from gpuready.charts_values.errors import InputError
from gpuready.charts_values.kube import Api, Object
from gpuready.rehearsal import faults, healthy, scoreboard
from gpuready.rehearsal.faults import Fault, edits
from gpuready.rehearsal.state import State
from gpuready.validators.acceptance.manifests import smi_script

from .commands import gpuready, until
from .objects import standing
from .platform import GPU_TAINT, NIC_POLICIES, Platform, ready, waits_in_init

JOBS = "/apis/batch/v1/namespaces/default/jobs"
PODS = "/api/v1/namespaces/default/pods"
RDMA = "rdma/rdma_shared_device_a"
WORKLOADS = "/apis/apps/v1/namespaces"
# The node that a fault hits where none is named.
NODE = "gpu-0003"
PAGE = Path("docs/reference/faults.md")
_NUMBERS = itertools.count()


@pytest.fixture
def platform(installed: State, monkeypatch: pytest.MonkeyPatch) -> Iterator[Platform]:
    """The installed cluster, which commands in this process mean, too; what a test breaks is mended."""
    monkeypatch.setenv("GPUREADY_STATE_DIR", str(installed.folder))
    platform = Platform(installed)
    yield platform
    for name in faults.active(installed.folder):
        faults.heal(installed.folder, name)
    faults.settle(installed.folder)
    for one in platform.api.list(JOBS, resourceVersion=""):
        platform.api.delete(f"{JOBS}/{one['metadata']['name']}")
    until(lambda: platform.api.list(PODS, resourceVersion=""), lambda pods: pods == [])
    platform.wait_ready()


def run(api: Api, name: str, probe: str, command: list[str], limits: Object, nodes: list[str]) -> list[Object]:
    """A Job with one pod on each of the nodes; returns its pods in the order of their index, once they ended."""
    terms = [{"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": nodes}]}]
    required = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}
    container = {"name": "main", "image": "image", "command": command, "resources": {"limits": limits}}
    pod = {
        "restartPolicy": "Never",
        "tolerations": [GPU_TAINT],
        "affinity": {"nodeAffinity": required},
        "containers": [container],
    }
    body: Object = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name},
        "spec": {
            "backoffLimit": 0,
            "completionMode": "Indexed",
            "completions": len(nodes),
            "parallelism": len(nodes),
            "template": {"metadata": {"labels": {"gpuready.io/probe": probe}}, "spec": pod},
        },
    }
    api.create(JOBS, body)
    found = until(
        lambda: api.list(PODS, labelSelector=f"job-name={name}", resourceVersion=""),
        lambda pods: sum(pod["status"].get("phase") in ("Succeeded", "Failed") for pod in pods) == len(nodes),
    )
    return sorted(found, key=lambda pod: str(pod["metadata"]["name"]))


def smi(platform: Platform, gpus: int) -> int:
    """How many GPUs nvidia-smi counts on NODE."""
    command = ["sh", "-c", smi_script()]
    name = f"smi-{next(_NUMBERS)}"
    pod = run(platform.api, name, "nvidia-smi", command, {"nvidia.com/gpu": str(gpus)}, [NODE])[0]
    message = json.loads(pod["status"]["containerStatuses"][0]["state"]["terminated"]["message"])
    return int(message["gpus"])


def nccl(platform: Platform) -> dict[str, str]:
    """The logs by node of an all-reduce between NODE and another, its bus bandwidth under "busbw"."""
    name = f"nccl-{next(_NUMBERS)}"
    pods = run(platform.api, name, "nccl", ["allreduce"], {"nvidia.com/gpu": "8", RDMA: "1"}, ["gpu-0000", NODE])
    logs = {
        pod["spec"]["nodeName"]: platform.api.text(f"{PODS}/{pod['metadata']['name']}/log", container="main")
        for pod in pods
    }
    said = json.loads(pods[0]["status"]["containerStatuses"][0]["state"]["terminated"]["message"])
    platform.api.delete(f"{JOBS}/{name}")
    return logs | {"busbw": str(said.get("busbw_gbytes_s"))}


def network(log: str) -> set[str]:
    """The networks that NCCL says it uses."""
    return {line.rpartition("Using network ")[2] for line in log.splitlines() if "Using network " in line}


# -- what each fault shows ----------------------------------------------------------------------------------


def held_up(app: str, namespace: str = "gpu-operator") -> Callable[[Platform], bool]:
    """The pod with this label on NODE waits for a container that does not start, and its node offers less."""

    def look(platform: Platform) -> bool:
        pods = [one for one in platform.pods(app, namespace) if one["spec"]["nodeName"] == NODE]
        waiting = pods[0]["status"]["containerStatuses"][0]["state"]["waiting"]
        return waiting["reason"] in ("CrashLoopBackOff", "ImagePullBackOff") and ready(pods[0]) == "False"

    return look


def not_ready(daemonset: str) -> Callable[[Platform], bool]:
    """A DaemonSet of the GPU Operator lacks one pod, and the ClusterPolicy says so."""
    return lambda platform: (
        platform.daemonsets()[daemonset]["status"]["numberReady"] == 3 and platform.verdict()[0] == "notReady"
    )


def has(path: str, *keys: str, value: object) -> Callable[[Platform], bool]:
    """A field of an object."""

    def look(platform: Platform) -> bool:
        found: Any = platform.api.get(path)
        for key in keys:
            found = found[key]
        return bool(found == value)

    return look


def gone(path: str) -> Callable[[Platform], bool]:
    """There is no such object."""
    return lambda platform: platform.api.find(path) is None


def release_is(status: str) -> Callable[[Platform], bool]:
    """Helm itself says so."""
    path = "/api/v1/namespaces/nvidia-network-operator/secrets"
    selector = f"owner=helm,name=network-operator,status={status}"
    return lambda platform: len(platform.api.list(path, labelSelector=selector, resourceVersion="")) == 1


def offers(resource: str, count: str) -> Callable[[Platform], bool]:
    """NODE offers so much of a resource."""
    return lambda platform: platform.offers(resource, NODE) == count


def slices(node: str, driver: str) -> Callable[[Platform], int]:
    """How many slices of a driver a node has."""
    path = "/apis/resource.k8s.io/v1/resourceslices"
    return lambda platform: sum(
        (one["spec"]["nodeName"], one["spec"]["driver"]) == (node, driver)
        for one in platform.api.list(path, resourceVersion="")
    )


def hangs_in_init(platform: Platform) -> bool:
    """The DRA driver's plugin on NODE, and nothing is published there."""
    pods = platform.api.list("/api/v1/namespaces/dra-driver-nvidia-gpu/pods", resourceVersion="")
    mine = [one for one in pods if one["spec"]["nodeName"] == NODE and waits_in_init(one)]
    return len(mine) == 1 and slices(NODE, "compute-domain.nvidia.com")(platform) == 0


def evicted(platform: Platform) -> bool:
    """Nothing of the GPU Operator is left on NODE."""
    pods = platform.api.list("/api/v1/namespaces/gpu-operator/pods", resourceVersion="")
    return all(one["spec"]["nodeName"] != NODE for one in pods) and platform.offers("nvidia.com/gpu", NODE) == "0"


def blind(platform: Platform) -> bool:
    """No node shows a GPU, and the ClusterPolicy says ready all the same."""
    return platform.verdict() == ("ready", "NoGPUNodes") and "nvidia.com/gpu.present" not in platform.labels(NODE)


def refused(platform: Platform) -> bool:
    """One pod of the DCGM exporter is not made again."""
    status = platform.daemonsets()["nvidia-dcgm-exporter"]["status"]
    return (status["desiredNumberScheduled"], status["currentNumberScheduled"]) == (4, 3)


def pending(platform: Platform) -> bool:
    """The scheduler finds no place for a pod."""
    pod = platform.api.get(f"{PODS}/training")
    return [one["status"] for one in pod["status"]["conditions"] if one["type"] == "PodScheduled"] == ["False"]


def dead(platform: Platform) -> bool:
    """The webhook's Service has nobody behind it."""
    selector = "kubernetes.io/service-name=kueue-webhook-service"
    path = "/apis/discovery.k8s.io/v1/namespaces/kube-system/endpointslices"
    found = platform.api.list(path, labelSelector=selector, resourceVersion="")
    return bool(found) and not any(one.get("endpoints") for one in found)


_LABEL = ("metadata", "labels")
_CONFIG = "/api/v1/namespaces/kube-system/configmaps/cilium-config"
_NODE = f"/api/v1/nodes/{NODE}"
_PRODUCT = (*_LABEL, "nvidia.com/gpu.product")
_DRIVER = (*_LABEL, "nvidia.com/cuda.driver-version.full")

SYMPTOMS: dict[str, Callable[[Platform], bool]] = {
    "node-missing": gone(_NODE),
    "node-not-ready": lambda platform: ready(platform.node(NODE)) == "False",
    "node-cordoned": lambda platform: "node.kubernetes.io/unschedulable" in str(platform.node(NODE)["spec"]["taints"]),
    "taint-lockout": evicted,
    "release-failed": release_is("failed"),
    "release-pending": release_is("pending-upgrade"),
    "operator-stopped": lambda platform: (
        platform.pods("gpu-operator") == [] and platform.verdict() == ("ready", "Reconciled")
    ),
    "psa-restricted": refused,
    "webhook-dead": dead,
    "quota-full": has("/api/v1/namespaces/gpuready/resourcequotas/team-quota", "status", "hard", value={"pods": "0"}),
    "cni-exclusive": has(_CONFIG, "data", "cni-exclusive", value="true"),
    "pod-cidr-overlap": has(_CONFIG, "data", "cluster-pool-ipv4-cidr", value="10.16.0.0/12"),
    "kube-proxy-beside": has(f"{WORKLOADS}/kube-system/daemonsets/kube-proxy", "status", "numberReady", value=5),
    "nfd-absent": lambda platform: platform.verdict() == ("ready", "NFDLabelsMissing"),
    "nfd-twice": lambda platform: (
        platform.daemonsets()["gpu-operator-node-feature-discovery-worker"]["status"]["numberReady"] >= 4
    ),
    "nfd-blind": blind,
    "nic-policy-absent": gone(f"{WORKLOADS}/nvidia-network-operator/daemonsets/rdma-shared-dp-ds"),
    "nic-policy-misnamed": has(f"{NIC_POLICIES}/nic-policy", "status", "state", value="ignore"),
    "nic-policy-not-ready": held_up("rdma-shared-dp-ds", "nvidia-network-operator"),
    "rdma-missing": lambda platform: (
        platform.offers(RDMA, NODE) == "0"
        and "feature.node.kubernetes.io/pci-15b3.present" not in platform.labels(NODE)
    ),
    "rdma-misnamed": offers("rdma/hca_shared_devices_a", "63"),
    "mofed-wait": offers(RDMA, "0"),
    "gpu-missing": offers("nvidia.com/gpu", "7"),
    "product-mismatch": has(_NODE, *_PRODUCT, value="NVIDIA-H200"),
    "driver-missing": not_ready("nvidia-operator-validator"),
    "driver-differs": has(_NODE, *_DRIVER, value="580.105.08"),
    "toolkit-broken": not_ready("nvidia-device-plugin-daemonset"),
    "device-plugin-broken": offers("nvidia.com/gpu", "0"),
    "validator-broken": held_up("nvidia-operator-validator"),
    "gfd-broken": held_up("gpu-feature-discovery"),
    "image-pull": held_up("nvidia-dcgm-exporter"),
    "operand-switched-off": lambda platform: (
        platform.offers("nvidia.com/gpu", NODE) == "0" and platform.verdict() == ("ready", "Reconciled")
    ),
    "dra-too-old": has(_NODE, *_DRIVER, value="560.35.03"),
    "dra-slices-missing": hangs_in_init,
    "dra-two-owners": lambda platform: slices(NODE, "gpu.nvidia.com")(platform) == 1,
    "dra-claim-pending": pending,
    "tcp-fallback": lambda platform: network(nccl(platform)[NODE]) == {"Socket"},
    "gpudirect-off": lambda platform: "/GDRDMA" not in nccl(platform)[NODE],
    "nic-silent": lambda platform: "mlx5_7" not in nccl(platform)[NODE],
    "nic-dies": lambda platform: "mlx5_5:1 Got async error event: port error" in nccl(platform)[NODE],
    "node-slow": lambda platform: float(nccl(platform)["busbw"]) < 300,
    "nic-slow": lambda platform: float(nccl(platform)["busbw"]) < 300,
    "nvlink-slow": lambda platform: float(nccl(platform)["busbw"]) < 300,
    "nccl-env-decree": has(
        "/api/v1/namespaces/gpuready/configmaps/nccl-env", "data", "NCCL_NET_GDR_LEVEL", value="SYS"
    ),
}


def test_every_fault_is_tried() -> None:
    assert list(SYMPTOMS) == [fault.name for fault in faults.catalogue()]


@pytest.mark.parametrize("fault", faults.catalogue(), ids=lambda fault: fault.name)
def test_a_fault_shows_is_found_first_and_heals_without_a_trace(platform: Platform, fault: Fault, root: Path) -> None:
    """Nothing here waits: after ``settle`` the cluster shows what was broken, or that it is mended."""
    shows = SYMPTOMS[fault.name]
    before = _lasting(platform)
    assert not (fault.phase == "check" and _true(shows, platform)), "it shows without the fault"

    def look() -> None:
        assert shows(platform)

    score = scoreboard.score(platform.now, fault, look)
    assert score.full, score.wrong
    assert _lasting(platform) == before
    page = (root / PAGE).read_text(encoding="utf-8")
    for line in scoreboard.rows(score):
        assert line in page, f"{PAGE} does not say so; run: make scoreboard"


def _lasting(platform: Platform) -> dict[str, Any]:
    """What stands, without the namespace that the first acceptance makes and that stays."""
    return {
        key: value
        for key, value in standing(platform.api).items()
        if key != "Namespace /gpuready" and " gpuready/" not in key
    }


def _true(shows: Callable[[Platform], bool], platform: Platform) -> bool:
    """Whether a symptom shows where what it looks at may not be there."""
    try:
        return shows(platform)
    except Exception:
        return False


def test_healthy_fleets_raise_no_alarm(platform: Platform) -> None:
    """The other profiles: test_profiles.py."""
    found = dict(scoreboard.fleets(platform.now, "h100-ib", seed=0))
    assert len(found) == scoreboard.VARIATIONS
    assert {title: alarms for title, alarms in found.items() if alarms} == {}


def test_there_are_enough_faults_and_fleets() -> None:
    assert len(faults.catalogue()) >= 25
    assert len(healthy.PROFILES) * scoreboard.VARIATIONS >= 20


# -- more than one, and less than all -----------------------------------------------------------------------


def test_gpu_missing_shows_everywhere(platform: Platform) -> None:
    assert faults.inject(platform.now.folder, "gpu-missing", NODE) == NODE
    faults.settle(platform.now.folder)
    assert platform.labels(NODE)["nvidia.com/gpu.count"] == "7"
    assert smi(platform, 7) == 7
    assert platform.offers("nvidia.com/gpu", "gpu-0001") == "8"
    assert platform.verdict() == ("ready", "Reconciled")
    faults.heal(platform.now.folder, "gpu-missing")
    faults.settle(platform.now.folder)
    assert smi(platform, 8) == 8


def test_tcp_fallback_shows_in_nccl_alone(platform: Platform) -> None:
    before = standing(platform.api)
    faults.inject(platform.now.folder, "tcp-fallback", NODE)
    faults.settle(platform.now.folder)
    assert standing(platform.api) == before
    logs = nccl(platform)
    assert (network(logs["gpu-0000"]), network(logs[NODE])) == ({"IB"}, {"Socket"})
    faults.heal(platform.now.folder, "tcp-fallback")
    faults.settle(platform.now.folder)
    assert network(nccl(platform)[NODE]) == {"IB"}


def test_a_broken_driver_holds_up_the_operands_after_it(platform: Platform) -> None:
    faults.inject(platform.now.folder, "driver-missing", NODE)
    faults.settle(platform.now.folder)
    pods = platform.api.list("/api/v1/namespaces/gpu-operator/pods", resourceVersion="")
    mine = {one["metadata"]["labels"]["app"]: one for one in pods if one["spec"]["nodeName"] == NODE}
    driver = mine.pop("nvidia-driver-daemonset")
    assert driver["status"]["containerStatuses"][0]["state"]["waiting"]["reason"] == "CrashLoopBackOff"
    assert all(waits_in_init(one) for one in mine.values())
    assert platform.offers("nvidia.com/gpu", NODE) == "0"


def test_several_at_once_unless_they_touch_the_same_object(platform: Platform) -> None:
    folder = platform.now.folder
    before = standing(platform.api)
    names = ["nfd-blind", "nic-policy-not-ready", "rdma-misnamed", "node-cordoned"]
    for name in names:
        faults.inject(folder, name)
    # What the object was like before would otherwise be forgotten.
    with pytest.raises(
        InputError, match=r"nic-policy-absent and rdma-misnamed both change .* heal rdma-misnamed first"
    ):
        faults.inject(folder, "nic-policy-absent")
    faults.settle(folder)
    assert list(faults.active(folder)) == names
    for name in names:
        faults.heal(folder, name)
    faults.settle(folder)
    assert standing(platform.api) == before


@pytest.mark.parametrize("steps", [0, 1, 2])
def test_what_was_cut_off_can_be_healed(platform: Platform, monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    """As by kill -9 after none, one or two of the changes: only the record is there to tell."""
    folder = platform.now.folder
    before = standing(platform.api)
    done = itertools.count()
    perform = edits.Edit.perform

    def killed(edit: edits.Edit, api: Api) -> None:
        if next(done) == steps:
            raise KeyboardInterrupt
        perform(edit, api)

    with monkeypatch.context() as patched:
        patched.setattr(edits.Edit, "perform", killed)
        with pytest.raises(KeyboardInterrupt):
            faults.inject(folder, "nfd-absent")
    assert faults.active(folder) == {"nfd-absent": ""}
    if steps == 2:
        # Whoever tries again gets the whole fault.
        faults.inject(folder, "nfd-absent")
        faults.settle(folder)
        assert SYMPTOMS["nfd-absent"](platform)
    faults.heal(folder, "nfd-absent")
    faults.settle(folder)
    assert standing(platform.api) == before


def test_the_command_line(platform: Platform) -> None:
    folder = platform.now.folder
    promise = (folder / "state.json").read_bytes()
    done = gpuready(platform.now, "rehearse", "inject", "operator-stopped")
    assert done.stdout == "Injected operator-stopped. Take it back with: gpuready rehearse heal operator-stopped\n"
    done = gpuready(platform.now, "rehearse", "inject", "gpu-missing")
    assert done.stdout == "Injected gpu-missing on gpu-0003. Take it back with: gpuready rehearse heal gpu-missing\n"
    table = json.loads(gpuready(platform.now, "rehearse", "faults", "-o", "json").stdout)
    assert {row["name"]: row["node"] for row in table if row["node"] is not None} == {
        "operator-stopped": "",
        "gpu-missing": "gpu-0003",
    }
    assert [row["finding"] for row in table] == [fault.finding for fault in faults.catalogue()]
    lines = gpuready(platform.now, "rehearse", "faults").stdout.splitlines()
    assert sum(line.endswith(" [injected]") for line in lines) == 1
    assert sum(line.endswith(" [injected on gpu-0003]") for line in lines) == 1
    done = gpuready(platform.now, "rehearse", "inject", "node-missing", "--node", "cp-0")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert gpuready(platform.now, "rehearse", "heal", "operator-stopped").stdout == "Healed operator-stopped.\n"
    assert gpuready(platform.now, "rehearse", "heal", "gpu-missing").stdout == "Healed gpu-missing on gpu-0003.\n"
    assert (folder / "state.json").read_bytes() == promise


def test_what_is_not_installed_cannot_be_broken(rehearsal: State, tmp_path: Path) -> None:
    for name in ("nfd-absent", "cni-exclusive", "nic-policy-absent", "release-failed", "kube-proxy-beside"):
        with pytest.raises(InputError, match="install the platform first"):
            faults.inject(rehearsal.folder, name)
    assert faults.active(rehearsal.folder) == {}
