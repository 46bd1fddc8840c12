"""What makes a machine a node of the rehearsal cluster: its files, laid out as kubeadm leaves them.

The kubelet has a client certificate of its own and asks the API server who may ask it (webhook), so that RBAC
decides on /configz and logs as it does elsewhere.
"""

from __future__ import annotations

import json
import uuid
from base64 import b64encode
from collections.abc import Mapping
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import yaml

from .. import pki
from .plan import API_PORT, IMAGES_PORT, MARK, SSH_USER, Machine, Plan

# The name that the API server's own certificate bears; the relay passes TLS on as it is.
_SERVER_NAME = "127.0.0.1"
_CONTAINERD = "unix:///run/containerd/containerd.sock"
_CERTIFICATE = "var/lib/kubelet/pki/kubelet-client-current.pem"
# Written last: a machine that has it has all of its files.
DONE = "etc/gpuready-machine"

# Content, and mode, by path in the root file system.
Files = dict[str, tuple[bytes, int]]


def write(machine: Machine, plan: Plan, components: Path, services: str, root: Path) -> None:
    """Write all files of a machine below ``root``, its root file system.

    ``components`` is the folder of the control plane's keys, ``services`` the cluster's service CIDR.
    """
    made = _system(machine, plan) | _ssh(machine, plan) | _node(machine, plan, components, services) | _network(machine)
    made[DONE] = _text(machine.name)
    for name, (content, mode) in made.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        path.chmod(mode)


def _system(machine: Machine, plan: Plan) -> Files:
    hosts = ["127.0.0.1 localhost", *(f"{one.address} {one.name}" for one in plan.machines)]
    return {
        "etc/hostname": _text(machine.name),
        "etc/hosts": _text("\n".join(hosts)),
        "etc/machine-id": _text(uuid.uuid5(uuid.NAMESPACE_URL, f"{plan.folder}/{machine.name}").hex),
        # What kubeadm asks an administrator to set.
        "etc/sysctl.d/k8s.conf": _text("net.ipv4.ip_forward = 1"),
    }


def _ssh(machine: Machine, plan: Plan) -> Files:
    public = (plan.key.with_suffix(".pub")).read_bytes()
    host = plan.home / f"{machine.name}.host_key"
    return {
        "etc/ssh/ssh_host_ed25519_key": (host.read_bytes(), 0o600),
        "etc/ssh/ssh_host_ed25519_key.pub": (host.with_suffix(".host_key.pub").read_bytes(), 0o644),
        "root/.ssh/authorized_keys": (public, 0o600),
        f"home/{SSH_USER}/.ssh/authorized_keys": (public, 0o644),
    }


def _node(machine: Machine, plan: Plan, components: Path, services: str) -> Files:
    secret = pki.client(components / "ca.crt", components / "ca.key", f"system:node:{machine.name}", "system:nodes")
    user = f"system:node:{machine.name}"
    kubeconfig = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [
            {
                "name": "kubernetes",
                "cluster": {
                    "server": f"https://{plan.gateway}:{API_PORT}",
                    "tls-server-name": _SERVER_NAME,
                    "certificate-authority-data": b64encode((components / "pki/apiserver.crt").read_bytes()).decode(),
                },
            }
        ],
        "users": [{"name": user, "user": {"client-certificate": f"/{_CERTIFICATE}", "client-key": f"/{_CERTIFICATE}"}}],
        "contexts": [{"name": f"{user}@kubernetes", "context": {"cluster": "kubernetes", "user": user}}],
        "current-context": f"{user}@kubernetes",
    }
    arguments = f"--container-runtime-endpoint={_CONTAINERD} --node-ip={machine.address} --node-labels={MARK}="
    images = f"http://{plan.gateway}:{IMAGES_PORT}"
    return {
        "etc/containerd/certs.d/_default/hosts.toml": _text(
            f'server = "{images}"\n\n[host."{images}"]\n  capabilities = ["pull", "resolve"]'
        ),
        "etc/kubernetes/kubelet.conf": (yaml.safe_dump(kubeconfig, sort_keys=False).encode(), 0o600),
        "etc/kubernetes/pki/ca.crt": ((components / "ca.crt").read_bytes(), 0o644),
        _CERTIFICATE: (secret, 0o600),
        "var/lib/kubelet/config.yaml": (yaml.safe_dump(_configuration(services)).encode(), 0o644),
        "var/lib/kubelet/kubeadm-flags.env": _text(f'KUBELET_KUBEADM_ARGS="{arguments}"'),
        "etc/default/kubelet": _text("KUBELET_EXTRA_ARGS="),
    }


def _configuration(services: str) -> Mapping[str, Any]:
    """What kubeadm writes, and what a machine that shares its kernel needs besides."""
    kubeadm = {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True, "cacheTTL": "0s"},
            "x509": {"clientCAFile": "/etc/kubernetes/pki/ca.crt"},
        },
        "authorization": {"mode": "Webhook"},
        "clusterDNS": [str(ip_network(services)[10])],
        "clusterDomain": "cluster.local",
        "healthzBindAddress": "127.0.0.1",
        "healthzPort": 10248,
        "rotateCertificates": True,
        "staticPodPath": "/etc/kubernetes/manifests",
    }
    shared = {
        # The host decides which control groups there are, and they are not systemd's alone.
        "cgroupDriver": "cgroupfs",
        "failCgroupV1": False,
        "failSwapOn": False,
        # Needs a capability that a container may not have.
        "oomScoreAdj": 0,
        # The disk is the host's: how full it is must not decide a rehearsal, nor remove its images.
        "evictionHard": {"memory.available": "50Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
        "imageGCHighThresholdPercent": 100,
        "registerWithTaints": [{"key": MARK, "effect": "NoSchedule"}],
    }
    return kubeadm | shared


def _network(machine: Machine) -> Files:
    """A bridge for the pods of this machine: the fleet's Cilium is simulated."""
    conflist = {
        "cniVersion": "0.4.0",
        "name": "rehearsal",
        "plugins": [
            {
                "type": "bridge",
                "bridge": "cni0",
                "isGateway": True,
                "ipMasq": True,
                "ipam": {
                    "type": "host-local",
                    "ranges": [[{"subnet": machine.pods}]],
                    "routes": [{"dst": "0.0.0.0/0"}],
                },
            },
            {"type": "portmap", "capabilities": {"portMappings": True}},
        ],
    }
    return {"etc/cni/net.d/10-rehearsal.conflist": (json.dumps(conflist, indent=1).encode(), 0o644)}


def _text(text: str) -> tuple[bytes, int]:
    return f"{text}\n".encode(), 0o644
