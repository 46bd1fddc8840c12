"""`gpuready learn`: reads a cluster and prints the draft of its inventory entry."""

from __future__ import annotations

import json
import os
import time
from argparse import Namespace
from pathlib import Path

from gpuready.charts_values import inventory
from gpuready.charts_values.errors import InputError

from ..collect.cluster import RAIL_READS, Read, collect
from ..progress import Progress
from ..report import output
from ..target import connect, inventory_file
from .entry import SERVICE_CIDRS, entry_from
from .rails import POOLS
from .releases import INSTALLS

# What a draft needs beyond the evidence of `gpuready check`.
READS = (
    *RAIL_READS,
    Read(SERVICE_CIDRS, "/apis/networking.k8s.io/v1/servicecidrs/kubernetes", single=True),
    Read("services", "/api/v1/namespaces/default/services/kubernetes", single=True),
    Read(POOLS, "/apis/nv-ipam.nvidia.com/v1alpha1/ippools"),
    Read(INSTALLS, f"/api/v1/namespaces/kube-system/configmaps/{INSTALLS}", single=True),
)


def learn(args: Namespace) -> int:
    """Collect, draft, print; returns the exit code. Changes nothing."""
    until = time.monotonic() + args.timeout
    name, kubeconfig, context = _whereabouts(args)
    with Progress() as progress:
        api = connect(kubeconfig, context, until)
        evidence = collect(api, until=until, more=READS, on_read=lambda key: progress.say(f"read {key}"))
    if evidence.about.get("interrupted"):
        raise KeyboardInterrupt
    draft = entry_from(evidence, name, kubeconfig=kubeconfig, context=context)
    output.show(json.dumps(draft.to_json(), indent=2) + "\n" if args.format == "json" else draft.to_python())
    return 0


def _whereabouts(args: Namespace) -> tuple[str, str | None, str | None]:
    """The entry's name, kubeconfig and context: as given, else as inventory has them, be it incomplete."""
    if args.kubeconfig or args.context:
        file = str(Path(args.kubeconfig).expanduser().absolute()) if args.kubeconfig else None
        return args.cluster or args.context or "cluster", file, args.context
    name = args.cluster or os.environ.get("CLUSTER")
    if name is None:
        raise InputError("which cluster? Give --context, --kubeconfig, or --cluster of inventory")
    table, folder = inventory.read(inventory_file(args.inventory))
    if name in table and not table[name].get("rehearsal"):
        return name, table[name].get("kubeconfig"), table[name].get("context")
    cluster = inventory.select(table, name, folder)
    return name, cluster.kubeconfig, cluster.context
