"""Which cluster a command means, and what is promised of it."""

from __future__ import annotations

import os
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path

from gpuready.charts_values import inventory
from gpuready.charts_values.errors import InputError
from gpuready.charts_values.kube import Api

from .expected import Expected


@dataclass(frozen=True)
class Target:
    """A cluster of `inventory` with its promises; ``api`` connects to it."""

    expected: Expected
    kubeconfig: str | None
    context: str | None

    def api(self, timeout: float) -> Api:
        """A connection whose requests are bounded by ``timeout`` seconds each."""
        return Api.connect(self.kubeconfig, self.context, timeout=timeout)


def inventory_file(given: str | None) -> Path:
    """--inventory, else $GPUREADY_INVENTORY, else ./inventory."""
    return Path(given or os.environ.get("GPUREADY_INVENTORY") or "inventory")


def resolve(args: Namespace, *, default_to_rehearsal: bool = False) -> Target:
    """The target of a command's options.

    Raises InputError where nothing says which cluster is meant: on-call must never page, or rest, on a
    simulation, so `rehearsal` is the default only while it is the inventory's one entry.
    """
    table, folder = inventory.read(inventory_file(args.inventory))
    name = args.cluster or os.environ.get("CLUSTER")
    if name is None and (args.kubeconfig or args.context):
        raise InputError("--kubeconfig and --context need --cluster NAME: what is promised stands in inventory")
    if name is None:
        others = sorted(set(table) - {inventory.DEFAULT_CLUSTER})
        if others and not default_to_rehearsal:
            raise InputError(f"which cluster? Give --cluster, one of: {', '.join(sorted(table))}")
        name = inventory.DEFAULT_CLUSTER
    cluster = inventory.select(table, name, folder)
    return Target(
        expected=Expected.of(cluster),
        kubeconfig=args.kubeconfig or cluster.kubeconfig,
        context=args.context or cluster.context,
    )
