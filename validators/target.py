"""Which cluster a command means, and what is promised of it."""

from __future__ import annotations

import os
import signal
import time
from argparse import Namespace
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from gpuready.charts_values import inventory
from gpuready.charts_values.errors import DeadlineError, InputError
from gpuready.charts_values.kube import Api

from . import fanout
from .expected import Expected

# The silence that one request bears; a run's own time may end it sooner.
REQUEST_SECONDS = 15.0


@dataclass(frozen=True)
class Target:
    """A cluster of `inventory` with its promises; ``api`` connects to it."""

    expected: Expected
    kubeconfig: str | None
    context: str | None

    def api(self, until: float) -> Api:
        """A connection that is given up ``until`` then; raises DeadlineError where the credentials take longer."""
        return connect(self.kubeconfig, self.context, until)


def connect(kubeconfig: str | None, context: str | None, until: float) -> Api:
    """A connection whose requests end ``until`` then (``time.monotonic``).

    Raises DeadlineError where the credentials are not there by then: an exec plugin may wait for a person.
    """
    where = f"kubeconfig {kubeconfig}" if kubeconfig else "the default kubeconfig"
    late = f"{where}: its exec plugin gave no credentials within {round(until - time.monotonic(), 1):g} s"
    before = _children()
    try:
        [api] = fanout.all_of([partial(Api.connect, kubeconfig, context, timeout=REQUEST_SECONDS)], until, late)
    except (DeadlineError, KeyboardInterrupt):
        # Of what this process started meanwhile, all belongs to the plugin.
        for pid in _children() - before:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        raise
    api.deadline = until
    return api


def _children() -> set[int]:
    """The processes that this one has started. Linux alone tells; elsewhere a plugin that hangs is left behind."""
    found: set[int] = set()
    for file in Path("/proc/self/task").glob("*/children"):
        with suppress(OSError):  # the thread ended
            found |= set(map(int, file.read_text().split()))
    return found


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
        given = f"--context {args.context}" if args.context else f"--kubeconfig {args.kubeconfig}"
        raise InputError(
            "--kubeconfig and --context need --cluster NAME: what is promised stands in inventory; "
            f"`gpuready learn {given}` drafts an entry"
        )
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
