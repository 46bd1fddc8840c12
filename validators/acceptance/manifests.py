"""The objects of an acceptance run, as plain dicts. Pure: nothing here talks to the cluster."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from gpuready.charts_values.inventory import Cluster, Group

from ..evidence import Object
from ..nccl_evidence import LARGEST_BYTES
from .plan import GPU, HOSTNAME, NET, Target
from .verdicts import APP_LABEL as APP_LABEL
from .verdicts import NAMESPACE as NAMESPACE
from .verdicts import PROBE_LABEL, RUN_LABEL, WORKLOAD_LABEL

PRIORITY_CLASS = "gpuready-probe"
OWNER_ANNOTATION = "gpuready.io/owner"
RENDEZVOUS_PORT = 29500
# What Multus reads.
NETWORKS_ANNOTATION = "k8s.v1.cni.cncf.io/networks"
_NICS_ONLY = {"NCCL_MNNVL_ENABLE": "0"}
# What each GPU's rank takes of a node, half of which it leaves alone: threads that poll, and pinned buffers.
_CPUS_PER_GPU = 4
_MIB_PER_GPU = 8 << 10
# The user's own NCCL settings, which every all-reduce takes over; namespace gpuready, by the keys' names.
NCCL_ENV = "nccl-env"
# A pod that hangs gives up, and prints its logs, before its Job ends it.
_LAST_SECONDS = 60
# The only message size of a search.
SEARCH_BYTES = 2 << 30
# The workload that the objects of a search are labelled with, and the file of its state.
SEARCH = "nccl-search"
SEARCH_FILE = "search.json"

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


def compute_domain(name: str, run: str, workload: str) -> Object:
    """The ComputeDomain that lets the pods of a run reach each other's GPUs over NVLink.

    The DRA driver makes the claim template of the same name, of which each pod takes a channel.
    """
    return {
        "apiVersion": "resource.nvidia.com/v1beta1",
        "kind": "ComputeDomain",
        "metadata": {"name": name, "namespace": NAMESPACE, "labels": _labels(run, "nccl", workload)},
        # 0: as many nodes as have pods with a channel.
        "spec": {"numNodes": 0, "channel": {"resourceClaimTemplate": {"name": name}}},
    }


def nccl_objects(
    run: str, workload: str, targets: Sequence[Target], cluster: Cluster, owner: Object, seconds: int
) -> list[Object]:
    """ConfigMap, headless Service and Indexed Job of one all-reduce over ``targets``, a pod on each.

    Where NVLink leads from node to node also a ComputeDomain, unless the run is ``NET``, which is to take the NICs.
    """
    name = f"{workload}-{run}"
    by_nic = workload.startswith(NET)
    env = _nccl_env(f"{name}-0.{name}", targets, seconds) | (_NICS_ONLY if by_nic else {})
    spec = _nccl_spec(run, name, env, targets, cluster)
    linked = not by_nic and any(one.clique for one in targets)
    domain = [compute_domain(name, run, workload)] if linked else []
    if domain:
        _claim(spec, "nvlink", name)
    job = _nccl_job(workload, run, spec, seconds, targets, workload)
    labels = _labels(run, "nccl", workload)
    items = (*domain, *_script_and_service(name, labels, labels), job)
    return [_owned(item, owner) for item in items]


def search_name(run: str) -> str:
    """The objects that the runs of a search share: script, Service, and the state under the same name."""
    return f"{SEARCH}-{run}"


def search_objects(run: str, owner: Object) -> list[Object]:
    """The script of a search and the Service under which its ranks find each other."""
    labels = _labels(run, "nccl", SEARCH)
    everyone = {RUN_LABEL: run, PROBE_LABEL: "nccl"}
    return [_owned(item, owner) for item in _script_and_service(search_name(run), labels, everyone)]


def search_state(run: str, texts: Mapping[str, str], owner: Object) -> Object:
    """What a search knows so far, from which the next run goes on where this one is killed."""
    meta = {"name": f"search-{run}", "namespace": NAMESPACE, "labels": _labels(run, "nccl", SEARCH)}
    return _owned({"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": dict(texts)}, owner)


def search_job(
    run: str,
    name: str,
    workload: str,
    targets: Sequence[Target],
    rails: Sequence[str],
    repeats: int,
    cluster: Cluster,
    owner: Object,
    seconds: int,
) -> Object:
    """One short all-reduce of a search, over NICs and not NVLink between nodes; with ``rails`` each by itself.

    Only here, and only where a rail is to be measured by itself, does gpuready choose NICs: the script sets
    NCCL_IB_HCA to each of ``rails`` by its exact name.
    """
    env = _nccl_env(f"{name}-{run}-0.{search_name(run)}", targets, seconds) | _NICS_ONLY
    env |= {
        # What it logs beyond warnings the acceptance run has shown already.
        "NCCL_DEBUG": "WARN",
        "GPUREADY_MIN_BYTES": str(SEARCH_BYTES),
        "GPUREADY_MAX_BYTES": str(SEARCH_BYTES),
        "GPUREADY_REPEATS": str(repeats),
    }
    if rails:
        env["GPUREADY_RAILS"] = ",".join(rails)
    spec = _nccl_spec(run, search_name(run), env, targets, cluster)
    return _owned(_nccl_job(name, run, spec, seconds, targets, workload), owner)


def _nccl_spec(run: str, name: str, env: Mapping[str, str], targets: Sequence[Target], cluster: Cluster) -> Object:
    """A pod of an all-reduce; ``name`` is that of its script's ConfigMap and of its Service."""
    limits = {resource: str(share) for resource, share in targets[0].rdma.items()} | _own_cpus(targets)
    spec = _pod_spec("nccl", ["python3", "/opt/gpuready/allreduce.py"], limits, cluster, targets)
    _ask_for_gpus(spec, targets[0], cluster, run)
    container = spec["containers"][0]
    container["env"] = [{"name": key, "value": value} for key, value in env.items()]
    container["envFrom"] = [{"configMapRef": {"name": NCCL_ENV, "optional": True}}]
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
    return spec


