"""Asking machines over SSH: the command, what its failures mean, and an end in time."""

from __future__ import annotations

import json
import os
import stat
import time
from pathlib import Path

import pytest
from gpuready.charts_values.errors import GpureadyError, InputError, RefusedError, UnreachableError
from gpuready.validators.collect import machines
from gpuready.validators.evidence import Evidence

from .machines import real_machine


@pytest.fixture
def ssh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder at the front of PATH, for a program called ssh."""
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    return tmp_path


def write(folder: Path, script: str) -> None:
    file = folder / "ssh"
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(file.stat().st_mode | stat.S_IXUSR)


def collected(seconds: float = 20.0, **nodes: dict[str, object]) -> Evidence:
    evidence = Evidence()
    machines.collect(evidence, nodes, time.monotonic() + seconds)
    return evidence


def test_the_command_is_what_inventory_says_and_writes_nothing() -> None:
    data = {
        "ssh_hostname": "192.0.2.7",
        "ssh_port": 2222,
        "ssh_user": "ops",
        "ssh_key": "/k/id",
        "_sudo": True,
        "ssh_known_hosts_file": "/k/known hosts",
        "ssh_strict_host_key_checking": "accept-new",
    }
    argv = machines.command("gpu-0", data, ["/etc/fstab"])
    assert argv[-3:] == ["--", "192.0.2.7", "sudo -n python3 - --file /etc/fstab"]
    assert argv[argv.index("-p") + 1] == "2222" and argv[argv.index("-l") + 1] == "ops"
    assert {"BatchMode=yes", "StrictHostKeyChecking=yes", "UpdateHostKeys=no", "ControlMaster=no"} <= set(argv)
    assert 'UserKnownHostsFile="/k/known hosts"' in argv
    assert machines.command("gpu-0", {"_sudo": True, "ssh_user": "root"}, [])[-2:] == ["gpu-0", "python3 -"]
    with pytest.raises(InputError, match="is no host name"):
        machines.command("gpu-0", {"ssh_hostname": "-oProxyCommand=x"}, [])


@pytest.mark.parametrize(
    ("code", "errors", "output", "error", "text"),
    [
        (255, "ops@gpu-0: Permission denied (publickey).", "", RefusedError, "accepts none of the keys"),
        (255, "Host key verification failed.", "", RefusedError, "host key is not known"),
        (255, "ssh: connect to host x port 22: Connection refused", "", UnreachableError, "Connection refused"),
        (255, "", "", UnreachableError, "no word"),
        (1, "sudo: a password is required", "", RefusedError, "sudo wants a password"),
        (1, "ops is not in the sudoers file.", "", RefusedError, "may not use sudo"),
        (127, "bash: line 1: python3: command not found", "", RefusedError, "no python3"),
        (1, "sudo: python3: command not found", "", RefusedError, "no python3"),
        (1, "SyntaxError: invalid syntax", "", GpureadyError, "exit 1: SyntaxError"),
        (0, "", "Welcome to the bastion", GpureadyError, "no probe: Welcome"),
    ],
)
def test_a_failure_is_one_line_that_says_what_to_do(
    code: int, errors: str, output: str, error: type[GpureadyError], text: str
) -> None:
    found = machines._why(code, errors, output)
    assert isinstance(found, error)
    assert text in str(found) and "\n" not in str(found)


def test_a_banner_before_the_probe_is_passed_over(ssh: Path) -> None:
    (ssh / "probe.json").write_text(json.dumps(real_machine()))
    write(ssh, f"cat > /dev/null; echo 'Authorised use only {{'; cat {ssh}/probe.json")
    evidence = collected(one={}, two={})
    assert evidence.failures == {}
    assert {json.loads(files["probe.json"])["host"] for files in evidence.nodes.values()} == {"machine-0"}


def runs(pid: int) -> bool:
    """Whether a process is there, and no zombie."""
    try:
        return bool(Path(f"/proc/{pid}/cmdline").read_bytes())
    except OSError:
        return False


def test_a_machine_that_hangs_holds_nobody_back_and_leaves_nothing(ssh: Path) -> None:
    (ssh / "probe.json").write_text(json.dumps(real_machine()))
    write(ssh, f'case "$*" in *slow*) echo $$ > {ssh}/pid; exec sleep 60 ;; *) cat {ssh}/probe.json ;; esac')
    began = time.monotonic()
    evidence = collected(2.0, slow={}, fast={})
    assert time.monotonic() - began < 10
    assert set(evidence.nodes) == {"fast"}
    assert evidence.failures["nodes/slow/probe.json"].kind == "unreachable"
    pid = int((ssh / "pid").read_text())
    ends = time.monotonic() + 5
    while runs(pid):
        assert time.monotonic() < ends
        time.sleep(0.05)


def test_without_ssh_each_machine_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    evidence = collected(one={})
    assert "has no ssh; install openssh-client" in evidence.failures["nodes/one/probe.json"].message
