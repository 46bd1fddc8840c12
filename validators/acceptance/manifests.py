"""The objects of an acceptance run, as plain dicts. Pure: nothing here talks to the cluster."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from gpuready.charts_values.inventory import Cluster

from ..evidence import Object
from .plan import GPU, HOSTNAME, Target
from .verdicts import PROBE_LABEL, RUN_LABEL, WORKLOAD_LABEL

NAMESPACE = "gpuready"
PRIORITY_CLASS = "gpuready-probe"
APP_LABEL = "app.kubernetes.io/name"
OWNER_ANNOTATION = "gpuready.io/owner"
RENDEZVOUS_PORT = 29500

# Mirror them and name the mirror under `images` in inventory. Digests are not recorded.
IMAGES = {
    "nvidia-smi": "nvcr.io/nvidia/cuda:12.8.1-base-ubuntu24.04",
    "nccl": "nvcr.io/nvidia/pytorch:25.06-py3",
}


def smi_script() -> str:
    """The shell script of the nvidia-smi probe."""
    return files(__package__).joinpath("smi.sh").read_text(encoding="utf-8")


def nccl_script() -> str:
    """The Python program of the NCCL probe."""
    return files(__package__).joinpath("allreduce.py").read_text(encoding="utf-8")


def namespace() -> Object:
    """The permanent home of probes. Privileged, because RDMA needs locked memory."""
    return {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {
            "name": NAMESPACE,
            "labels": {APP_LABEL: "gpuready", "pod-security.kubernetes.io/enforce": "privileged"},
        },
    }


def priority_class() -> Object:
    """Below everything else, and it never pushes a pod out."""
    return {
        "apiVersion": "scheduling.k8s.io/v1",
        "kind": "PriorityClass",
        "metadata": {"name": PRIORITY_CLASS, "labels": {APP_LABEL: "gpuready"}},
        "value": -1000,
        "preemptionPolicy": "Never",
        "description": "gpuready probe pods",
    }


def anchor(run: str, seconds: int, owner: str) -> Object:
    """The Job that owns everything of a run and runs nothing itself.

    When its deadline passes it fails, its TTL deletes it, and the garbage collector takes what it owns: so
    a run that was killed leaves nothing. ``owner`` is the process behind the run, as ``host/pid``.
    """
    job = _job("anchor", run, "anchor", {"containers": [_container("anchor", "unused", ["true"], {})]}, seconds)
    job["metadata"]["annotations"] = {OWNER_ANNOTATION: owner}
    job["spec"] |= {"parallelism": 0, "completions": 1, "ttlSecondsAfterFinished": 5}
    return job


def anchor_name(run: str) -> str:
    """The anchor Job of a run."""
    return f"anchor-{run}"


def smi_job(run: str, number: int, target: Target, cluster: Cluster, owner: Object, seconds: int) -> Object:
    """nvidia-smi on one node, with all the GPUs that it offers."""
    spec = _pod_spec("nvidia-smi", ["sh", "-c", smi_script()], {}, cluster, [target])
    _ask_for_gpus(spec, target, cluster, run)
    return _owned(_job(f"smi-{number:04d}", run, "nvidia-smi", spec, seconds), owner)


def claim_name(run: str) -> str:
    """The ResourceClaimTemplate of a run."""
    return f"gpus-{run}"


def claim_template(run: str, api_version: str, owner: Object) -> Object:
    """A claim for every GPU of a node; for clusters where DRA serves the GPUs."""
    request: Object = {"deviceClassName": "gpu.nvidia.com", "allocationMode": "All"}
    # v1 and v1beta2 nest what v1beta1 keeps flat.
    flat = api_version.endswith("v1beta1")
    wanted = {"name": "gpus", **request} if flat else {"name": "gpus", "exactly": request}
    return _owned(
        {
            "apiVersion": api_version,
            "kind": "ResourceClaimTemplate",
            "metadata": {
                "name": claim_name(run),
                "namespace": NAMESPACE,
                "labels": _labels(run, "nvidia-smi"),
            },
            "spec": {"spec": {"devices": {"requests": [wanted]}}},
        },
        owner,
    )


def nccl_objects(
    run: str, workload: str, targets: Sequence[Target], cluster: Cluster, owner: Object, seconds: int
) -> list[Object]:
    """ConfigMap, headless Service and Indexed Job of one all-reduce over ``targets``, a pod on each."""
    name = f"{workload}-{run}"
    limits = {resource: str(share) for resource, share in targets[0].rdma.items()}
    spec = _pod_spec("nccl", ["python3", "/opt/gpuready/allreduce.py"], limits, cluster, targets)
    _ask_for_gpus(spec, targets[0], cluster, run)
    container = spec["containers"][0]
    container["env"] = [{"name": key, "value": value} for key, value in _nccl_env(name, targets).items()]
    container["ports"] = [{"name": "rendezvous", "containerPort": RENDEZVOUS_PORT}]
    container["securityContext"] = {"capabilities": {"add": ["IPC_LOCK"]}}
    container["volumeMounts"] = [
        {"name": "script", "mountPath": "/opt/gpuready", "readOnly": True},
        {"name": "shm", "mountPath": "/dev/shm"},
    ]
    spec["subdomain"] = name
    spec["volumes"] = [
        {"name": "script", "configMap": {"name": name}},
        {"name": "shm", "emptyDir": {"medium": "Memory"}},
    ]
    job = _job(workload, run, "nccl", spec, seconds, workload=workload)
    count = len(targets)
    job["spec"] |= {"completionMode": "Indexed", "completions": count, "parallelism": count}
    labels = _labels(run, "nccl", workload)
    meta: Object = {"name": name, "namespace": NAMESPACE, "labels": labels}
    config = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": meta,
        "data": {"allreduce.py": nccl_script()},
    }
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": dict(meta),
        # Ranks look each other up before they are ready.
        "spec": {"clusterIP": "None", "publishNotReadyAddresses": True, "selector": dict(labels)},
    }
    return [_owned(config, owner), _owned(service, owner), _owned(job, owner)]


def _ask_for_gpus(spec: Object, target: Target, cluster: Cluster, run: str) -> None:
    """All GPUs of a node: by the device plugin's resource, or by a claim where DRA serves them."""
    resources = spec["containers"][0]["resources"]
    if cluster.dra == "gpus":
        spec["resourceClaims"] = [{"name": "gpus", "resourceClaimTemplateName": claim_name(run)}]
        resources["claims"] = [{"name": "gpus"}]
    else:
        resources["limits"][GPU] = str(target.gpus)


