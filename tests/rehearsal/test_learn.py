"""`gpuready learn` on a real API server: its draft is an entry that the very cluster keeps."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import pytest
from gpuready.charts_values import inventory
from gpuready.rehearsal.state import State

from . import installer
from .commands import gpuready, run
from .test_check import kubeconfig_for, one_line
from .trouble import Trouble, proxy


def drafted(text: str) -> dict[str, Any]:
    """The printed text as the table of an inventory file."""
    table: dict[str, Any] = ast.literal_eval("{\n" + text + "}")
    return table


def test_the_cluster_keeps_what_was_drafted_of_it(installed: State, tmp_path: Path) -> None:
    done = gpuready(installed, "learn", "--kubeconfig", str(installed.kubeconfig), "--context", "rehearsal")
    assert (done.returncode, done.stderr) == (0, "")
    (name, entry), *_ = drafted(done.stdout).items()
    cluster = inventory.parse(name, entry)
    assert (name, cluster.cluster_uid, cluster.kubeconfig) == ("rehearsal", installed.uid, str(installed.kubeconfig))
    promised = inventory.parse("rehearsal", installed.entry)
    for key in ("platform", "pod_cidr", "service_cidr", "driver_version", "driver_owner", "dra", "ofed_owner"):
        assert getattr(cluster, key) == getattr(promised, key), key
    (group,), (truth,) = cluster.groups, promised.groups
    for key in ("nodes", "count", "gpu_product", "resources", "rdma", "capacity", "taints"):
        assert getattr(group, key) == getattr(truth, key), key

    file = tmp_path / "inventory"
    file.write_text("_CLUSTERS = {\n" + done.stdout.replace('"rehearsal": {', '"mine": {') + "}\n")
    checked = gpuready(installed, "check", "--inventory", str(file), "--cluster", "mine")
    assert checked.returncode == 0, checked.stdout
    # Nodes that are simulated make a rehearsal, whatever the entry is called and says.
    assert checked.stdout.startswith("REHEARSAL PASS check")
    again = gpuready(installed, "learn", "--inventory", str(file), "--cluster", "mine", "-o", "json")
    assert json.loads(again.stdout)["entry"]["groups"] == entry["groups"]


def test_the_installer_changes_nothing_by_the_draft(installed: State, tmp_path: Path) -> None:
    done = gpuready(installed, "learn", "--kubeconfig", str(installed.kubeconfig), "-o", "json")
    entry = json.loads(done.stdout)["entry"]
    planned = installer.plan(installed.folder, installer.inventory(tmp_path, **entry))
    assert len(planned) > 10
    assert [operation for operation, changes in planned.items() if changes] == []


def test_it_reads_a_fixed_number_of_objects_and_changes_none(
    installed: State, rehearsal: State, tmp_path: Path
) -> None:
    asked = []
    for number, now in enumerate((installed, rehearsal)):
        folder = tmp_path / str(number)
        folder.mkdir()
        with proxy(now, folder) as network:
            done = gpuready(now, "learn", "--kubeconfig", str(network.kubeconfig()))
            assert done.returncode == 0, done.stderr
            asked.append(sorted(network.seen))
    assert asked[0] == asked[1]
    assert all(one.startswith("GET ") for one in asked[0])


def test_the_role_of_check_is_enough(installed: State, tmp_path: Path) -> None:
    file = kubeconfig_for(installed, "check", tmp_path)
    mine = gpuready(installed, "learn", "--kubeconfig", str(file), "-o", "json")
    other = gpuready(installed, "learn", "--kubeconfig", str(installed.kubeconfig), "-o", "json")
    weak, strong = json.loads(mine.stdout), json.loads(other.stdout)
    assert weak["entry"].pop("kubeconfig") == str(file)
    strong["entry"].pop("kubeconfig")
    assert weak == strong
    assert not any("could not be read" in text.lower() for text in (*weak["notes"], *weak["comments"].values()))


def test_a_bare_cluster_is_drafted_with_its_gaps(rehearsal: State) -> None:
    done = gpuready(rehearsal, "learn", "--cluster", "rehearsal")
    assert done.returncode == 0
    assert "fill in: no node shows a GPU" in done.stdout
    assert drafted(done.stdout)["rehearsal"]["service_cidr"] == rehearsal.entry["service_cidr"]


def test_what_cannot_be_read_is_left_open(installed: State, tmp_path: Path) -> None:
    with proxy(installed, tmp_path) as network:
        network.inflict(Trouble("status", where="servicecidrs|/services/"), Trouble("hang", where="daemonsets"))
        done = gpuready(installed, "learn", "--kubeconfig", str(network.kubeconfig()), "--timeout", "5", seconds=14)
    assert done.returncode == 0
    assert "# Could not be read: daemonsets.apps, servicecidrs.networking.k8s.io, services." in done.stdout
    assert '"service_cidr": "",  # fill in: ' in done.stdout


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (("learn",), "which cluster? Give --context, --kubeconfig, or --cluster of inventory"),
        (("learn", "--cluster", "pord"), "no cluster 'pord'"),
        (("learn", "--context", "nope"), "nope"),
        (("check", "--kubeconfig", "f"), "`gpuready learn --kubeconfig f` drafts an entry"),
        (("check", "--context", "c"), "`gpuready learn --context c` drafts an entry"),
    ],
)
def test_bad_input_is_one_line(installed: State, tmp_path: Path, args: tuple[str, ...], told: str) -> None:
    done = run("gpuready", *args, state_dir=installed.folder, KUBECONFIG=str(installed.kubeconfig))
    assert told in one_line(done)
