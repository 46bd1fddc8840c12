"""One machine: a systemd-nspawn container that boots Debian, in a network and control group of its own."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from . import host, plan
from .namespaces import Namespace, mount
from .plan import Machine, Plan

# How systemd-nspawn ends when its machine reboots.
REBOOT = 133


class Boot:
    """What it takes to boot a machine, again and again on the same disk."""

    def __init__(self, machine: Machine, plan_: Plan, base: Path, kubelet: Path) -> None:
        self.machine = machine
        self.space = Namespace()
        self.root = plan_.home / machine.name / "root"
        self.group = f"{plan.group(plan_.folder)}/{machine.name}"
        self._disk = self.root.parent
        self._kubelet = kubelet
        self._log = plan_.home / f"{machine.name}.log"
        self._mount(base)

    def _mount(self, base: Path) -> None:
        for name in ("root", "upper", "work", "containerd"):
            (self._disk / name).mkdir(parents=True, exist_ok=True)
        layers = f"lowerdir={base},upperdir={self._disk / 'upper'},workdir={self._disk / 'work'}"
        mount("-t", "overlay", "-o", layers, "overlay", str(self.root))

    async def run(self) -> int:
        """Boot it, and wait until it is off; returns the exit code of systemd-nspawn."""
        host.kill_group(self.group)
        groups = host.make_group(self.group)

        with self._log.open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                *self._command(),
                env={**os.environ, "SYSTEMD_NSPAWN_API_VFS_WRITABLE": "network", "SYSTEMD_LOG_LEVEL": "warning"},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=lambda: host.enter(groups),
            )
        return await process.wait()

    def _command(self) -> list[str]:
        return [
            "systemd-nspawn",
            "--quiet",
            "--boot",
            f"--directory={self.root}",
            f"--machine={self.group.replace('/', '-')}",
            f"--hostname={self.machine.name}",
            f"--network-namespace-path={self.space.path}",
            # Without systemd on the host, and without a trace in its list of machines.
            "--register=no",
            "--keep-unit",
            "--capability=all",
            # containerd and runc need these, which containers normally do not get.
            "--system-call-filter=add_key keyctl bpf",
            "--bind=/dev/kmsg",
            f"--bind={self._disk / 'containerd'}:/var/lib/containerd",
            f"--bind-ro={self._kubelet}:/usr/bin/kubelet",
            "--resolv-conf=off",
            "--timezone=off",
            "--link-journal=no",
            "--console=read-only",
            "--kill-signal=SIGRTMIN+3",
        ]
