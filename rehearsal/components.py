"""The programs of the rehearsal's control plane: their command lines, identities and files.

Everything listens on 127.0.0.1. The API server signs its own certificate, which the others trust; clients
are told apart by bearer tokens, as users that Kubernetes' default RBAC bindings know.
"""

from __future__ import annotations

import http.client
import json
import os
import random
import secrets
import socket
import ssl
import sys
from base64 import b64encode
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.resources import files

from gpuready.charts_values.errors import ToolError

from . import fleet, processes
from .pki import client, private, write_authority, write_certificate, write_key
from .state import State

HOST = "127.0.0.1"
# The order in which they start; they stop in reverse.
ENGINE = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kwok")
ACTORS = "actors"
ORDER = (*ENGINE, ACTORS)
PORTS = (*ENGINE, "etcd-peer")

# user and groups of each identity
_IDENTITIES = {
    "admin": ("kubernetes-admin", "system:masters"),
    "kube-controller-manager": ("system:kube-controller-manager", ""),
    "kube-scheduler": ("system:kube-scheduler", ""),
    "kwok": ("rehearsal:kwok", "system:masters"),
    "actors": ("rehearsal:actors", "system:masters"),
}
_ANSWER_SECONDS = 5.0
# Client-side rate limits, far above what a rehearsal needs; the defaults create 20 pods a second.
_FAST = ("--kube-api-qps=5000", "--kube-api-burst=10000")

# kwok serves the logs of single pods from objects of this kind.
LOGS_CRD = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": "logs.kwok.x-k8s.io"},
    "spec": {
        "group": "kwok.x-k8s.io",
        "scope": "Namespaced",
        "names": {"kind": "Logs", "listKind": "LogsList", "plural": "logs", "singular": "logs"},
        "versions": [
            {
                "name": "v1alpha1",
                "served": True,
                "storage": True,
                "subresources": {"status": {}},
                "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}},
            }
        ],
    },
}


def free_ports() -> dict[str, int]:
    """A free port of 127.0.0.1 for each name in PORTS.

    Below the range from which the kernel serves outgoing connections, so that none of them takes the port of
    a component that is about to be restarted. No other rehearsal of this machine is given one of them while this
    process lives: until the components listen, the ports look free.
    """
    found: dict[str, int] = {}
    for _ in range(1000):
        port = random.randrange(20000, 30000)
        with socket.socket() as candidate:
            candidate.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                candidate.bind((HOST, port))
            except OSError:
                continue
            # While it is bound, so that a port that is claimed is free.
            if not processes.claimed(f"port-{port}"):
                continue
        found[PORTS[len(found)]] = port
        if len(found) == len(PORTS):
            return found
    raise ToolError(f"{HOST} has no {len(PORTS)} free ports between 20000 and 30000")


def prepare(state: State) -> dict[str, str]:
    """Write what the components read before the API server is up; returns the token of each identity."""
    folder = state.folder / "components"
    folder.mkdir(mode=0o700, exist_ok=True)
    (state.folder / "logs").mkdir(exist_ok=True)
    tokens = {name: secrets.token_hex(16) for name in _IDENTITIES}
    lines = [
        f'{tokens[name]},{user},{user},"{groups}"' if groups else f"{tokens[name]},{user},{user}"
        for name, (user, groups) in _IDENTITIES.items()
    ]
    private(folder / "tokens.csv", "\n".join(lines) + "\n")
    write_key(folder / "service-accounts.key")
    # Without it every user of the machine could write to etcd, past the API server.
    write_certificate(folder / "etcd.crt", folder / "etcd.key", "etcd", HOST)
    # By it the API server knows the kubelets of machines, and they know the API server.
    write_authority(folder / "ca.crt", folder / "ca.key", "rehearsal")
    kubelet_client = client(folder / "ca.crt", folder / "ca.key", "kube-apiserver-kubelet-client", "system:masters")
    private(folder / "kubelet-client.pem", kubelet_client)
    private(
        folder / "kwok.yaml",
        (files(__package__) / "kwok.yaml").read_text().replace("STATE_DIR", str(state.folder)),
    )
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    private(folder / "simulated-pod.log", f"{now} stdout F simulated: this container has no log of its own\n")
    return tokens


