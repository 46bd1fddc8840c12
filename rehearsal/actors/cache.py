"""The actors' memory of the cluster, fed by the informers, and the list of what to look at again.

Everything is guarded by ``lock``; whoever reads more than one thing holds it. A write's answer is put in at
once, so that the next look does not repeat the write while its event is under way.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Iterable

from gpuready.charts_values.kube import Object

from .records import Node, Pod

Record = Node | Pod | Object


class Cache:
    """Nodes, pods and the other objects, by kind.

    ``pods`` has them by namespace/name. ``dirty`` names the nodes to reconcile; ``wake`` is set when anything
    changed.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.wake = threading.Event()
        self.nodes: dict[str, Node] = {}
        self.pods: dict[str, Pod] = {}
        self.on_node: defaultdict[str, dict[str, Pod]] = defaultdict(dict)
        self.owned: defaultdict[str, dict[str, Pod]] = defaultdict(dict)
        self.dirty: set[str] = set()
        self._objects: defaultdict[str, dict[str, Object]] = defaultdict(dict)

    # -- reading ------------------------------------------------------------------------------------------

    def objects(self, kind: str) -> list[Object]:
        """All objects of a kind (``daemonsets``), nodes and pods excepted."""
        return list(self._objects[kind].values())

    def object(self, kind: str, name: str, namespace: str = "") -> Object | None:
        """One of them."""
        return self._objects[kind].get(f"{namespace}/{name}")

    # -- feeding ------------------------------------------------------------------------------------------

    def replace(self, kind: str, bodies: Iterable[Object]) -> None:
        """The whole of a kind, after a list."""
        with self.lock:
            left = set(self._table(kind))
            for body in bodies:
                left.discard(_key(body))
                self.put(kind, body)
            for key in left:
                self._forget(kind, key)

    def put(self, kind: str, body: Object) -> None:
        """A new or changed object; an older version than the known one is ignored."""
        record: Record = Node.of(body) if kind == "nodes" else Pod.of(body) if kind == "pods" else body
        with self.lock:
            key = _key(body)
            known = self._table(kind).get(key)
            if known is not None and _uid(known) == _uid(record) and _version(known) >= _version(record):
                return
            if isinstance(record, Pod):
                if isinstance(known, Pod):
                    self._drop_pod(key, known)
                self._add_pod(key, record)
            elif isinstance(record, Node):
                self.nodes[record.name] = record
                self.touch(record.name)
            else:
                self._objects[kind][key] = record
                self.touch(_node_of(kind, record))

    def answer(self, kind: str, body: Object) -> None:
        """What the server answered to a write: taken over only while the object is known."""
        with self.lock:
            known = self._table(kind).get(_key(body))
            if known is not None and _uid(known) == body["metadata"]["uid"]:
                self.put(kind, body)

    def remove(self, kind: str, body: Object) -> None:
        """A deleted object."""
        with self.lock:
            key = _key(body)
            known = self._table(kind).get(key)
            if known is not None and _uid(known) == body["metadata"]["uid"]:
                self._forget(kind, key)

    # -- what to look at ----------------------------------------------------------------------------------

    def touch(self, node: str) -> None:
        """Have a node looked at again; with an empty name, the cluster alone."""
        with self.lock:
            if node:
                self.dirty.add(node)
            self.wake.set()

    def touch_all(self) -> None:
        """Have every node looked at again."""
        with self.lock:
            self.dirty.update(self.nodes)
            self.wake.set()

    def take_dirty(self) -> set[str]:
        """The nodes to look at; the list starts afresh."""
        with self.lock:
            taken, self.dirty = self.dirty, set()
            return taken

    # -- inside -------------------------------------------------------------------------------------------

    def _table(self, kind: str) -> dict[str, Node] | dict[str, Pod] | dict[str, Object]:
        if kind == "nodes":
            return self.nodes
        return self.pods if kind == "pods" else self._objects[kind]

    def _add_pod(self, key: str, pod: Pod) -> None:
        self.pods[key] = pod
        self.on_node[pod.node][key] = pod
        if pod.owner_uid:
            self.owned[pod.owner_uid][key] = pod
        self.touch(pod.node)

    def _drop_pod(self, key: str, pod: Pod) -> None:
        del self.pods[key]
        self.on_node[pod.node].pop(key, None)
        if owned := self.owned.get(pod.owner_uid):
            owned.pop(key, None)
            if not owned:
                del self.owned[pod.owner_uid]
        self.touch(pod.node)

    def _forget(self, kind: str, key: str) -> None:
        gone = self._table(kind)[key]
        if isinstance(gone, Pod):
            self._drop_pod(key, gone)
        elif isinstance(gone, Node):
            del self.nodes[key]
            self.wake.set()
        else:
            del self._objects[kind][key]
            self.touch(_node_of(kind, gone))


def _key(body: Object) -> str:
    """namespace/name; a node's name alone."""
    meta = body["metadata"]
    if body.get("kind") == "Node":
        return str(meta["name"])
    return f"{meta.get('namespace', '')}/{meta['name']}"


def _node_of(kind: str, body: Object) -> str:
    """The node that an object of one node is about, or an empty text."""
    if kind == "ciliumnodes":
        return str(body["metadata"]["name"])
    return str(body["spec"].get("nodeName", "")) if kind == "resourceslices" else ""


def _uid(record: Record) -> str:
    return record.uid if isinstance(record, Node | Pod) else str(record["metadata"]["uid"])


def _version(record: Record) -> int:
    if isinstance(record, Node | Pod):
        return record.version
    return int(record["metadata"]["resourceVersion"])
