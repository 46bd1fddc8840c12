"""The process that holds the machines: their namespaces, mounts, relay, registry, and the power button.

Run as ``python -m gpuready.rehearsal.machines --state-dir D --base ROOT``. A machine that reboots, or is
switched off, is booted again on the same disk. When this process ends the machines lose their network and are
ended by the next `up` or `down`.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from pathlib import Path

from gpuready.charts_values.errors import GpureadyError, ToolError

from .. import fleet, state
from ..engine.parts import machine as architecture
from . import host, join, namespaces, network, registry
from .machine import REBOOT, Boot
from .plan import API_PORT, IMAGES_PORT, Plan, group

# A machine that ends sooner, so often in a row, is broken.
_SOON = 5.0
_TRIES = 3


def main() -> None:
    """Hold the machines until one of them cannot be booted."""
    parser = argparse.ArgumentParser(prog="gpuready.rehearsal.machines")
    parser.add_argument("--state-dir", type=Path, required=True)
    parser.add_argument("--base", type=Path, required=True, help="the root file system that the machines share")
    args = parser.parse_args()
    now = state.load(args.state_dir)
    if now is None or now.machines is None:
        sys.exit(f"error: {args.state_dir} knows of no machines")
    plan = now.machines
    try:
        # First of all: by its control group it is found, whatever happens.
        host.enter(host.make_group(f"{group(plan.folder)}/holder"))
        namespaces.own_mounts()
        kubelet = (now.bin / "kubelet").resolve()
        boots = [Boot(machine, plan, args.base, kubelet) for machine in plan.machines]
        services = fleet.load_profile(now.profile).network.services
        for boot in boots:
            # What a machine was changed to survives: its files are written before its first boot alone.
            if not (boot.root / join.DONE).exists():
                join.write(boot.machine, plan, now.folder / "components", services, boot.root)
        hub = namespaces.Namespace()
        network.connect(plan, hub, [boot.space for boot in boots])
        busybox = args.base / "bin" / "busybox"
        asyncio.run(_hold(plan, hub, boots, now.ports["kube-apiserver"], busybox))
    except (GpureadyError, OSError) as error:
        sys.exit(f"error: {error}")


async def _hold(plan: Plan, hub: namespaces.Namespace, boots: list[Boot], port: int, busybox: Path) -> None:
    api = await network.relay(hub.listen(plan.gateway, API_PORT), port)
    images = await registry.serve(hub.listen(plan.gateway, IMAGES_PORT), busybox, architecture())
    async with api, images:
        await asyncio.gather(*(_keep_on(boot) for boot in boots))


async def _keep_on(boot: Boot) -> None:
    soon = 0
    while soon < _TRIES:
        began = time.monotonic()
        code = await boot.run()
        soon = soon + 1 if time.monotonic() - began < _SOON and code != REBOOT else 0
    raise ToolError(f"{boot.machine.name} does not boot: systemd-nspawn ended {_TRIES} times, last with exit {code}")


if __name__ == "__main__":
    main()
