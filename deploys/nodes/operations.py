"""The operation that hands a node its turn in the rollout: one node at a time, none after one that failed."""

from __future__ import annotations

from collections.abc import Callable, Generator
from functools import partial
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

from gpuready.charts_values.errors import GpureadyError
from gpuready.charts_values.kube import Api
from pyinfra import context, logger
from pyinfra.api.command import FunctionCommand
from pyinfra.api.operation import operation
from pyinfra.context import host

from .plan import Disruption
from .rollout import Rollout, Shell


class Shared:
    """What the hosts of one run share: the API, and the rollout with its first failure."""

    _runs: ClassVar[WeakKeyDictionary[Any, Shared]] = WeakKeyDictionary()

    def __init__(self, api: Api) -> None:
        self.api = api
        self.rollout = Rollout(api, _say)

    @classmethod
    def of(cls, state: Any, connect: Callable[[], Api]) -> Shared:
        """The one of this run of pyinfra; ``connect`` is called for the first host."""
        if state not in cls._runs:
            cls._runs[state] = cls(connect())
        return cls._runs[state]


@operation()
def rolled_out(
    shared: Shared, shell: Shell, change: Disruption, *, withheld: bool, difference: str, drain_s: float | None = None
) -> Generator[FunctionCommand, None, None]:
    """What disturbs pods, made on a drained node; none where nothing differs or where it is withheld."""
    if not change:
        host.noop("kubelet, containerd and boot are as wanted")
        return
    if context.state.config.DIFF and not context.state.is_executing:
        for line in difference.splitlines():
            _say(line)
    if withheld:
        host.noop("withheld until a maintenance")
        return
    for reason in change.reasons:
        _say(reason)
    yield FunctionCommand(_run, (partial(shared.rollout.change, str(host.name), shell, change, drain_s),), {})


@operation()
def prepared() -> Generator[FunctionCommand, None, None]:
    """Nothing: an operation that every host has orders what comes before it ahead of what comes after it.

    pyinfra orders the operations of one host alone; those of different hosts would be taken in turns.
    """
    host.noop("all nodes are prepared")
    yield from ()


@operation()
def accounted(names: tuple[str, ...]) -> Generator[FunctionCommand, None, None]:
    """Nothing but a line for each node that this run could not prepare, at its end; pyinfra then exits 1.

    ``names`` are the hosts of inventory that are to be prepared.
    """
    state = context.state
    for one in sorted(state.failed_hosts, key=str) if state.is_executing else ():
        if str(one.name) in names:
            why = "it failed, as said above" if one in state.activated_hosts else "it was not reached"
            _fail(f"{one.name}: not prepared, since {why}; mend it, then run again")
    host.noop("every node is accounted for")
    yield from ()


def drop(why: str) -> None:
    """Take the host at hand out of the run, which goes on without it and exits 1."""
    _fail(why)
    context.state.fail_hosts({context.state.inventory.get_host(host.name)})  # type: ignore[no-untyped-call]


# pyinfra treats a function as one that may fail, and reads its result, only if its parameters have these names.
def _run(state: Any, host: Any, change: Callable[[], object]) -> bool:
    try:
        change()
    except GpureadyError as error:
        _fail(str(error))
        return False
    return True


def _fail(line: str) -> None:
    host.log_styled(line, fg="red", log_func=logger.error)


def _say(line: str) -> None:
    host.log_styled(line, fg="yellow", log_func=logger.info)
