"""What an nvidia-smi pod on each GPU node saw."""

from __future__ import annotations

from collections.abc import Iterator

from ..acceptance.verdicts import PodVerdict, cut_short, probe_pods
from ..evidence import Evidence
from ..expected import Expected
from ..model import Finding, Status, Subject
from ..registry import check
from .subjects import name_of, node, passed

WORKLOAD = "nvidia-smi"
_UPSTREAM = ("probes.run", "nodes.present", "nodes.ready", "gpu.allocatable", "gpu.operands", "dra.slices")


@check(
    "probes.run",
    title="the probes could be started, and nothing of them is left",
    proves="What the probe pods say comes from this run, and the cluster is as it was before.",
    rule="Every object of the run was accepted by the API server, and is gone at the end.",
    source="platform facts K04",
    fix="Read the API server's words in the detail: quota, admission and Pod Security speak there.",
    phase="accept",
)
def probes_run(expected: Expected, evidence: Evidence) -> Iterator[Finding]:
    """The run itself."""
    subject = Subject("cluster", expected.cluster.name)
    failure = evidence.failures.get("acceptance")
    left = ", ".join(evidence.about.get("leftovers") or ()) or str(evidence.about.get("cleanup_failed") or "")
    stays = f"; its objects may still be there: {left}" if left else ""
    if failure is not None and failure.kind == "forbidden":
        yield Finding(
            Status.UNPROVEN, subject, "PermissionMissing", "the identity may not start probes",
            failure.message + stays, fix="Grant the role that `gpuready rbac accept` prints.",
        )  # fmt: skip
    elif failure is not None and failure.kind == "unreachable":
        yield Finding(
            Status.ERROR, subject, "Unreachable", "the API stopped answering while the probes ran",
            failure.message + stays, fix="Run gpuready accept again.",
        )  # fmt: skip
    elif failure is not None:
        cause = "the probes could not be run"
        yield Finding(Status.FAIL, subject, "ProbesRefused", cause, failure.message + stays)
    elif cut_short(evidence):
        yield Finding(
            Status.UNPROVEN, subject, "CutShort", "the probes were cut short", cut_short(evidence) + stays,
            fix="Run gpuready accept again, with a longer --timeout where the time was up.",
        )  # fmt: skip
    elif left:
        yield Finding(
            Status.WARN, subject, "Leftovers", "objects of the run are still there", left,
            fix="They go with the run's anchor Job; look again in a minute: kubectl -n gpuready get jobs,pods",
        )  # fmt: skip
    else:
        yield passed(subject)


@check(
    "smi.pod",
    title="nvidia-smi runs in a pod on every GPU node",
    proves="Scheduler, container runtime, device plugin and driver work together on that node.",
    rule="The probe pod of each expected node ended with exit code 0.",
    source="health facts E39; it proves NVML, neither CUDA nor RDMA",
    fix="Read the pod's text in logs/nvidia-smi of the bundle; the exit code tells the layer (health facts D.3).",
    needs=("pods", "nodes"),
    after=_UPSTREAM,
    phase="accept",
    tier="gpu",
)
def smi_pod(expected: Expected, evidence: Evidence) -> Iterator[Finding]:
    """One verdict per expected node."""
    ran = {pod.node or _planned_node(evidence, pod): pod for pod in probe_pods(evidence, WORKLOAD)}
    for name in _expected_names(expected, evidence):
        pod = ran.get(name)
        where = (f"logs/{WORKLOAD}/{pod.pod}.log",) if pod else ()
        if pod is None:
            reason = evidence.about.get("not_probed", {}).get(name) or cut_short(evidence)
            reason = str(reason or "no probe pod was made for it")
            yield Finding(
                Status.UNPROVEN, node(name), "NotProbed", "nvidia-smi did not run on the node", reason,
                fix="Free the node, or wait for its jobs, and run gpuready accept again.",
            )  # fmt: skip
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
    source="health facts E41, E43",
    fix="On the node: nvidia-smi -L and lspci -d 10de:; a GPU in lspci alone has fallen off the driver.",
    needs=("pods", "nodes"),
    after=("probes.run", "smi.pod", "gpu.allocatable", "gpu.product", "versions.driver"),
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
            yield Finding(
                Status.UNPROVEN, node(name), "NotProbed", "nvidia-smi told nothing about the node's GPUs",
                fix="Mend what keeps the probe from running, then run gpuready accept again.",
            )  # fmt: skip
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


def _planned_node(evidence: Evidence, pod: PodVerdict) -> str:
    """The node that a pod was meant for; its affinity names it also while it is pending."""
    return str(evidence.about.get("planned", {}).get(pod.pod.rpartition("-")[0], ""))


def _label_form(product: str) -> str:
    """GFD writes a product's name with dashes for spaces."""
    return product.strip().replace(" ", "-")


def _first_line(evidence: Evidence, pod: PodVerdict) -> str:
    log = evidence.logs.get(WORKLOAD, {}).get(pod.pod, "")
    return next((line.strip() for line in log.splitlines() if line.strip()), "no output")[:200]
