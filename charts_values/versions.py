"""Version rules: which Kubernetes a chart takes, and what Dynamic Resource Allocation needs."""

from __future__ import annotations

import re
from dataclasses import dataclass

import semver

from .errors import InputError

_COMPARATOR = re.compile(r"(?P<op>>=|<=|!=|=|>|<)?\s*v?(?P<version>\d+(?:\.\d+){0,2}(?:-[0-9A-Za-z.-]+)?)$")


@dataclass(frozen=True)
class Bound:
    """A lower bound for DRA. ``of`` is kubernetes or driver; below it, ``refuse`` or else only warn."""

    of: str
    below: str
    refuse: bool
    modes: tuple[str, ...]
    why: str
    source: str


_ALL = ("compute-domains", "gpus")
_DRA_DOC = "DRA driver documentation 0.4"

# For each of the two subjects the first bound that is not met counts: the stricter stands first.
DRA_BOUNDS = (
    Bound("kubernetes", "1.32", True, _ALL, "the chart refuses it", "DRA driver chart 0.4.0, kubeVersion"),
    Bound("kubernetes", "1.34.2", False, _ALL, "Kubernetes bug 133920 is not fixed below it", _DRA_DOC),
    Bound("driver", "565", True, _ALL, "the plugin cannot publish GPUs", _DRA_DOC),
    Bound(
        "driver",
        "570.158.01",
        True,
        ("compute-domains",),
        "the compute-domain plugin refuses to start",
        f"{_DRA_DOC}, IMEXDaemonsWithDNSNames",
    ),
    Bound("driver", "580", False, _ALL, "the GPU Operator documents 580 and newer", "GPU Operator documentation"),
)


def dra_shortfalls(mode: str, kubernetes: str, driver: str) -> list[Bound]:
    """The bounds that these versions do not meet: at most one for Kubernetes and one for the driver."""
    seen = {"kubernetes": kubernetes, "driver": driver}
    missed: dict[str, Bound] = {}
    for bound in DRA_BOUNDS:
        if mode in bound.modes and bound.of not in missed and parts(seen[bound.of]) < parts(bound.below):
            missed[bound.of] = bound
    return list(missed.values())


def parts(version: str) -> tuple[int, ...]:
    """The leading numbers of a version: ``v1.35.4+k3s1`` is (1, 35, 4), and nothing readable is ()."""
    found = re.match(r"v?(\d+(?:\.\d+)*)", version)
    return tuple(map(int, found.group(1).split("."))) if found else ()


def within(version: str, first: str, last: str) -> bool:
    """Whether a Kubernetes version's minor lies from ``first`` to ``last`` (``1.31``, ``1.35``), both included."""
    return parts(first)[:2] <= parts(version)[:2] <= parts(last)[:2]


def satisfies(version: str, constraint: str) -> bool:
    """Whether a server version meets a chart's kubeVersion, by Helm's rules.

    Understood are comparisons, joined by blanks or commas (all must hold) and by ``||`` (one must).
    A version with a pre-release part (``v1.33.5-gke.1``) only meets a comparison that has one itself,
    which is why charts write ``>=1.32.0-0``. Raises InputError on anything else, such as ``~1.30``.
    """
    try:
        server = semver.Version.parse(version.removeprefix("v"), optional_minor_and_patch=True)
    except ValueError as error:
        raise InputError(f"the API server calls itself {version!r}, which is no version") from error
    alternatives = [re.split(r"[\s,]+(?=[<>=!v\d])", part.strip()) for part in constraint.split("||")]
    return any(all(_meets(server, term, constraint) for term in _joined(terms)) for terms in alternatives)


def _joined(terms: list[str]) -> list[str]:
    """Comparisons, with an operator that stood apart from its version (``>= 1.21``) put back before it."""
    joined: list[str] = []
    for term in terms:
        if joined and re.fullmatch(r"[<>=!]+", joined[-1]):
            joined[-1] += term
        else:
            joined.append(term)
    return joined


def _meets(server: semver.Version, term: str, constraint: str) -> bool:
    found = _COMPARATOR.fullmatch(term.strip())
    if found is None:
        raise InputError(f"kubeVersion {constraint!r} is no comparison that gpuready can read")
    wanted = semver.Version.parse(found["version"], optional_minor_and_patch=True)
    if server.prerelease and not wanted.prerelease:
        return False
    order = server.compare(wanted)
    return {
        ">=": order >= 0,
        "<=": order <= 0,
        ">": order > 0,
        "<": order < 0,
        "!=": order != 0,
        "=": order == 0,
    }[found["op"] or "="]