def _nccl_env(name: str, targets: Sequence[Target]) -> dict[str, str]:
    """What the NCCL probe needs. Neither GDR level nor HCA list: the cluster's own settings are on trial."""
    return {
        "NCCL_DEBUG": "INFO",
        "NCCL_DEBUG_SUBSYS": "INIT,BOOTSTRAP,ENV,NET,GRAPH",
        "GPUREADY_MASTER": f"{name}-0.{name}.{NAMESPACE}.svc",
        "GPUREADY_PORT": str(RENDEZVOUS_PORT),
        "GPUREADY_NODES": str(len(targets)),
        "GPUREADY_GPUS": str(targets[0].gpus),
        "GPUREADY_MIN_BYTES": str(1 << 20),
        "GPUREADY_MAX_BYTES": str(8 << 30),
    }


def _pod_spec(
    probe: str, command: list[str], limits: Mapping[str, str], cluster: Cluster, targets: Sequence[Target]
) -> Object:
    wanted = sorted(target.hostname for target in targets)
    terms = [{"matchExpressions": [{"key": HOSTNAME, "operator": "In", "values": wanted}]}]
    affinity = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}
    return {
        "containers": [_container(probe, cluster.images.get(probe, IMAGES[probe]), command, limits)],
        "affinity": {"nodeAffinity": affinity},
        "tolerations": [_toleration(taint) for taint in cluster.gpu_taints],
        "priorityClassName": PRIORITY_CLASS,
    }


def _toleration(taint: Mapping[str, str]) -> dict[str, str]:
    return {"key": taint["key"], "operator": "Exists", "effect": taint["effect"]}


def _container(name: str, image: str, command: list[str], limits: Mapping[str, str]) -> Object:
    return {
        "name": name,
        "image": image,
        "command": command,
        "resources": {"limits": dict(limits)},
        "terminationMessagePolicy": "File",
    }


def _job(name: str, run: str, probe: str, spec: Object, seconds: int, *, workload: str = "") -> Object:
    labels = _labels(run, probe, workload or probe)
    pod: Object = {"restartPolicy": "Never", "automountServiceAccountToken": False, **spec}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": f"{name}-{run}", "namespace": NAMESPACE, "labels": labels},
        "spec": {
            "backoffLimit": 0,
            "activeDeadlineSeconds": seconds,
            "template": {"metadata": {"labels": dict(labels)}, "spec": pod},
        },
    }


def _labels(run: str, probe: str, workload: str = "") -> dict[str, str]:
    return {APP_LABEL: "gpuready", RUN_LABEL: run, PROBE_LABEL: probe, WORKLOAD_LABEL: workload or probe}


def _owned(item: Object, owner: Object) -> Object:
    reference: dict[str, Any] = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "name": owner["metadata"]["name"],
        "uid": owner["metadata"]["uid"],
        "blockOwnerDeletion": False,
    }
    item["metadata"]["ownerReferences"] = [reference]
    return item
