"""What can go wrong, as a tree.

GpureadyError             base: one line for people, exit code 2
 +- InputError            what the user gave is wrong: file, option, inventory entry
 +- RefusedError          understood, but unsafe or impossible; nothing was changed
 +- ApiError              the API server answered, and says no (``status`` holds the HTTP code)
 +- UnreachableError      the API server, a node or a repository does not answer
 +- ToolError             a program we call (helm, go, an engine process) failed
 +- DeadlineError         a wait reached its deadline

Foreign errors become one of these at one edge each: charts_values/kube.py and kubeconfig.py for the API,
deploys/helm.py for helm, rehearsal/processes.py for the engine.
"""

from __future__ import annotations


class GpureadyError(Exception):
    """One line for people: what, where, what to do. The CLI prints it and exits with ``exit_code``."""

    exit_code = 2


class InputError(GpureadyError):
    """What the user gave is wrong; nothing was changed."""


class RefusedError(GpureadyError):
    """The request would harm the cluster, or cannot work; nothing was changed."""


class ApiError(GpureadyError):
    """The API server answered with an HTTP status of 400 or more."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status

    @property
    def forbidden(self) -> bool:
        """The identity is unknown or lacks the permission (401, 403)."""
        return self.status in (401, 403)

    @property
    def missing(self) -> bool:
        """The object, or the kind it is of, does not exist (404)."""
        return self.status == 404

    @property
    def conflict(self) -> bool:
        """It exists already, or changed in between (409)."""
        return self.status == 409

    @property
    def invalid(self) -> bool:
        """The object itself is refused: schema, admission (400, 422)."""
        return self.status in (400, 422)


class UnreachableError(GpureadyError):
    """The API server, a node or a repository does not answer."""


class ToolError(GpureadyError):
    """A program that we call failed."""


class DeadlineError(GpureadyError):
    """A wait reached its deadline."""
