"""What the engine consists of: its programs, the versions that suit, and where each comes from."""

from __future__ import annotations

import platform
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

Version = tuple[int, ...]

_VERSION = re.compile(r"v?(\d+)\.(\d+)(?:\.(\d+))?")
_ANSWER_SECONDS = 20.0


@dataclass(frozen=True)
class Program:
    """One program, and the versions of it that suit: at least ``lowest``, less than ``below``."""

    name: str
    lowest: Version
    below: Version
    ask: tuple[str, ...] = ("--version",)

    @property
    def wanted(self) -> str:
        """The versions that suit, for people."""
        return f">= {_dotted(self.lowest)}, < {_dotted(self.below)}"

    def suits(self, version: Version) -> bool:
        """Whether this version will do."""
        return self.lowest <= version < self.below


@dataclass(frozen=True)
class Part:
    """Programs that are fetched or built together.

    ``versions`` are those fetched or built, by project. The Go module is the folder of that ``name`` under
    engine/; ``package`` is what to build in it, as ``output``; ``stamps`` the variables that hold its version.
    """

    name: str
    programs: tuple[Program, ...]
    versions: Mapping[str, str]
    package: str
    output: str
    stamps: Mapping[str, str]
    tags: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        """The names of its programs."""
        return tuple(program.name for program in self.programs)

    @property
    def version(self) -> str:
        """The version of the part's main project."""
        return self.versions[self.name]


def _kubernetes(name: str) -> Program:
    return Program(name, (1, 35), (1, 36))


def _kubernetes_stamps(version: str) -> dict[str, str]:
    major, minor, _ = version.split(".")
    values = {"gitVersion": f"v{version}", "gitMajor": major, "gitMinor": minor, "gitTreeState": "clean"}
    packages = ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version")
    return {f"{package}.{key}": value for package in packages for key, value in values.items()}


# 1.35 is the newest Kubernetes minor that every pinned chart is documented for. kwok needs the watch
# progress notifications of etcd 3.6 (and late 3.5) to be quick.
KUBERNETES = Part(
    name="kubernetes",
    programs=(
        Program("etcd", (3, 6), (4,)),
        _kubernetes("kube-apiserver"),
        _kubernetes("kube-controller-manager"),
        _kubernetes("kube-scheduler"),
        _kubernetes("kubelet"),
    ),
    versions={"kubernetes": "1.35.4", "etcd": "3.6.5"},
    package=".",
    output="gpuready-engine",
    # Unstamped, the API server calls itself v0.0.0-master and charts refuse it.
    stamps=_kubernetes_stamps("1.35.4"),
    tags="selinux,notest,grpcnotrace",
)
KWOK = Part(
    name="kwok",
    programs=(Program("kwok", (0, 8), (0, 9)),),
    versions={"kwok": "0.8.0"},
    package="sigs.k8s.io/kwok/cmd/kwok",
    output="kwok",
    stamps={"sigs.k8s.io/kwok/pkg/consts.Version": "v0.8.0"},
)
HELM = Part(
    name="helm",
    programs=(Program("helm", (4,), (5,), ask=("version", "--short")),),
    versions={"helm": "4.2.3"},
    package="helm.sh/helm/v4/cmd/helm",
    output="helm",
    # Unstamped, helm calls itself v4.2, which is no semantic version: pyhelm3 refuses it.
    stamps={"helm.sh/helm/v4/internal/version.version": "v4.2.3"},
)
PARTS = (KUBERNETES, KWOK, HELM)
PROGRAMS = tuple(program for part in PARTS for program in part.programs)


def version_of(program: Program, path: Path) -> Version | str:
    """The version that a program reports, or one line that says why there is none."""
    try:
        answer = subprocess.run(
            [str(path), *program.ask],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_ANSWER_SECONDS,
            check=False,
        )
    except OSError as error:
        return f"{path} cannot be run: {error.strerror}"
    except subprocess.TimeoutExpired:
        return f"{path} {' '.join(program.ask)} did not end within {_ANSWER_SECONDS:.0f} s"
    found = _VERSION.search(answer.stdout)
    if answer.returncode != 0 or not found:
        return f"{path} {' '.join(program.ask)} reports no version (exit {answer.returncode})"
    return tuple(int(number) for number in found.groups(default="0"))


def complaint(program: Program, path: Path) -> str | None:
    """Why this program will not do, on one line; None where it does."""
    version = version_of(program, path)
    if isinstance(version, str):
        return version
    if not program.suits(version):
        return f"{path} is {_dotted(version)}, and {program.wanted} is needed"
    return None


def machine() -> str:
    """This machine's architecture, as the projects name it in their releases."""
    name = platform.machine()
    return {"x86_64": "amd64", "aarch64": "arm64"}.get(name, name)


def _dotted(version: Version) -> str:
    return ".".join(str(number) for number in version)
