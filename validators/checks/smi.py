"""What an nvidia-smi pod on each GPU node saw."""

from __future__ import annotations

from collections.abc import Iterator

from ..acceptance.verdicts import PodVerdict, cut_short, probe_pods, refusals
from ..evidence import Evidence
from ..expected import Expected
from ..model import Finding, Status
from ..registry import check
from .subjects import NODES, PROBES, name_of, node, not_probed, passed

WORKLOAD = "nvidia-smi"
_UPSTREAM = (*PROBES, *NODES, "nodes.schedulable", "gpu.allocatable", "gpu.operands", "dra.slices")


@check(
    "smi.pod",
    title="nvidia-smi runs in a pod on every GPU node",
    proves="Scheduler, container runtime, device plugin and driver work together on that node.",
    rule="The probe pod of each expected node ended with exit code 0.",
    source="nvidia-smi(1), RETURN VALUE; it proves NVML, neither CUDA nor RDMA",
    fix="Read the pod's text in logs/nvidia-smi of the bundle; RETURN VALUE of nvidia-smi(1) tells the layer.",
    needs=("pods", "nodes"),
    after=_UPSTREAM,
    phase="accept",
    tier="gpu",
)
def smi_pod(expected: Expected, evidence: Evidence) -> Iterator[Finding]:
    """One verdict per expected node."""
    refused = {_planned_node(evidence, f"{job}-"): why for job, why in refusals(evidence).items()}
    ran = {pod.node or _planned_node(evidence, pod.pod): pod for pod in probe_pods(evidence, WORKLOAD)}
    for name in _expected_names(expected, evidence):
        pod = ran.get(name)
        where = (f"logs/{WORKLOAD}/{pod.pod}.log",) if pod else ()
        if pod is None:
            reason = evidence.about.get("not_probed", {}).get(name) or refused.get(name) or cut_short(evidence)
            cause = "nvidia-smi did not run on the node"
            yield not_probed(name, cause, str(reason or "no probe pod was made for it"))
        elif pod.exit_code == 0:
            yield passed(node(name), f"exit 0, {pod.message.get('gpus', '?')} GPUs", evidence=where)
        elif pod.exit_code is None and cut_short(evidence):
            yield Finding(
                Status.UNPROVEN, node(name), "CutShort", "nvidia-smi did not end on the node in time",
                cut_short(evidence), fix="Run gpuready accept again.",
            )  # fmt: skip
        elif pod.exit_code is None:
            yield Finding(
                Status.FAIL,
                node(name),
                "PodDidNotRun",
                "the nvidia-smi pod did not run",
                pod.waiting or f"phase {pod.phase}",
                expected="exit 0",
                observed=pod.phase,
                fix="Read why in the detail; ContainerCreating for long means runtime or CDI.",
            )
        else:
            yield Finding(
                Status.FAIL,
                node(name),
                "SmiFailed",
                "nvidia-smi failed on the node",
                _first_line(evidence, pod),
                expected="exit 0",
                observed=f"exit {pod.exit_code}",
                evidence=where,
            )


@check(
    "smi.gpus",
    title="nvidia-smi shows all GPUs of the promised product and driver",
    proves="The driver itself sees what the node was bought with.",
    rule="Count, product and driver version that nvidia-smi printed equal inventory's.",
    source="nvidia-smi(1), -q -x",
    fix="On the node: nvidia-smi -L and lspci -d 10de:; a GPU in lspci alone has fallen off the driver.",
    needs=("pods", "nodes"),
    after=(*_UPSTREAM, "smi.pod", "gpu.product", "versions.driver"),
    phase="accept",
    tier="gpu",
)
def smi_gpus(expected: Expected, evidence: Evidence) -> Iterator[Finding]:
    """Count, product, driver."""
    pods = {pod.node: pod for pod in probe_pods(evidence, WORKLOAD) if pod.node and pod.exit_code == 0}
    groups = {name_of(one): group for one, group in expected.gpu_nodes(evidence.objects("nodes"))}
    for name in _expected_names(expected, evidence):
        pod, group = pods.get(name), groups.get(name)
        if pod is None or group is None:
            yield not_probed(name, "nvidia-smi told nothing about the node's GPUs")
            continue
        seen = (
            pod.message.get("gpus"),
            str(pod.message.get("product", "")),
            str(pod.message.get("driver", "")),
        )
        wanted = (group.gpus, group.gpu_product, expected.cluster.driver_version)
        where = (f"logs/{WORKLOAD}/{pod.pod}.log", f"nodes/{name}/nvidia-smi.xml")
        if seen[0] != wanted[0]:
            cause, reason = "nvidia-smi shows another number of GPUs", "CountDiffers"
            detail, pair = f"{seen[0]} of {wanted[0]}", (str(wanted[0]), str(seen[0]))
        elif _label_form(seen[1]) != _label_form(wanted[1]):
            cause, reason = "nvidia-smi shows another product", "ProductDiffers"
            detail, pair = f"{seen[1]} instead of {wanted[1]}", (wanted[1], seen[1])
        elif seen[2] != wanted[2]:
            cause, reason = "nvidia-smi shows another driver", "DriverDiffers"
            detail, pair = f"{seen[2]} instead of {wanted[2]}", (wanted[2], seen[2])
        else:
            yield passed(node(name), f"{seen[0]} x {seen[1]}, driver {seen[2]}", evidence=where)
            continue
        yield Finding(
            Status.FAIL, node(name), reason, cause, detail, expected=pair[0], observed=pair[1], evidence=where
        )


def _expected_names(expected: Expected, evidence: Evidence) -> list[str]:
    present = [name_of(one) for one, _ in expected.gpu_nodes(evidence.objects("nodes"))]
    named = [n for n, group in expected.missing(evidence.objects("nodes")) if group.capacity != "spot"]
    return sorted({*present, *named})


def _planned_node(evidence: Evidence, pod: str) -> str:
    """The node that a pod was meant for; its affinity names it also while it is pending."""
    return str(evidence.about.get("planned", {}).get(pod.rpartition("-")[0], ""))


def _label_form(product: str) -> str:
    """GFD writes a product's name with dashes for spaces."""
    return product.strip().replace(" ", "-")


def _first_line(evidence: Evidence, pod: PodVerdict) -> str:
    log = evidence.logs.get(WORKLOAD, {}).get(pod.pod, "")
    return next((line.strip() for line in log.splitlines() if line.strip()), "no output")[:200]