def _own_cpus(targets: Sequence[Target]) -> dict[str, str]:
    """CPUs and memory that make the pods Guaranteed; none where a node does not say what it has.

    Only such a pod gets CPUs and memory beside its GPUs and NICs from the Topology Manager.
    """
    gpus = targets[0].gpus
    cpus = min(_CPUS_PER_GPU * gpus, min(one.cpus for one in targets) // 2)
    mib = min(_MIB_PER_GPU * gpus, min(one.memory_mib for one in targets) // 2)
    return {"cpu": str(cpus), "memory": f"{mib}Mi"} if cpus and mib else {}


def _nccl_job(name: str, run: str, spec: Object, seconds: int, targets: Sequence[Target], workload: str) -> Object:
    job = _job(name, run, "nccl", spec, seconds, workload=workload)
    _attach(job["spec"]["template"], targets[0].group)
    count = len(targets)
    job["spec"] |= {"completionMode": "Indexed", "completions": count, "parallelism": count}
    return job


def _script_and_service(name: str, labels: Mapping[str, str], selector: Mapping[str, str]) -> list[Object]:
    config = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name, "namespace": NAMESPACE, "labels": dict(labels)},
        "data": {"allreduce.py": nccl_script()},
    }
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": NAMESPACE, "labels": dict(labels)},
        # Ranks look each other up before they are ready.
        "spec": {"clusterIP": "None", "publishNotReadyAddresses": True, "selector": dict(selector)},
    }
    return [config, service]


def _attach(template: Object, group: Group) -> None:
    """Bring the RoCE rails' network devices into the pods of a template."""
    if group.networks:
        names = ("/".join(one.attachment) for one in group.networks)
        template["metadata"]["annotations"] = {NETWORKS_ANNOTATION: ",".join(names)}
    if group.host_network:
        template["spec"] |= {"hostNetwork": True, "dnsPolicy": "ClusterFirstWithHostNet"}


def _claim(spec: Object, claim: str, template: str) -> None:
    """Have the first container take a claim that is made from a template."""
    spec.setdefault("resourceClaims", []).append({"name": claim, "resourceClaimTemplateName": template})
    spec["containers"][0]["resources"].setdefault("claims", []).append({"name": claim})


def _ask_for_gpus(spec: Object, target: Target, cluster: Cluster, run: str) -> None:
    """All GPUs of a node: by the device plugin's resource, or by a claim where DRA serves them."""
    if cluster.dra == "gpus":
        _claim(spec, "gpus", claim_name(run))
    else:
        spec["containers"][0]["resources"]["limits"][GPU] = str(target.gpus)


def _nccl_env(master: str, targets: Sequence[Target], seconds: int) -> dict[str, str]:
    """What the NCCL probe needs. Neither GDR level nor HCA list: the cluster's own settings are on trial."""
    return {
        "GPUREADY_START_SECONDS": str(max(1, seconds // 2)),
        "GPUREADY_SECONDS": str(max(seconds * 2 // 3, seconds - _LAST_SECONDS)),
        "NCCL_DEBUG": "INFO",
        "NCCL_DEBUG_SUBSYS": "INIT,BOOTSTRAP,ENV,NET,GRAPH",
        "GPUREADY_MASTER": f"{master}.{NAMESPACE}.svc",
        "GPUREADY_PORT": str(RENDEZVOUS_PORT),
        "GPUREADY_NODES": str(len(targets)),
        "GPUREADY_GPUS": str(targets[0].gpus),
        "GPUREADY_MIN_BYTES": str(1 << 20),
        "GPUREADY_MAX_BYTES": str(LARGEST_BYTES),
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
