"""What was seen, raw: the cluster's objects, files of nodes, logs; and the bundle that keeps it on disk."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpuready.charts_values.errors import InputError

Object = dict[str, Any]
# kwok's mark on a node that it plays.
SIMULATED = ("kwok.x-k8s.io/node", "fake")
# Helm's records, of which nothing but names, status and revision is kept.
RELEASES = "releases.helm.sh"


@dataclass(frozen=True)
class ReadFailure:
    """Why something could not be read.

    ``kind`` is absent, forbidden, unreachable, refused, interrupted, or invalid where the call itself was wrong.
    """

    kind: str
    message: str


@dataclass
class Evidence:
    """Everything a run saw.

    ``cluster`` maps ``<plural>.<group>`` (``nodes`` for the core group) to objects as the API sent them.
    ``nodes`` maps a node to its files by their fixed names, ``logs`` a workload to its pods' logs.
    ``failures`` says which reads failed. ``about`` is the head of the bundle: time, tool, server, cluster.
    ``parsed`` keeps what was read out of the raw texts; it is never saved.
    """

    cluster: dict[str, list[Object]] = field(default_factory=dict)
    nodes: dict[str, dict[str, str]] = field(default_factory=dict)
    logs: dict[str, dict[str, str]] = field(default_factory=dict)
    failures: dict[str, ReadFailure] = field(default_factory=dict)
    about: dict[str, Any] = field(default_factory=dict)
    parsed: dict[str, Any] = field(default_factory=dict, repr=False)

    def objects(self, key: str) -> list[Object]:
        """The objects of a kind; none where the kind is not served."""
        return self.cluster.get(key, [])

    def find(self, key: str, name: str, namespace: str | None = None) -> Object | None:
        """One object by name."""
        for item in self.objects(key):
            meta = item["metadata"]
            if meta["name"] == name and namespace in (None, meta.get("namespace")):
                return item
        return None

    @property
    def server_version(self) -> str | None:
        """The API server's version, such as ``v1.35.4``."""
        version: str | None = self.about.get("server_version")
        return version

    def save(self, folder: Path, expected: Mapping[str, Any] | None) -> None:
        """Write a bundle; raises InputError where the folder cannot take it."""
        require_new(folder)
        try:
            _write(folder / "bundle.json", {"schema": 1, **self.about})
            if expected is not None:
                _write(folder / "expected.json", expected)
            _write(folder / "collection.json", {k: vars(failure) for k, failure in self.failures.items()})
            for key, items in self.cluster.items():
                _write(folder / "cluster" / f"{key}.json", items)
            for path, text in _texts(folder / "nodes", self.nodes):
                _write_text(path, text)
            for path, text in _texts(folder / "logs", self.logs, ".log"):
                _write_text(path, text)
        except OSError as error:
            raise InputError(f"cannot write the bundle {folder}: {error.strerror or error}") from error

    @classmethod
    def load(cls, folder: Path) -> tuple[Evidence, dict[str, Any] | None]:
        """Read a bundle and its expected.json, any part of which may be absent.

        Raises InputError where the folder holds no evidence at all.
        """
        if not folder.is_dir():
            raise InputError(f"{folder} is not a bundle; `gpuready check --save DIR` makes one")
        evidence = cls(
            cluster={path.stem: _objects(path) for path in sorted((folder / "cluster").glob("*.json"))},
            nodes=_read_texts(folder / "nodes"),
            logs={
                workload: {name.removesuffix(".log"): text for name, text in pods.items()}
                for workload, pods in _read_texts(folder / "logs").items()
            },
            failures=_failures(folder / "collection.json"),
            about=_table(folder / "bundle.json"),
        )
        evidence.about.pop("schema", None)
        if not (evidence.cluster or evidence.nodes or evidence.logs):
            raise InputError(f"{folder} holds no evidence: no cluster/, nodes/ or logs/ with files in it")
        return evidence, _read(folder / "expected.json")


def simulated(node: Object) -> bool:
    """Whether a Node object stands for no machine."""
    key, value = SIMULATED
    return bool((node["metadata"].get("annotations") or {}).get(key) == value)


def require_new(folder: Path) -> None:
    """Raises InputError where a bundle could not be saved in this folder: best known before a long run."""
    try:
        if folder.exists() and any(folder.iterdir()):
            raise InputError(f"{folder} is not empty; --save wants a new folder")
    except OSError as error:
        raise InputError(f"cannot write the bundle {folder}: {error.strerror or error}") from error


def _texts(folder: Path, tree: Mapping[str, Mapping[str, str]], suffix: str = "") -> Iterator[tuple[Path, str]]:
    for name, files in tree.items():
        for file, text in files.items():
            yield folder / name / f"{file}{suffix}", text


def _read_texts(folder: Path) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = {}
    for path in sorted(folder.glob("*/*")):
        if path.is_file():
            text = path.read_text(encoding="utf-8", errors="replace")
            found.setdefault(path.parent.name, {})[path.name] = text
    return found


def _write(path: Path, data: Any) -> None:
    _write_text(path, json.dumps(data, indent=1, sort_keys=True) + "\n")


def _write_text(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def _objects(path: Path) -> list[Object]:
    """The objects of a kind: a list of them, or the List object that kubectl and the API server give."""
    data = _read(path)
    found, kind = (data.get("items"), str(data.get("kind"))) if isinstance(data, dict) else (data, "")
    if not isinstance(found, list) or not all(map(_is_object, found)):
        raise InputError(f"{path} is no list of Kubernetes objects; save it with: kubectl get KIND -A -o json")
    objects: list[Object] = found
    if kind.endswith("List") and kind != "List":
        for one in objects:
            one.setdefault("kind", kind.removesuffix("List"))
    return objects


def _is_object(item: Any) -> bool:
    """Whether it has the shape that all objects share."""
    meta = item.get("metadata") if isinstance(item, dict) else None
    if not isinstance(meta, dict) or not isinstance(meta.get("name"), str):
        return False
    parts = (*map(meta.get, ("labels", "annotations")), *map(item.get, ("spec", "status")))
    return all(isinstance(part, dict | None) for part in parts)


def _failures(path: Path) -> dict[str, ReadFailure]:
    """What collection.json tells; keys that a later version may add are passed over."""
    try:
        return {key: ReadFailure(value["kind"], value["message"]) for key, value in _table(path).items()}
    except (KeyError, TypeError) as error:
        raise InputError(f"{path} is not what `gpuready check --save` writes: no `kind` and `message`") from error


def _table(path: Path) -> dict[str, Any]:
    """A file that holds one JSON object, empty where there is no such file."""
    data = _read(path)
    if data is not None and not isinstance(data, dict):
        raise InputError(f"{path} is not what `gpuready check --save` writes: it holds no JSON object")
    return data or {}


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as JSON: {error}") from error
