"""NCCL's environment as the ranks had it: what the cluster itself sets, and which of that is a trap."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from ..evidence import Evidence
from ..expected import Expected
from ..model import Finding, Status, Subject
from ..nccl.verdict import DECREES
from ..nccl_evidence import NcclRun, runs
from ..registry import check
from .nccl import nothing_ran, subject_of
from .subjects import passed

_HCA = "NCCL_IB_HCA"
_LEVEL = "NCCL_NET_GDR_LEVEL"
# What our own pods set: how much is logged, and in one run that NVLink between nodes is not to be used.
_OURS = ("NCCL_DEBUG", "NCCL_DEBUG_FILE", "NCCL_DEBUG_SUBSYS", "NCCL_MNNVL_ENABLE")
# Settings that take something away wherever they are set, with the value that does.
_TAKEN_AWAY = {
    ("NCCL_IB_DISABLE", "1"): "no InfiniBand and no RoCE: NCCL takes TCP",
    ("NCCL_NET", "Socket"): "NCCL takes TCP",
    ("NCCL_P2P_DISABLE", "1"): "GPUs of a node do not talk over NVLink",
    ("NCCL_NVLS_ENABLE", "0"): "switches do not reduce",
    ("NCCL_NET_GDR_READ", "0"): "sending goes through the host's memory",
    ("NCCL_CROSS_NIC", "1"): "traffic leaves its rail",
}
_WEAK_LEVELS = ("LOC", "0")


@check(
    "nccl.environment",
    title="NCCL's own settings hold no trap",
    proves="The runs had the settings that jobs of this cluster have, and none of them hides or costs a rail.",
    rule="No setting that the ranks echo forces or forbids GPUDirect RDMA, takes a transport away, differs from node "
    "to node, or names NICs by a prefix that fits several.",
    source="NCCL documentation, environment variables: NCCL_IB_HCA matches prefixes unless = stands before the names; "
    "NCCL_NET_GDR_LEVEL overrides what the topology allows",
    fix="Settings come from the image (/etc/nccl.conf) or from ConfigMap gpuready/nccl-env: "
    "kubectl -n gpuready get configmap nccl-env -o yaml",
    avoid="Do not set NCCL_NET_GDR_LEVEL to make GPUDirect RDMA appear: it then proves nothing.",
    needs=("pods",),
    after=("nccl.run",),
    phase="accept",
    tier="fabric",
)
def environment(expected: Expected, evidence: Evidence) -> Iterator[Finding]:
    """Traps among the settings of each run; else which settings there are."""
    done = runs(evidence)
    if not done:
        yield nothing_ran(expected, evidence)
    for run in done:
        settings = {name: values for name, values in run.report.devices.environment.items() if name not in _OURS}
        subject = subject_of(run, expected)
        traps = [*_levels(settings), *_taken_away(settings), *_prefixes(run, settings), *_unlike(run, settings)]
        for name, reason, cause, detail in traps:
            yield Finding(
                Status.WARN, Subject("object", f"{name} in {run.name}"), reason, cause, detail, nodes=run.nodes,
                observed=_text(name, settings[name]), evidence=(f"logs/{run.workload}",),
            )  # fmt: skip
        if not traps:
            told = ", ".join(_text(name, values) for name, values in sorted(settings.items()))
            yield passed(subject, told or "the cluster sets none", evidence=(f"logs/{run.workload}",))


Settings = Mapping[str, Mapping[str, set[str]]]
# Name of the setting, reason, cause, detail.
Trap = tuple[str, str, str, str]


def _text(name: str, values: Mapping[str, set[str]]) -> str:
    return f"{name}={' or '.join(sorted(values))}"


def _levels(settings: Settings) -> Iterator[Trap]:
    for value in settings.get(_LEVEL, ()):
        if value.upper() in _WEAK_LEVELS:
            yield _LEVEL, "GdrForbidden", "a setting forbids GPUDirect RDMA", f"{_LEVEL}={value}"
        elif value.upper() in DECREES:
            detail = f"{_LEVEL}={value}: whether GPU and NIC are near enough is no longer looked at"
            yield _LEVEL, "GdrByDecree", "a setting decrees GPUDirect RDMA", detail


def _taken_away(settings: Settings) -> Iterator[Trap]:
    for (name, value), what in _TAKEN_AWAY.items():
        if value in settings.get(name, ()):
            yield name, "TransportOff", "a setting takes a transport away", f"{name}={value}: {what}"


def _prefixes(run: NcclRun, settings: Settings) -> Iterator[Trap]:
    """Names in NCCL_IB_HCA that fit a NIC of that very name and others, too."""
    known = {nic.name for nics in run.report.devices.nics.values() for nic in nics}
    for value in settings.get(_HCA, ()):
        if value.lstrip("^").startswith("="):
            continue
        for name in (one.partition(":")[0] for one in value.lstrip("^").split(",")):
            fits = sorted(nic for nic in known if nic.startswith(name))
            if name in known and len(fits) > 1:
                detail = f"{_HCA}={value}: {name} also means {', '.join(nic for nic in fits if nic != name)}"
                yield _HCA, "HcaPrefix", "NCCL_IB_HCA names more NICs than it seems to", detail


def _unlike(run: NcclRun, settings: Settings) -> Iterator[Trap]:
    """Settings with one value here and another there."""
    for name, values in settings.items():
        if len(values) > 1:
            told = "; ".join(
                f"{value} on {', '.join(sorted(run.node(host) for host in hosts))}"
                for value, hosts in sorted(values.items())
            )
            yield name, "SettingsDiffer", "nodes have different values of a setting", f"{name}: {told}"
