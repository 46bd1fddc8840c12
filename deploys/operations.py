"""The operations: each makes one change, or none where the cluster is already right."""

from __future__ import annotations

from collections.abc import Callable, Generator
from functools import partial
from typing import Any

from gpuready.charts_values.bill import Release
from gpuready.charts_values.errors import GpureadyError
from gpuready.charts_values.inventory import Cluster
from gpuready.charts_values.kube import Api, Object
from gpuready.charts_values.values import DRA_NODE_LABEL
from pyinfra import context, logger
from pyinfra.api.command import FunctionCommand
from pyinfra.api.exceptions import OperationError
from pyinfra.api.operation import operation
from pyinfra.context import host

from . import disruption, objects
from .observed import Goal, wait
from .releases import Releases
from .survey import gpu_nodes

PRIVILEGED = {"pod-security.kubernetes.io/enforce": "privileged"}
# How long an operator may take to notice that its object changed.
HOLD_S = 5.0
Commands = Generator[FunctionCommand, None, None]
# Releases and custom resources that existed before this run and that it has changed.
Renewed = set[str]


@operation()
def applied(api: Api, wanted: Object, renewed: Renewed) -> Commands:
    """An object by server-side apply. No change where applying it would change nothing."""

    def change() -> None:
        existed = objects.live(api, wanted) is not None
        objects.apply(api, wanted)
        if existed:
            renewed.add(wanted["metadata"]["name"])

    difference = yield from _read(partial(objects.difference, api, wanted))
    if difference is None:
        host.noop(f"{objects.title(wanted)} is as wanted")
        return
    _say(difference)
    yield _command(change)


@operation()
def released(releases: Releases, release: Release, renewed: Renewed) -> Commands:
    """A Helm release with chart, version and user values, and its objects as its manifest says.

    A failed or interrupted one is put right; nothing is uninstalled for it.
    """

    def change() -> None:
        if releases.make(release, _say):
            renewed.add(release.key)

    work = yield from _read(partial(releases.work, release))
    if work.said is None:
        host.noop(f"{release.title} {work.plan.release.version} is installed with these values")
        return
    _say(work.said)
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


@operation()
def drivers_left(api: Api, names: tuple[str, ...], *, leave: bool) -> Commands:
    """The label by which the GPU Operator leaves the driver of nodes alone: set with ``leave``, else taken away.

    Set by a field manager of its own, so that a label which somebody else has set is not taken away.
    """

    def wanted(name: str) -> Object:
        labels = {disruption.SKIP_LABEL: "true"} if leave else {}
        return {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": labels}}

    def differing() -> list[str]:
        return [name for name in names if objects.difference(api, wanted(name), disruption.FIELD_MANAGER)]

    def change() -> None:
        for name in differing():
            objects.apply(api, wanted(name), disruption.FIELD_MANAGER)

    found = yield from _read(differing)
    if not found:
        host.noop("the nodes are so already")
        return
    _say(f"{disruption.SKIP_LABEL}: {'set on' if leave else 'taken from'} {' '.join(found)}")
    yield _command(change)


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
