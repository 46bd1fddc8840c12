"""The operations: each makes one change, or none where the cluster is already right."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from functools import partial
from typing import Any

from gpuready.charts_values.bill import Release
from gpuready.charts_values.errors import ApiError, GpureadyError, RefusedError, UnreachableError
from gpuready.charts_values.inventory import Cluster
from gpuready.charts_values.kube import Api, Object
from gpuready.charts_values.values import DRA_NODE_LABEL
from pyinfra import context, logger
from pyinfra.api.command import FunctionCommand
from pyinfra.api.exceptions import OperationError
from pyinfra.api.operation import operation
from pyinfra.context import host

from .changes import differences
from .charts import Chart
from .helm import PENDING, Helm, Installed
from .observed import Goal, wait
from .survey import gpu_nodes

FIELD_MANAGER = "gpuready"
PRIVILEGED = {"pod-security.kubernetes.io/enforce": "privileged"}
_COLLECTIONS = {
    "Namespace": "/api/v1/namespaces",
    "NicClusterPolicy": "/apis/mellanox.com/v1alpha1/nicclusterpolicies",
}
# How long an operator may take to notice that its object changed.
HOLD_S = 5.0
# How long a new kind may take to be served.
KIND_S = 15.0
Commands = Generator[FunctionCommand, None, None]
# Releases and custom resources that existed before this run and that it has changed.
Renewed = set[str]


@operation()
def applied(api: Api, wanted: Object, renewed: Renewed) -> Commands:
    """An object by server-side apply. No change where applying it would change nothing."""

    def change() -> None:
        existed = api.find(_path(wanted)) is not None
        _apply(api, wanted)
        if existed:
            renewed.add(wanted["metadata"]["name"])

    difference = yield from _read(partial(_apply_difference, api, wanted))
    if difference is None:
        host.noop(f"{wanted['kind']} {wanted['metadata']['name']} is as wanted")
        return
    _say(difference)
    yield _command(change)


@operation()
def released(
    helm: Helm, release: Release, chart: Callable[[], Chart], values: dict[str, Any], renewed: Renewed
) -> Commands:
    """A Helm release with chart, version and user values; a failed or interrupted one is put right.

    ``chart`` is called only where something changes: it may have to be downloaded.
    """

    def difference() -> str | None:
        installed = helm.releases().get((release.namespace, release.name))
        return release_difference(helm, release, installed, values)

    def change() -> None:
        found = chart()
        installed = helm.releases().get((release.namespace, release.name))
        if installed and installed.status in PENDING:
            revision = helm.settle(installed)
            _say(f"{release.title}: {installed.status} ended by going to revision {revision}")
        helm.install(release, found.path, values)
        if installed:
            renewed.add(release.name)

    what = yield from _read(difference)
    if what is None:
        host.noop(f"{release.title} {release.version} is installed with these values")
        return
    _say(what)
    yield _command(change)


@operation()
def reached(api: Api, cluster: Cluster, goal: Goal, subject: str, renewed: Renewed) -> Commands:
    """What ``subject`` is for can be observed; else wait for it, up to the goal's deadline.

    After an upgrade it must stay so for a while: the operators' states do not tell which generation they mean.
    """
    lacking = yield from _read(partial(goal.lacking, api, cluster))
    if lacking is None and subject not in renewed:
        host.noop(f"{goal.title} is as expected")
        return
    hold = HOLD_S if subject in renewed else 0.0
    yield _command(partial(wait, api, cluster, goal, hold_s=hold, progress=_say))


@operation()
def labelled_for_dra(api: Api, cluster: Cluster) -> Commands:
    """The label on GPU nodes by which the DRA plugin is placed, and evicted before a driver change."""

    def bare() -> list[str]:
        pairs = gpu_nodes(cluster, api.list("/api/v1/nodes"))
        return [
            node["metadata"]["name"]
            for node, _ in pairs
            if (node["metadata"].get("labels") or {}).get(DRA_NODE_LABEL) != "true"
        ]

    def change() -> None:
        for name in bare():
            api.patch(f"/api/v1/nodes/{name}", {"metadata": {"labels": {DRA_NODE_LABEL: "true"}}})

    names = yield from _read(bare)
    if not names:
        host.noop("every GPU node has the label")
        return
    _say(f"{len(names)} nodes lack {DRA_NODE_LABEL}")
    yield _command(change)


def release_difference(helm: Helm, release: Release, installed: Installed | None, values: dict[str, Any]) -> str | None:
    """In what a release differs from the pin and the values, on one line; None where it does not."""
    title = f"{release.title} {release.version}"
    if installed is None:
        return f"{title}: not installed"
    if installed.status == "uninstalling":
        raise RefusedError(f"{release.title} is being uninstalled; wait until `helm list -A` no longer shows it")
    if installed.status != "deployed":
        return f"{title}: revision {installed.revision} is {installed.status}"
    if installed.chart != f"{release.chart}-{release.version}":
        return f"{title}: {installed.chart} is installed"
    found = differences(helm.values(installed), values)
    return f"{title}: {'; '.join(found)}" if found else None


def _apply_difference(api: Api, wanted: Object) -> str | None:
    title = f"{wanted['kind']} {wanted['metadata']['name']}"
    live = api.find(_path(wanted))
    try:
        after = _apply(api, wanted, dryRun="All")
    except ApiError as error:
        if error.missing:
            return f"{title}: its kind does not exist yet"
        raise
    if live is None:
        return f"{title}: does not exist"
    found = differences(_comparable(live), _comparable(after))
    return f"{title}: {'; '.join(found)}" if found else None


def _apply(api: Api, wanted: Object, **query: str) -> Object:
    # Strict: a key that the kind does not have is an error, not dropped.
    query |= {"fieldManager": FIELD_MANAGER, "fieldValidation": "Strict", "force": "true"}
    deadline = time.monotonic() + KIND_S
    while True:
        try:
            return api.patch(_path(wanted), wanted, kind="apply", **query)
        except UnreachableError:
            # The server says so of a kind that was defined a moment ago, until its storage is ready.
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)


def _path(wanted: Object) -> str:
    return f"{_COLLECTIONS[wanted['kind']]}/{wanted['metadata']['name']}"


def _comparable(item: Object) -> Object:
    """What a user may set: without status and what the server keeps in the metadata."""
    kept = {key: value for key, value in item.items() if key not in ("metadata", "status")}
    meta = item["metadata"]
    return kept | {"labels": meta.get("labels") or {}, "annotations": meta.get("annotations") or {}}


# -- pyinfra's ways of failing ----------------------------------------------------------------------------------


def _read(read: Callable[[], Any]) -> Generator[FunctionCommand, None, Any]:
    """What ``read`` returns. Its failure is one line: an exception here would print a traceback."""
    try:
        return read()
    except GpureadyError as error:
        if not context.state.is_executing:
            raise OperationError(str(error)) from None
        yield FunctionCommand(_fail, (str(error),), {})
        raise AssertionError("pyinfra went on after a failed command") from error


def _command(change: Callable[[], object]) -> FunctionCommand:
    return FunctionCommand(_run, (change,), {})


# pyinfra treats a function as one that may fail, and reads its result, only if its parameters have these names.
def _run(state: Any, host: Any, change: Callable[[], object]) -> bool:
    try:
        change()
    except GpureadyError as error:
        return _fail(state, host, str(error))
    return True


def _fail(state: Any, host: Any, message: str) -> bool:
    host.log_styled(message, fg="red", log_func=logger.error)
    return False


def _say(line: str) -> None:
    host.log_styled(line, fg="yellow", log_func=logger.info)
