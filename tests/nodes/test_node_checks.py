"""What is said of machines that are broken on purpose: the machine and the fault, and nothing once it is undone."""

from __future__ import annotations

import contextlib
import json
import shlex
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from gpuready.charts_values import inventory
from gpuready.charts_values.errors import GpureadyError
from gpuready.charts_values.kube import Api
from gpuready.rehearsal.state import State
from gpuready.validators import registry
from gpuready.validators.collect import machines as collect
from gpuready.validators.evidence import Evidence
from gpuready.validators.expected import Expected
from gpuready.validators.judge import judge
from gpuready.validators.model import Status

from ..rehearsal import commands
from . import faults, hardware
from .conftest import Shell
from .faults import Fault

BROKEN, WHOLE = "machine-1", "machine-0"
NAMES = (WHOLE, BROKEN)
FAULTS = [one for one in faults.FAULTS if not one.played]
PLAYED = [one for one in faults.FAULTS if one.played]
CHECKS = [one for one in registry.all_checks() if one.group == "node"]
SECONDS = 60.0
# A check, its status, the reason and the machine.
Bad = tuple[str, str, str, str]


class Bench:
    """The two machines: what inventory promises of them is what they have, and a test breaks one of them."""

    def __init__(self, now: State, shell: Shell) -> None:
        self.now, self._shell = now, shell
        self._api = Api.connect(now.kubeconfig)
        config = self._configz(WHOLE)
        topology = {"policy": config["topologyManagerPolicy"], "scope": config["topologyManagerScope"]}
        if options := config.get("topologyManagerPolicyOptions"):
            topology["options"] = options
        said = shell(WHOLE, "systemctl show -p LimitMEMLOCK --value containerd kubelet")[1].split()
        assert len(set(said)) == 1
        self.promise = {"node": {"topology_manager": topology, "limits": {"memlock": said[0]}}}
        self.run(BROKEN, faults.KEEP)

    def run(self, name: str, *scripts: str) -> None:
        """Root's scripts on a machine, all of them in one go; none may fail."""
        each = "\n".join(f"sh -c {shlex.quote(script)} || bad=1" for script in scripts)
        code, out = self._shell(name, f"{each}\nexit ${{bad:-0}}", user="root")
        assert code == 0, out

    @contextlib.contextmanager
    def broken(self, *made: Fault) -> Iterator[None]:
        """One machine with faults; they are undone in any case."""
        try:
            self.run(BROKEN, *(one.make for one in made))
            if any(one.kubelet == "restarted" for one in made):
                self._kubelet_answers()
            yield
        finally:
            self.run(BROKEN, *(one.undo for one in reversed(made)))
            if any(one.kubelet for one in made):
                self._kubelet_answers()

    def bad(self, *names: str, **promise: Any) -> set[Bad]:
        """What the checks complain of, by one probe of each machine (or of ``names``), as `gpuready check` does it."""
        assert self.now.entry
        expected = Expected.of(inventory.parse("rehearsal", {**self.now.entry, **self.promise, **promise}))
        evidence = Evidence()
        asked = {name: expected.cluster.ssh_nodes[name] for name in names or NAMES}
        collect.collect(evidence, asked, time.monotonic() + SECONDS, api=self._api)
        return {
            (one.check, one.status.value, one.finding.reason, one.finding.subject.name)
            for one in judge(expected, evidence, CHECKS)
            if one.status.rank >= Status.WARN.rank
        }

    def _configz(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = self._api.get(f"/api/v1/nodes/{name}/proxy/configz")["kubeletconfig"]
        return found

    def _kubelet_answers(self) -> None:
        def look() -> str:
            try:
                return "" if self._configz(BROKEN) else "nothing"
            except GpureadyError as error:
                return str(error)

        commands.until(look, lambda lacking: not lacking, SECONDS)


@pytest.fixture(scope="module")
def bench(machines: State, shell: Shell) -> Bench:
    return Bench(machines, shell)


@pytest.fixture(scope="module")
def promised(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An inventory that says the same."""
    file = tmp_path_factory.mktemp("promised") / "inventory"
    table = {"rehearsal": {"rehearsal": True, **bench.promise}}
    file.write_text(f"import json\n_CLUSTERS = json.loads({json.dumps(table)!r})\n")
    return file


def judged(report: dict[str, Any]) -> set[Bad]:
    """What a report complains of."""
    return {
        (one["check"], one["status"], one["reason"], one["subject"]["name"])
        for one in report["results"]
        if one["status"] not in ("pass", "skip")
    }


def name(one: Fault) -> str:
    """What pytest calls its test."""
    return f"{one.check}-{one.reason}"


def row(check: str) -> Fault:
    """The fault of a check."""
    return next(one for one in faults.FAULTS if one.check == check)


def named(one: Fault, found: set[Bad]) -> None:
    """The fault's own check names the machine and the reason; nothing else is said but what comes with it."""
    assert any((one.check, status, one.reason, BROKEN) in found for status in one.status.split(" or ")), found
    assert {name for *_, name in found} == {BROKEN}
    also = {check.id for check in CHECKS} if one.also == ("node.*",) else {one.check, *one.also}
    assert {check for check, *_ in found} == also


# -- each fault ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", FAULTS, ids=name)
def test_a_fault_is_named_with_its_machine_and_goes(fault: Fault, bench: Bench) -> None:
    with bench.broken(fault):
        found = bench.bad()
    named(fault, found)
    assert bench.bad(BROKEN) == set()


# -- the commands ----------------------------------------------------------------------------------------------------


def test_the_command_names_many_faults_of_one_machine(bench: Bench, promised: Path) -> None:
    check = ("check", "--inventory", str(promised), "--only", "node.*")
    quiet = [one for one in FAULTS if not (one.also or one.kubelet)]
    assert len(quiet) > 5
    with bench.broken(*quiet):
        report = commands.report(bench.now, *check)
    assert (report["verdict"], report["exit_code"]) == ("fail", 1)
    assert judged(report) == {(one.check, one.status, one.reason, BROKEN) for one in quiet}
    assert judged(commands.report(bench.now, *check)) == set()


def test_a_machine_that_refuses_is_named_once(bench: Bench, promised: Path, tmp_path: Path) -> None:
    check = ("check", "--inventory", str(promised), "--only", "node.*")
    with bench.broken(row("node.reachable")):
        report = commands.report(bench.now, *check, "--save", str(tmp_path / "bundle"))
    first, *rest = [one for one in report["results"] if one["status"] not in ("pass", "skip")]
    assert (first["id"], first["reason"]) == (f"node.reachable/node/{BROKEN}", "SshRefused")
    assert "sudo wants a password" in first["detail"]
    assert {one["caused_by"] for one in rest} == {first["id"]}
    assert report["exit_code"] == 2
    # The same evidence, later and elsewhere.
    assert judged(commands.report(bench.now, *check, "--from", str(tmp_path / "bundle"))) == judged(report)
    # One node alone is asked alone.
    alone = commands.report(bench.now, *check, "--node", WHOLE)
    assert {one["subject"]["name"] for one in alone["results"]} == {WHOLE}
    assert alone["exit_code"] == 0


def test_the_suite_that_users_run_after_provisioning(bench: Bench, promised: Path) -> None:
    suite = ("pytest", "-q", "tests/acceptance/test_node.py", "-p", "no:cacheprovider", "--inventory", str(promised))
    good = commands.run(*suite, state_dir=bench.now.folder, CLUSTER="rehearsal")
    assert good.returncode == 0, good.stdout[-3000:]
    with bench.broken(row("node.swap"), row("node.sysctl")):
        spoilt = commands.run(*suite, state_dir=bench.now.folder, CLUSTER="rehearsal")
    failed = {line.partition("::")[2].split(" ")[0] for line in spoilt.stdout.splitlines() if line.startswith("FAILED")}
    assert failed == {f"test_swap_is_off_and_stays_off[{BROKEN}]", f"test_sysctl[{BROKEN}]"}


def test_the_probe_is_a_command_of_its_own(bench: Bench) -> None:
    done = commands.gpuready(bench.now, "probe", "--file", "/etc/hostname")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["schema"] == 1 and said["files"]["/etc/hostname"]


# -- beside hardware that is played: last, since it stays until then ---------------------------------------------------


@pytest.fixture(scope="module")
def played(bench: Bench) -> Iterator[dict[str, Any]]:
    """Both machines show GPUs and NICs; what inventory then promises of them."""
    promise = hardware.promise(NAMES)
    try:
        for name in NAMES:
            bench.run(name, hardware.show())
        assert bench.bad(**promise) == set()
        yield promise
    finally:
        for name in NAMES:
            bench.run(name, hardware.hide())


@pytest.mark.parametrize("fault", PLAYED, ids=name)
def test_a_fault_of_hardware_is_named_with_its_machine_and_goes(
    fault: Fault, bench: Bench, played: dict[str, Any]
) -> None:
    with bench.broken(fault):
        found = bench.bad(**played)
    named(fault, found)
    assert bench.bad(BROKEN, **played) == set()
