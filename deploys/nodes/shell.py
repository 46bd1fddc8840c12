"""Root's shell on a host of pyinfra: the one place where its failures become ours."""

from __future__ import annotations

import shlex
from typing import Any

from gpuready.charts_values.errors import ToolError, UnreachableError
from pyinfra.api.command import StringCommand


class PyinfraShell:
    """Runs commands on one host; ``sudo`` where the SSH user is not root."""

    def __init__(self, host: Any, sudo: bool) -> None:
        self._host, self._sudo = host, sudo

    def run(self, command: str, *, timeout: float = 60.0) -> tuple[bool, str]:
        """Whether a command ended with 0, and what it printed; raises UnreachableError where the node is away."""
        # The node ends it itself, so that nothing goes on there once we have given up.
        bounded = f"timeout -k 5 {max(1, round(timeout))} sh -c {shlex.quote(command)}"
        try:
            good, output = self._host.run_shell_command(
                StringCommand(bounded), print_output=False, print_input=False, _sudo=self._sudo, _timeout=timeout + 15
            )
        except Exception as error:  # paramiko, sockets and pyinfra have no common error
            why = "the connection was cut" if self._cut() else str(error) or type(error).__name__
            raise UnreachableError(f"{self._host.name} does not answer over SSH: {why}") from error
        if not good and self._cut():
            raise UnreachableError(f"{self._host.name} does not answer over SSH: the connection was cut")
        return bool(good), str(output.stdout if good else output.output)

    def _cut(self) -> bool:
        """Whether the connection is gone; a command that was under way then looks like one that failed silently."""
        client = getattr(self._host.connector, "client", None)
        transport = client.get_transport() if client else None
        return client is not None and (transport is None or not transport.is_active())

    def output(self, command: str, *, timeout: float = 60.0) -> str:
        """What a command prints; raises ToolError where it fails."""
        good, text = self.run(command, timeout=timeout)
        if not good:
            said = " ".join(text.split())[-300:] or "it printed nothing"
            raise ToolError(f"{self._host.name}: {said}")
        return text

    def reconnect(self) -> bool:
        """Try to reach the node again after it went away; whether that worked."""
        try:
            self._host.disconnect()
        except Exception:  # a broken connection cannot be closed properly
            self._host.connected = False
        try:
            self._host.connect(show_errors=False, raise_exceptions=True)
        except Exception:  # not yet
            return False
        return True


def sudo_needed(host: Any) -> bool:
    """Whether commands on a host need sudo to be root's; raises UnreachableError, and ToolError where sudo refuses.

    pyinfra would ask for a password, which nobody can give for a whole fleet.
    """
    shell = PyinfraShell(host, sudo=False)
    user = shell.output("id -un; id -u").split()
    if user[-1] == "0":
        return False
    # What sudo says stays there: pyinfra would take it for the question.
    if not shell.run("sudo -n true > /dev/null 2>&1")[0]:
        raise ToolError(
            f"{host.name}: sudo does not let {user[0]} be root without a password; give NOPASSWD, or SSH as root"
        )
    return True