def write_kubeconfigs(state: State, tokens: Mapping[str, str]) -> None:
    """Write the kubeconfigs, once the API server has made its certificate."""
    folder = state.folder / "components"
    authority = b64encode((folder / "pki" / "apiserver.crt").read_bytes()).decode()
    for name, token in tokens.items():
        kubeconfig = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [
                {"name": "rehearsal", "cluster": {"server": state.server, "certificate-authority-data": authority}}
            ],
            "users": [{"name": name, "user": {"token": token}}],
            "contexts": [{"name": "rehearsal", "context": {"cluster": "rehearsal", "user": name}}],
            "current-context": "rehearsal",
        }
        path = state.kubeconfig if name == "admin" else state.credentials(name)
        private(path, json.dumps(kubeconfig, indent=1) + "\n")


def command(name: str, state: State) -> list[str]:
    """The command line of a component, its program first."""
    if name == ACTORS:
        return [sys.executable, "-P", "-m", "gpuready.rehearsal.actors", "--state-dir", str(state.folder)]
    return [str(state.bin / name), *_ARGUMENTS[name](state)]


def environ(name: str, state: State) -> dict[str, str]:
    """The environment of a component: the engine's programs get none of the caller's settings."""
    if name == ACTORS:
        return {key: value for key, value in os.environ.items() if key != "KUBECONFIG"}
    return {"PATH": os.defpath, "HOME": str(state.folder / "components"), "NO_PROXY": HOST}


def healthy(name: str, state: State) -> bool:
    """Whether a component of the engine says that it is well."""
    folder = state.folder / "components"
    if name == "kwok":
        return _answers(http.client.HTTPConnection(HOST, state.ports[name], timeout=_ANSWER_SECONDS), "/healthz")
    context = ssl.create_default_context()
    context.check_hostname = False
    if name == "etcd":
        context.load_verify_locations(folder / "etcd.crt")
        context.load_cert_chain(folder / "etcd.crt", folder / "etcd.key")
    else:
        # It shows a certificate that it has made for itself when it started.
        context.verify_mode = ssl.CERT_NONE
    path = {"etcd": "/health", "kube-apiserver": "/readyz"}.get(name, "/healthz")
    connection = http.client.HTTPSConnection(HOST, state.ports[name], timeout=_ANSWER_SECONDS, context=context)
    return _answers(connection, path)


def _answers(connection: http.client.HTTPConnection, path: str) -> bool:
    try:
        connection.request("GET", path)
        return connection.getresponse().status == http.client.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _etcd(state: State) -> list[str]:
    folder = state.folder / "components"
    client = f"https://{HOST}:{state.ports['etcd']}"
    peer = f"https://{HOST}:{state.ports['etcd-peer']}"
    return [
        "--name=rehearsal",
        f"--data-dir={state.data}",
        # The data dies with the cluster: durability would only cost time.
        "--unsafe-no-fsync",
        f"--listen-client-urls={client}",
        f"--advertise-client-urls={client}",
        f"--listen-peer-urls={peer}",
        f"--initial-advertise-peer-urls={peer}",
        f"--initial-cluster=rehearsal={peer}",
        "--client-cert-auth=true",
        f"--trusted-ca-file={folder / 'etcd.crt'}",
        f"--cert-file={folder / 'etcd.crt'}",
        f"--key-file={folder / 'etcd.key'}",
        "--peer-client-cert-auth=true",
        f"--peer-trusted-ca-file={folder / 'etcd.crt'}",
        f"--peer-cert-file={folder / 'etcd.crt'}",
        f"--peer-key-file={folder / 'etcd.key'}",
        "--log-level=warn",
    ]


