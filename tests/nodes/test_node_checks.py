"""`gpuready check` on machines that are broken on purpose: it names machine and fault, and is silent once mended."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from gpuready.charts_values.kube import Api
from gpuready.rehearsal.state import State

from ..rehearsal import commands
from .conftest import Shell

BROKEN, WHOLE = "machine-1", "machine-0"
# What the faults change; all of it is kept and put back.
TOUCHED = (
    *("etc/fstab", "etc/containerd", "etc/systemd/system", "etc/modules-load.d", "etc/rancher", "etc/sudoers.d"),
    *("etc/kubernetes", "var/lib/kubelet/config.yaml", "etc/default/kubelet"),
)
KEEP = "tar -C / -cf /root/kept.tar --ignore-failed-read " + " ".join(TOUCHED)
MEND = (
    "rm -rf /etc/rancher /etc/containerd/conf.d /etc/systemd/system/containerd.service.d/99-test.conf "
    "/etc/modules-load.d/90-gpuready.conf; tar -C / -xf /root/kept.tar; systemctl daemon-reload; "
    "sysctl -q -w net.ipv4.ip_forward=1"
)
MEMLOCK = "/etc/systemd/system/containerd.service.d"
# Each with the check, the reason and the status that it must cause.
FAULTS = {
    "echo '/swapfile none swap sw 0 0' >> /etc/fstab": ("node.swap", "SwapAtBoot", "warn"),
    "sysctl -q -w net.ipv4.ip_forward=0": ("node.sysctl", "SysctlDiffers", "fail"),
    "echo 'maxPods: 111' >> /var/lib/kubelet/config.yaml": ("node.kubelet_restart", "NotRestarted", "fail"),
    f"mkdir -p {MEMLOCK} && printf '[Service]\\nLimitMEMLOCK=64K\\n' > {MEMLOCK}/99-test.conf && "
    "systemctl daemon-reload": ("node.limits", "LimitDiffers", "fail"),
    "mkdir -p /etc/containerd/conf.d && echo 'version = 3' > /etc/containerd/conf.d/99-nvidia.toml": (
        *("node.containerd_version", "VersionsDiffer", "fail"),
    ),
    "mkdir -p /etc/rancher/node && touch /etc/rancher/node/password": ("node.joined_once", "JoinedTwice", "fail"),
    "echo ib_core > /etc/modules-load.d/90-gpuready.conf": ("node.modules", "ModuleForgotten", "warn"),
    "sed -i 's/SystemdCgroup = false/SystemdCgroup = true/' /etc/containerd/config.toml": (
        *("node.cgroup_driver", "DriverDiffers", "fail"),
    ),
}
# These hide what the others show.
MORE_FAULTS = {
    "echo 'cpuManagerPolicy: static' >> /var/lib/kubelet/config.yaml": ("node.cpu_manager", "NoReservation", "fail"),
    "printf 'memoryManagerPolicy: Static\\nreservedMemory: [{numaNode: 0, limits: {memory: 1Gi}}]\\n' "
    ">> /var/lib/kubelet/config.yaml": ("node.memory_manager", "MemorySum", "fail"),
    "true": ("node.kubelet_restart", "StateDiffers", "fail"),
}
Check = Callable[..., dict[str, Any]]


@pytest.fixture
def promised(machines: State, shell: Shell, tmp_path: Path) -> Path:
    """An inventory that promises the machines what they have now."""
    config = Api.connect(machines.kubeconfig).get(f"/api/v1/nodes/{WHOLE}/proxy/configz")["kubeletconfig"]
    said = shell(WHOLE, "systemctl show -p LimitMEMLOCK --value containerd kubelet")[1].split()
    assert len(set(said)) == 1
    topology = {"policy": config["topologyManagerPolicy"], "scope": config["topologyManagerScope"]}
    if options := config.get("topologyManagerPolicyOptions"):
        topology["options"] = options
    node = {"topology_manager": topology, "limits": {"memlock": said[0]}}
    table = {"rehearsal": {"rehearsal": True, "node": node}}
    text = f"import json\n_CLUSTERS = json.loads({json.dumps(table)!r})\n"
    (tmp_path / "inventory").write_text(text)
    return tmp_path / "inventory"


@pytest.fixture
def check(machines: State, promised: Path) -> Check:
    """`gpuready check --only 'node.*'` by that inventory."""

    def run(*options: str) -> dict[str, Any]:
        given = options or ("--only", "node.*")
        return commands.report(machines, "check", "--inventory", str(promised), *given)

    return run


@pytest.fixture
def mended(machines: State, shell: Shell) -> Iterator[Callable[[], None]]:
    """Puts the machine back as it was; done at the end in any case."""
    code, out = shell(BROKEN, KEEP, user="root")
    assert code == 0, out

    def mend() -> None:
        code, out = shell(BROKEN, MEND, user="root")
        assert code == 0, out

    yield mend
    mend()


def bad(report: dict[str, Any]) -> set[tuple[str, str, str, str]]:
    """What a report complains of."""
    return {
        (one["check"], one["reason"], one["status"], one["subject"]["name"])
        for one in report["results"]
        if one["status"] not in ("pass", "skip")
    }


def test_faults_are_named_with_their_machine_and_go_once_mended(
    check: Check, shell: Shell, mended: Callable[[], None]
) -> None:
    assert bad(check()) == set()
    for faults in (FAULTS, MORE_FAULTS):
        for fault in faults:
            code, out = shell(BROKEN, fault, user="root")
            assert code == 0, out
        report = check()
        assert report["verdict"] == "fail"
        assert bad(report) == {(*caused, BROKEN) for caused in faults.values()}
        mended()
        assert bad(check()) == set()


def test_a_machine_that_refuses_is_named_once(
    check: Check, shell: Shell, mended: Callable[[], None], tmp_path: Path
) -> None:
    code, out = shell(BROKEN, "rm /etc/sudoers.d/ops", user="root")
    assert code == 0, out
    folder = tmp_path / "bundle"
    report = check("--only", "node.*", "--save", str(folder))
    first, *rest = [one for one in report["results"] if one["status"] not in ("pass", "skip")]
    assert (first["id"], first["reason"]) == (f"node.reachable/node/{BROKEN}", "SshRefused")
    assert "sudo wants a password" in first["detail"]
    assert {one["caused_by"] for one in rest} == {first["id"]}
    assert report["exit_code"] == 2
    mended()

    # The same evidence, later and elsewhere.
    assert bad(check("--only", "node.*", "--from", str(folder))) == bad(report)
    # One node alone is asked alone.
    alone = check("--only", "node.*", "--node", WHOLE)
    assert {one["subject"]["name"] for one in alone["results"]} == {WHOLE}
    assert alone["exit_code"] == 0


def test_the_suite_that_users_run_after_provisioning(
    machines: State, shell: Shell, promised: Path, mended: Callable[[], None]
) -> None:
    suite = ("pytest", "-q", "tests/acceptance/test_node.py", "-p", "no:cacheprovider", "--inventory", str(promised))
    good = commands.run(*suite, state_dir=machines.folder, CLUSTER="rehearsal")
    assert good.returncode == 0, good.stdout[-3000:]
    for fault in list(FAULTS)[:2]:
        assert shell(BROKEN, fault, user="root")[0] == 0
    spoilt = commands.run(*suite, state_dir=machines.folder, CLUSTER="rehearsal")
    failed = {line.partition("::")[2].split(" ")[0] for line in spoilt.stdout.splitlines() if line.startswith("FAILED")}
    assert failed == {f"test_swap_is_off_and_stays_off[{BROKEN}]", f"test_sysctl[{BROKEN}]"}


def test_the_probe_is_a_command_of_its_own(machines: State) -> None:
    done = commands.gpuready(machines, "probe", "--file", "/etc/hostname")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["schema"] == 1 and said["files"]["/etc/hostname"]
