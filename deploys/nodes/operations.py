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
    shared: Shared, shell: Shell, change: Disruption, *, withheld: bool, difference: str
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
    yield FunctionCommand(_run, (partial(shared.rollout.change, str(host.name), shell, change),), {})


@operation()
def prepared() -> Generator[FunctionCommand, None, None]:
    """Nothing: an operation that every host has orders what comes before it ahead of what comes after it.

    pyinfra orders the operations of one host alone; those of different hosts would be taken in turns.
    """
    host.noop("all nodes are prepared")
    yield from ()


# pyinfra treats a function as one that may fail, and reads its result, only if its parameters have these names.
def _run(state: Any, host: Any, change: Callable[[], object]) -> bool:
    try:
        change()
    except GpureadyError as error:
        host.log_styled(str(error), fg="red", log_func=logger.error)
        return False
    return True


def _say(line: str) -> None:
    host.log_styled(line, fg="yellow", log_func=logger.info)
