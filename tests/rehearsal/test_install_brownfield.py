"""The literal command on clusters that others have set up: what it refuses, and what it takes over."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from functools import partial
from pathlib import Path
from typing import Any

from gpuready.charts_values.kube import Api, Object
from gpuready.rehearsal import controlplane
from gpuready.rehearsal.state import State

from .commands import gpuready, until
from .installer import footprint, install, inventory, pyinfra
from .platform import CHARTS, Platform
from .test_install_refusals import refused

THEIRS = "gpu-operator-1700"


def test_strangers_are_refused_and_left_alone(rehearsal: State, tmp_path: Path) -> None:
    api = Api.connect(rehearsal.kubeconfig)
    sets = "/apis/apps/v1/namespaces/default"
    labels = {"app": "planted"}
    containers = [{"name": "c", "image": "docker.io/flannel/flannel:v0.27.4"}]
    pod = {"hostNetwork": True, "tolerations": [{"operator": "Exists"}], "containers": containers}
    template = {"metadata": {"labels": labels}, "spec": pod}
    spec = {"selector": {"matchLabels": labels}, "template": template}
    flannel = _made("DaemonSet", "kube-flannel-ds", spec)
    tenant = _made("StatefulSet", "team-a", {**spec, "replicas": 0, "serviceName": "x"}, app="vcluster")
    for kind, item, line in (
        ("daemonsets", flannel, "DaemonSet default/kube-flannel-ds is another CNI (flannel)"),
        ("statefulsets", tenant, "hosts clusters of tenants: it has StatefulSet default/team-a (label app=vcluster)"),
    ):
        path = f"{sets}/{kind}/{item['metadata']['name']}"
        api.create(f"{sets}/{kind}", item)
        try:
            until(partial(api.get, path), _counted)
            before = footprint(api)
            refused(pyinfra(rehearsal.folder), line)
            assert footprint(api) == before
        finally:
            api.delete(path)


def test_a_hosted_platform_is_taken_over_with_its_values(state_dir: Path, tmp_path: Path) -> None:
    """As hosted control planes come: Cilium and a GPU Operator with an NFD of its own, of an older chart."""
    now = controlplane.up(state_dir, nodes=2, profile="cloud-vm", leash=os.getpid())
    api = Api.connect(now.kubeconfig)
    charts = _their_charts(tmp_path)
    theirs: dict[str, Any] = {"MTU": 8900, "ipam": {"operator": {"clusterPoolIPv4PodCIDRList": ["10.200.0.0/16"]}}}
    _helm(now, "cilium", "kube-system", charts / "cilium", theirs)
    kept = {"key": "team", "operator": "Exists"}
    _helm(
        now,
        THEIRS,
        "nvidia",
        charts / "gpu-operator",
        {
            "dcgmExporter": {"enabled": False},
            "daemonsets": {"tolerations": [kept, {"key": "nvidia.com/gpu", "operator": "Exists"}]},
            "driver": {"version": "580.173.02"},
            "node-feature-discovery": {"worker": {"tolerations": [{"operator": "Exists"}]}},
        },
    )
    env = {"GPUREADY_CHARTS": str(charts)}
    until(Platform(now).verdict, lambda seen: seen == ("ready", "Reconciled"), 90)
    before = footprint(api)
    stranger = inventory(_folder(tmp_path, "plain"), platform="hosted")
    refused(
        pyinfra(state_dir, file=stranger, **env), "Cilium is there already: release cilium in namespace kube-system"
    )
    half = inventory(_folder(tmp_path, "half"), platform="hosted", adopt=["cilium"])
    refused(pyinfra(state_dir, file=half, **env), f'add "gpu-operator={THEIRS}@nvidia" to `adopt`')
    assert footprint(api) == before

    adopt = ["cilium", f"gpu-operator={THEIRS}@nvidia"]
    file = inventory(_folder(tmp_path, "adopt"), platform="hosted", adopt=adopt)
    shown = pyinfra(state_dir, "--dry", file=file, PYINFRA_YES="", **env).stderr
    assert 'Cilium 1.19.6: cni: (none) -> {"exclusive":false}' in shown
    assert "GPU Operator: chart v25.3.0 -> v26.7.0: withheld, since an adopted release stays at its chart" in shown
    assert 'nfd: (none) -> {"enabled":false}' in shown
    assert footprint(api) == before

    pinned = inventory(_folder(tmp_path, "pinned"), platform="hosted", adopt=[adopt[0], f"{adopt[1]}:v25.3.0"])
    install(state_dir, pinned, **env)
    again = pyinfra(state_dir, "--dry", "--json", file=pinned, PYINFRA_YES="", **env)
    assert "withheld" not in again.stderr
    assert [one["name"] for one in json.loads(again.stdout)["plan"] if one["hosts_with_change"]] == []
    # Nothing of theirs is lost, and their network is as it was.
    cilium = _values(now, "cilium", "kube-system")
    assert cilium["MTU"] == 8900
    assert cilium["ipam"] == theirs["ipam"]
    assert cilium["cni"] == {"exclusive": False}
    config = api.get("/api/v1/namespaces/kube-system/configmaps/cilium-config")["data"]
    assert config["cluster-pool-ipv4-cidr"] == "10.200.0.0/16"
    gpu = _values(now, THEIRS, "nvidia")
    assert gpu["dcgmExporter"] == {"enabled": False}
    assert kept in gpu["daemonsets"]["tolerations"]
    assert gpu["nfd"] == {"enabled": False}
    # One NFD is left: ours.
    masters = [one["metadata"]["namespace"] for one in api.list("/apis/apps/v1/deployments") if _is_master(one)]
    assert masters == ["node-feature-discovery"]
    checked = gpuready(now, "check", "--inventory", str(pinned), "--only", "release.*", "-o", "json")
    statuses = {one["subject"]["name"]: one["status"] for one in json.loads(checked.stdout)["results"]}
    assert statuses[f"nvidia/{THEIRS}"] == "pass", statuses


# -- what others have set up --------------------------------------------------------------------------------------


def _made(kind: str, name: str, spec: Object, **labels: str) -> Object:
    return {"apiVersion": "apps/v1", "kind": kind, "metadata": {"name": name, "labels": labels}, "spec": spec}


def _counted(item: Object) -> bool:
    """Whether the nodes of a DaemonSet are known; one without nodes is switched off."""
    status = item.get("status", {})
    return item["kind"] != "DaemonSet" or status.get("desiredNumberScheduled", 0) > 0


def _folder(tmp_path: Path, name: str) -> Path:
    folder = tmp_path / name
    folder.mkdir()
    return folder


def _their_charts(tmp_path: Path) -> Path:
    """The stand-ins, but the GPU Operator's is older and brings NFD along, as the real one does."""
    charts = tmp_path / "charts"
    shutil.copytree(CHARTS, charts)
    operator = charts / "gpu-operator"
    shutil.copytree(charts / "node-feature-discovery", operator / "charts" / "node-feature-discovery")
    meta = (operator / "Chart.yaml").read_text().replace("v26.7.0", "v25.3.0")
    meta += (
        "dependencies:\n  - name: node-feature-discovery\n    version: 0.19.0\n    condition: nfd.enabled\n"
        '    repository: ""\n'
    )
    (operator / "Chart.yaml").write_text(meta)
    template = operator / "templates" / "operator.yaml"
    template.write_text(template.read_text().partition("{{- end }}\n")[2])
    return charts


def _helm(now: State, name: str, namespace: str, chart: Path, values: dict[str, Any]) -> None:
    command = [
        now.bin / "helm",
        "install",
        name,
        chart,
        "--namespace",
        namespace,
        "--create-namespace",
        "--values",
        "-",
    ]
    subprocess.run(
        [*command, "--kubeconfig", now.kubeconfig],
        input=json.dumps(values),
        text=True,
        check=True,
        capture_output=True,
        timeout=60,
    )


def _values(now: State, name: str, namespace: str) -> dict[str, Any]:
    command = [now.bin / "helm", "get", "values", name, "--namespace", namespace, "-o", "json"]
    done = subprocess.run([*command, "--kubeconfig", now.kubeconfig], check=True, capture_output=True, timeout=60)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _is_master(deployment: Object) -> bool:
    return bool(deployment["metadata"]["name"].endswith("-master"))
