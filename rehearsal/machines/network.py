"""The machines' network: a namespace for each, and one more with the bridge between them.

Nothing but one interface appears on the host: its own way to the machines. The relay to the API server
listens among the machines alone; the API server itself stays on loopback.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import subprocess
from collections.abc import Sequence

from gpuready.charts_values.errors import ToolError

from . import plan
from .namespaces import Namespace
from .plan import Plan

_SECONDS = 15.0
_CHUNK = 1 << 16


def connect(plan_: Plan, hub: Namespace, machines: Sequence[Namespace]) -> None:
    """Join the namespaces by a bridge, and the host to it. Raises ToolError."""
    interface = plan.link(plan_.folder)
    _ip(
        None,
        f"link add {interface} type veth peer name host netns {hub.path}",
        f"address add {plan_.host}/24 dev {interface}",
        f"link set {interface} up",
    )
    _ip(
        hub,
        "link set lo up",
        "link add machines type bridge",
        f"address add {plan_.gateway}/24 dev machines",
        "link set machines up",
        "link set host master machines up",
    )
    for machine, space in zip(plan_.machines, machines, strict=True):
        _ip(
            hub,
            f"link add {machine.name} type veth peer name eth0 netns {space.path}",
            f"link set {machine.name} master machines up",
        )
        others = [one for one in plan_.machines if one != machine]
        _ip(
            space,
            "link set lo up",
            f"address add {machine.address}/24 dev eth0",
            "link set eth0 up",
            f"route add default via {plan_.gateway}",
            *(f"route add {other.pods} via {other.address}" for other in others),
        )


async def relay(listener: socket.socket, port: int) -> asyncio.Server:
    """Pass every connection on to that port of the host's loopback interface."""

    async def serve(near: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        try:
            far, forth = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            back.close()
            return
        await asyncio.gather(_pass(near, forth), _pass(far, back))

    return await asyncio.start_server(serve, sock=listener)


async def _pass(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await source.read(_CHUNK):
            sink.write(data)
            await sink.drain()
    with contextlib.suppress(OSError):
        sink.close()
        await sink.wait_closed()


def _ip(space: Namespace | None, *lines: str) -> None:
    """Let `ip` do several things in a namespace; None is the host's."""
    enter = ["nsenter", f"--net={space.path}"] if space else []
    command = [*enter, "ip", "-batch", "-"]
    try:
        answer = subprocess.run(
            command, input="\n".join(lines) + "\n", capture_output=True, text=True, timeout=_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ToolError(f"{' '.join(command)} failed: {error}") from error
    if answer.returncode != 0:
        raise ToolError(f"ip failed: {' '.join(answer.stderr.split())}")