def _apiserver(state: State) -> list[str]:
    folder = state.folder / "components"
    return [
        f"--etcd-servers=https://{HOST}:{state.ports['etcd']}",
        f"--etcd-cafile={folder / 'etcd.crt'}",
        f"--etcd-certfile={folder / 'etcd.crt'}",
        f"--etcd-keyfile={folder / 'etcd.key'}",
        f"--bind-address={HOST}",
        f"--advertise-address={HOST}",
        f"--secure-port={state.ports['kube-apiserver']}",
        f"--cert-dir={folder / 'pki'}",
        f"--token-auth-file={folder / 'tokens.csv'}",
        f"--client-ca-file={folder / 'ca.crt'}",
        f"--kubelet-client-certificate={folder / 'kubelet-client.pem'}",
        f"--kubelet-client-key={folder / 'kubelet-client.pem'}",
        f"--service-account-key-file={folder / 'service-accounts.key'}",
        f"--service-account-signing-key-file={folder / 'service-accounts.key'}",
        "--service-account-issuer=https://kubernetes.default.svc",
        "--authorization-mode=Node,RBAC",
        f"--service-cluster-ip-range={fleet.load_profile(state.profile).network.services}",
        # Allows a loopback address to be advertised.
        "--endpoint-reconciler-type=none",
        "--allow-privileged=true",
        # The nodes' InternalIP is invented; kwok answers for all of them at the ExternalDNS address.
        "--kubelet-preferred-address-types=ExternalDNS,InternalIP",
        "--profiling=false",
    ]


def _controller_manager(state: State) -> list[str]:
    folder = state.folder / "components"
    name = "kube-controller-manager"
    return [
        *_client(name, state),
        "--use-service-account-credentials=true",
        f"--service-account-private-key-file={folder / 'service-accounts.key'}",
        f"--root-ca-file={folder / 'pki' / 'apiserver.crt'}",
        # On a busy machine leases are renewed late, which is not what is rehearsed.
        "--node-monitor-grace-period=300s",
        "--concurrent-daemonset-syncs=5",
        "--concurrent-job-syncs=10",
    ]


def _scheduler(state: State) -> list[str]:
    return _client("kube-scheduler", state)


def _client(name: str, state: State) -> list[str]:
    return [
        f"--kubeconfig={state.credentials(name)}",
        f"--authentication-kubeconfig={state.credentials(name)}",
        f"--authorization-kubeconfig={state.credentials(name)}",
        f"--bind-address={HOST}",
        f"--secure-port={state.ports[name]}",
        f"--cert-dir={state.folder / 'components' / name}",
        "--leader-elect=false",
        "--profiling=false",
        *_FAST,
    ]


def _kwok(state: State) -> list[str]:
    pki = state.folder / "components" / "pki"
    return [
        f"--kubeconfig={state.credentials('kwok')}",
        f"--config={state.folder / 'components' / 'kwok.yaml'}",
        "--manage-nodes-with-annotation-selector=kwok.x-k8s.io/node=fake",
        "--enable-crds=Logs",
        # At INFO it writes a line for every lease it renews.
        "--v=WARN",
        f"--node-lease-duration-seconds={_lease_s(len(state.nodes))}",
        f"--node-ip={HOST}",
        "--node-name=localhost",
        f"--node-port={state.ports['kwok']}",
        f"--server-address={HOST}:{state.ports['kwok']}",
        f"--tls-cert-file={pki / 'apiserver.crt'}",
        f"--tls-private-key-file={pki / 'apiserver.key'}",
        f"--cidr={fleet.load_profile(state.profile).network.pods}",
    ]


def _lease_s(nodes: int) -> int:
    """Seconds for which kwok takes the leases of nodes; it renews them at a quarter of that.

    Well within the grace period, and about one renewal a second: a thousand leases are a load of their own. Yet no
    longer than need be, since kwok plays a node only while there is a lease: that of a node that was made again goes
    with its predecessor, and comes back with the next renewal.
    """
    return min(400, max(40, 4 * nodes))


_ARGUMENTS = {
    "etcd": _etcd,
    "kube-apiserver": _apiserver,
    "kube-controller-manager": _controller_manager,
    "kube-scheduler": _scheduler,
    "kwok": _kwok,
}
