"""`gpuready check` on a real API server: silent when healthy, right when broken, modest in what it may do."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from gpuready.charts_values.errors import ApiError
from gpuready.charts_values.kube import Api
from gpuready.rehearsal import controlplane
from gpuready.rehearsal.state import State
from gpuready.validators import rbac

from .commands import gpuready, report, run, until

PATHS = {
    "Namespace": "/api/v1/namespaces",
    "ServiceAccount": "/api/v1/namespaces/gpuready/serviceaccounts",
    "ClusterRole": "/apis/rbac.authorization.k8s.io/v1/clusterroles",
    "ClusterRoleBinding": "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings",
    "Role": "/apis/rbac.authorization.k8s.io/v1/namespaces/{}/roles",
    "RoleBinding": "/apis/rbac.authorization.k8s.io/v1/namespaces/{}/rolebindings",
}


def kubeconfig_for(now: State, role: str, folder: Path) -> Path:
    """A kubeconfig of the ServiceAccount that holds nothing but what `gpuready rbac ROLE` prints."""
    api = Api.connect(now.kubeconfig)
    printed = list(yaml.safe_load_all(gpuready(now, "rbac", role).stdout))
    assert printed == rbac.objects(role)
    for item in printed:
        path = PATHS[item["kind"]].format(item["metadata"].get("namespace"))
        query = {"fieldManager": "test", "force": "true"}
        api.patch(f"{path}/{item['metadata']['name']}", item, kind="apply", **query)
    token = api.create(
        f"/api/v1/namespaces/gpuready/serviceaccounts/gpuready-{role}/token",
        {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"expirationSeconds": 3600}},
    )["status"]["token"]
    config = yaml.safe_load(now.kubeconfig.read_text())
    config["users"] = [{"name": config["users"][0]["name"], "user": {"token": token}}]
    file = folder / f"{role}.kubeconfig"
    file.write_text(yaml.safe_dump(config))
    return file


@pytest.fixture
def healed(installed: State) -> Iterator[State]:
    """The installed cluster; whatever a test injects is taken back and gone before the next one."""
    yield installed
    for fault in ("gpu-missing", "tcp-fallback"):
        gpuready(installed, "rehearse", "heal", fault)
    until(lambda: report(installed, "check")["counts"], lambda counts: counts["fail"] == 0)


def test_a_healthy_cluster_passes_without_a_warning(installed: State) -> None:
    data = report(installed, "check")
    assert (data["verdict"], data["exit_code"], data["cluster"]["rehearsal"]) == ("pass", 0, True)
    # The fleet has no RoCE rails, nothing but GPUs and RDMA, and no machine that SSH reaches: tests/nodes has those.
    others = [one for one in data["results"] if not one["check"].startswith("node.")]
    idle = [one["check"] for one in others if one["status"] != "pass"]
    assert idle == ["network.secondary", "resources.allocatable"]
    assert {one["reason"] for one in data["results"] if one not in others} == {"NoSshNodes"}
    assert gpuready(installed, "check").stdout.startswith("REHEARSAL PASS ")


def test_a_missing_gpu_is_named_in_the_first_line(healed: State) -> None:
    assert gpuready(healed, "rehearse", "inject", "gpu-missing").returncode == 0
    until(lambda: gpuready(healed, "check").returncode, lambda code: code == 1)
    first = gpuready(healed, "check").stdout.splitlines()[0]
    assert first == "REHEARSAL FAIL gpu.allocatable: fewer GPUs allocatable than expected (gpu-0003)"
    data = report(healed, "check")
    assert data["results"][0]["id"] == "gpu.allocatable/node/gpu-0003"
    assert (data["counts"]["fail"], data["counts"]["warn"]) == (1, 0)


def test_node_narrows_the_report(installed: State) -> None:
    results = report(installed, "check", "--node", "gpu-0001")["results"]
    assert {one["subject"]["name"] for one in results if one["subject"]["kind"] == "node"} == {"gpu-0001"}


def test_the_shipped_role_is_enough_and_no_more(installed: State, tmp_path: Path) -> None:
    file = kubeconfig_for(installed, "check", tmp_path)
    data = report(installed, "check", "--kubeconfig", str(file), "--cluster", "rehearsal")
    assert (data["verdict"], data["counts"]["unproven"]) == ("pass", 0)
    told = [(one["status"], one["cause"]) for one in data["results"] if one["check"] == "release.status"]
    assert told == [("skip", "the identity may not list Helm's records")]
    mine = Api.connect(file)
    for path in ("/api/v1/secrets", "/api/v1/configmaps", "/api/v1/namespaces/gpuready/events"):
        with pytest.raises(ApiError) as caught:
            mine.list(path)
        assert caught.value.forbidden
    with pytest.raises(ApiError) as caught:
        mine.delete("/api/v1/nodes/gpu-0000")
    assert caught.value.forbidden


def test_a_missing_permission_is_unproven_and_says_what_to_grant(installed: State, tmp_path: Path) -> None:
    file = kubeconfig_for(installed, "check", tmp_path)
    api = Api.connect(installed.kubeconfig)
    role = "/apis/rbac.authorization.k8s.io/v1/clusterroles/gpuready-check"
    rules = [rule for rule in api.get(role)["rules"] if rule["apiGroups"] != ["nvidia.com"]]
    api.patch(role, {"rules": rules})
    data = report(installed, "check", "--kubeconfig", str(file), "--cluster", "rehearsal")
    assert (data["verdict"], data["exit_code"]) == ("incomplete", 2)
    blocked = {one["check"] for one in data["results"] if one["reason"] == "PermissionMissing"}
    assert blocked == {"gpu.policy", "gpu.operands"}
    assert all("gpuready rbac check" in r["fix"] for r in data["results"] if r["reason"] == "PermissionMissing")


def test_a_pod_that_lost_its_readiness_gets_it_back(installed: State) -> None:
    """The controller-manager takes it while it sees the node as not Ready; a kubelet would post it again."""
    api = Api.connect(installed.kubeconfig)
    pods = "/api/v1/namespaces/gpu-operator/pods"

    def operator() -> dict[str, Any]:
        return next(pod for pod in api.list(pods, resourceVersion="") if pod["spec"]["nodeName"] == "cp-0")

    def ready() -> str:
        return str(next(one["status"] for one in operator()["status"]["conditions"] if one["type"] == "Ready"))

    assert ready() == "True"
    lost = {"status": {"conditions": [{"type": "Ready", "status": "False"}]}}
    api.patch(f"{pods}/{operator()['metadata']['name']}/status", lost, kind="strategic")
    until(ready, lambda status: status == "True")


def test_of_helms_records_nothing_but_labels_is_read(installed: State, tmp_path: Path) -> None:
    records = Api.connect(installed.kubeconfig).list_metadata("/api/v1/secrets", labelSelector="owner=helm")
    assert len(records) == 5 and all("data" not in one for one in records)
    bundle = tmp_path / "bundle"
    report(installed, "check", "--save", str(bundle))
    kept = json.loads((bundle / "cluster" / "releases.helm.sh.json").read_text())
    assert {one["metadata"]["name"] for one in kept} >= {"cilium", "gpu-operator"}
    assert {key for one in kept for key in (*one, *one["metadata"], *one["metadata"]["labels"])} == {
        "metadata", "name", "namespace", "labels", "status", "version",
    }  # fmt: skip


def test_only_a_workload_in_trouble_costs_another_request(healed: State) -> None:
    quiet = report(healed, "check")["api_calls"]
    gpuready(healed, "rehearse", "inject", "toolkit-broken", "--node", "gpu-0001")
    try:
        data = report(healed, "check")
        done = gpuready(healed, "check")
    finally:
        gpuready(healed, "rehearse", "heal", "toolkit-broken")
    assert data["api_calls"] == quiet + 1
    first = data["results"][0]
    assert (first["check"], first["nodes"]) == ("gpu.operands", ["gpu-0001"])
    assert done.stdout.splitlines()[0] == (
        "REHEARSAL FAIL gpu.operands: operand is not ready (nvidia-container-toolkit-daemonset on gpu-0001)"
    )


def test_api_calls_do_not_grow_with_the_nodes(installed: State, rehearsal: State) -> None:
    few, many = report(installed, "check"), report(rehearsal, "check")
    assert len(installed.nodes) < len(rehearsal.nodes)
    assert few["api_calls"] == many["api_calls"]


def test_a_bundle_is_judged_again_to_the_same_end(installed: State, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    live = report(installed, "check", "--save", str(bundle))
    saved = report(installed, "check", "--from", str(bundle))
    assert {one["id"]: one["status"] for one in saved["results"]} == {
        one["id"]: one["status"] for one in live["results"]
    }
    assert saved["api_calls"] == 0
    assert not list(bundle.glob("cluster/secrets*"))
    nodes = json.loads((bundle / "cluster" / "nodes.json").read_text())
    assert "managedFields" not in nodes[0]["metadata"]


def test_a_bundle_of_one_file_is_enough(installed: State, tmp_path: Path) -> None:
    node = tmp_path / "nodes" / "gpu-0"
    node.mkdir(parents=True)
    (node / "kmsg.txt").write_text("")
    data = report(installed, "check", "--from", str(tmp_path))
    assert (data["verdict"], data["exit_code"]) == ("incomplete", 2)
    assert {one["status"] for one in data["results"]} <= {"skip", "pass", "unproven"}


def one_line(done: Any) -> str:
    """The one line of an error; no traceback, nothing on stdout."""
    assert done.returncode == 2
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("gpuready: "), done.stderr
    return str(lines[0])


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (("check", "--cluster", "pord"), "no cluster 'pord'; it has rehearsal"),
        (("check", "--inventory", "missing"), "missing is not an inventory file"),
        (("check", "--only", "gpu.alocatable"), "matches no check"),
        (("check", "--from", "missing"), "missing is not a bundle"),
        (("check", "--cluster", "rehearsal", "--kubeconfig", "missing"), "kubeconfig missing does not exist"),
        (("check", "--cluster", "rehearsal", "--context", "nope"), "nope"),
        (("check", "--kubeconfig", "x"), "need --cluster"),
        (
            ("check", "--node", "gpu-001"),
            "--node gpu-001: inventory and cluster know no such node; did you mean gpu-0001?",
        ),
        (("show", "missing.json"), "cannot read missing.json"),
        (("explain", "gpu.nothing"), "there is no check"),
        (("values", "nothing"), "no release 'nothing'"),
    ],
)
def test_bad_input_is_one_line(installed: State, args: tuple[str, ...], told: str) -> None:
    assert told in one_line(gpuready(installed, *args))


def test_no_rehearsal_is_one_line(tmp_path: Path) -> None:
    assert "no rehearsal cluster is up" in one_line(run("gpuready", "check", state_dir=tmp_path / "none"))


@pytest.mark.parametrize("args", [("values",), ("values", "gpu-operator"), ("list",), ("explain", "gpu.allocatable")])
def test_what_needs_no_cluster_works_with_nothing_up(args: tuple[str, ...], tmp_path: Path) -> None:
    done = run("gpuready", *args, state_dir=tmp_path / "none")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout


def test_an_api_server_that_is_gone_is_one_line_and_still_a_document(state_dir: Path) -> None:
    now = controlplane.up(state_dir, nodes=1, profile="cloud-vm")
    os.kill(now.processes["kube-apiserver"].pid, signal.SIGKILL)
    assert "cannot reach the API server" in one_line(gpuready(now, "check"))
    done = gpuready(now, "check", "-o", "json")
    data = json.loads(done.stdout)
    assert (done.returncode, data["verdict"], data["results"][0]["check"]) == (2, "incomplete", "cluster.reachable")


def test_rehearsal_is_no_default_beside_a_real_cluster(installed: State, tmp_path: Path) -> None:
    file = tmp_path / "inventory"
    file.write_text("_CLUSTERS = {'rehearsal': {'rehearsal': True}, 'prod': {}}\n")
    line = one_line(gpuready(installed, "check", "--inventory", str(file)))
    assert "which cluster? Give --cluster, one of: prod, rehearsal" in line
