"""The kernel's namespaces: networks that end with their users, and mounts that nobody else sees."""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

from gpuready.charts_values.errors import ToolError

_NEW_NETWORK = 0x40000000  # CLONE_NEWNET
_NEW_MOUNTS = 0x00020000  # CLONE_NEWNS
_OWN = "/proc/self/ns/net"
_NSPAWN = Path("/run/systemd/nspawn")
_SECONDS = 15.0
_libc = ctypes.CDLL(None, use_errno=True)


class Namespace:
    """A network namespace of its own; it ends when nobody holds it and no process is in it."""

    def __init__(self) -> None:
        with _back():
            _call("unshare", _NEW_NETWORK)
            self._handle = os.open(_OWN, os.O_RDONLY)

    @property
    def path(self) -> str:
        """Where other programs find it."""
        return f"/proc/{os.getpid()}/fd/{self._handle}"

    def listen(self, address: str, port: int) -> socket.socket:
        """A socket that accepts connections in there."""
        with _back():
            _call("setns", self._handle, _NEW_NETWORK)
            return socket.create_server((address, port))


def own_mounts() -> None:
    """Let no mount of this process, or of those it starts, be seen on the host. Raises ToolError."""
    _call("unshare", _NEW_MOUNTS)
    mount("--make-rprivate", "/")
    # What systemd-nspawn leaves behind in there ends with us.
    _NSPAWN.mkdir(parents=True, exist_ok=True)
    mount("-t", "tmpfs", "tmpfs", str(_NSPAWN))


def mount(*arguments: str) -> None:
    """Mount something. Raises ToolError."""
    try:
        answer = subprocess.run(["mount", *arguments], capture_output=True, text=True, timeout=_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ToolError(f"mount {' '.join(arguments)} failed: {error}") from error
    if answer.returncode != 0:
        raise ToolError(f"mount {' '.join(arguments)} failed: {' '.join(answer.stderr.split())}")


@contextlib.contextmanager
def _back() -> Iterator[None]:
    """Whatever namespace this thread enters inside, it comes back."""
    home = os.open(_OWN, os.O_RDONLY)
    try:
        yield
    finally:
        _call("setns", home, _NEW_NETWORK)
        os.close(home)


def _call(name: str, *arguments: int) -> None:
    # Python has these two from 3.12 on.
    if getattr(_libc, name)(*arguments) != 0:
        number = ctypes.get_errno()
        raise ToolError(f"{name} failed: {os.strerror(number)}")
