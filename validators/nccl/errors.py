"""Errors and warnings of NCCL, its plug-ins and nccl-tests, by class, in the order in which they cause each other."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

_LONGEST_TEXT = 300
# NCCL itself cuts its records at a quarter of this.
_LONGEST_RECORD = 4096
_MOST_KINDS = 500


@dataclass(frozen=True)
class ErrorClass:
    """A class of errors. ``meaning`` is constant text; ``fix`` says where to look."""

    name: str
    pattern: re.Pattern[str]
    meaning: str
    fix: str


def _class(name: str, pattern: str, meaning: str, fix: str) -> ErrorClass:
    return ErrorClass(name, re.compile(pattern), meaning, fix)


_PORT = "Look at the port's state and error counters on both ends, then at the cable."
_FIRST = "Find what the other side reported first."
# Root causes first: own GPU and program, then own device, then the path, then what follows from a dead peer.
CLASSES: tuple[ErrorClass, ...] = (
    _class(
        "segfault",
        r"Signal: Segmentation fault|exited on signal 11\b|^Segmentation fault",
        "a process crashed",
        "Take a core dump; suspect the plug-in or RDMA provider that was loaded last.",
    ),
    _class(
        "cuda_failure",
        r"Cuda failure (?:\d+ )?'|Test CUDA failure",
        "CUDA failed under NCCL",
        "Look for Xid messages on the node; 800 and 802 point at the fabric manager or IMEX.",
    ),
    _class(
        "duplicate_gpu",
        r"Duplicate GPU detected",
        "two ranks were given the same GPU",
        "Give each rank a GPU of its own.",
    ),
    _class(
        "version_mismatch",
        r"Mismatched NCCL version detected",
        "ranks run different NCCL versions",
        "Use one image for all pods.",
    ),
    _class(
        "bootstrap_no_interface",
        r"[Nn]o socket interface found",
        "NCCL found no interface to bootstrap over",
        "Check NCCL_SOCKET_IFNAME against the pod's interfaces.",
    ),
    _class(
        "network_not_found",
        r"Error: network \S+ not found|Failed to initialize any NET plugin",
        "the requested network could not be loaded",
        "Check NCCL_NET and that the plug-in is in the image.",
    ),
    _class(
        "mnnvl_not_working",
        r"MNNVL \(cliqueSize \d+\) is available but not working",
        "NVLink between hosts is there but does not work",
        "Check the IMEX daemons and the ComputeDomain.",
    ),
    _class(
        "p2p_disabled",
        r"P2P is disabled between NVLINK connected GPUs",
        "GPUs that NVLink joins cannot reach each other",
        "Look at nvidia-smi topo -p2p r and nvlink -s on the node, then at ACS and the fabric manager.",
    ),
    _class(
        "nvls_failed",
        r"Failed to bind NVLink SHARP",
        "NVLink SHARP could not be set up",
        "Check the fabric manager on the node.",
    ),
    _class(
        "ofi_mr_register",
        r"NET/OFI Unable to register memory",
        "the Libfabric plug-in could not register GPU memory",
        "Check locked-memory limits, the plug-in against the driver, and GPU memory export of the provider.",
    ),
    _class(
        "ib_memory_registration",
        r"Call to ibv_reg_(?:dmabuf_)?mr\w* failed",
        "memory could not be registered with the NIC",
        "Check the locked-memory limit, and nvidia_peermem or DMA-BUF.",
    ),
    _class(
        "ib_connect",
        r"Call to ibv_modify_qp failed",
        "a queue pair could not be connected",
        "Check GID index, subnet, VLAN and MTU between the two ports.",
    ),
    _class(
        "ib_verbs", r"Call to ibv_\w+ failed", "a call to the RDMA device failed", "Check the RDMA device in the pod."
    ),
    _class(
        "ib_async_fatal",
        r"NET/IB\S* ?: .*async (?:fatal event|(?:error )?event ?: .*"
        r"(?:port error|device fatal|fatal|local work queue|access violation))",
        "a NIC or its port failed",
        _PORT,
    ),
    _class(
        "ib_completion_4",
        r"Got completion .*with (?:error 4\b|status=(?:[^(]*\()?4\b)",
        "a NIC rejected local memory",
        "Suspect GPUDirect mapping: IOMMU, ACS, nvidia_peermem.",
    ),
    _class(
        "ib_completion_12",
        r"Got completion .*with (?:error 12\b|status=(?:[^(]*\()?12\b)",
        "a peer did not answer in time",
        _PORT,
    ),
    _class(
        "ib_completion_13",
        r"Got completion .*with (?:error 13\b|status=(?:[^(]*\()?13\b)",
        "a peer was not ready to receive in time",
        _PORT,
    ),
    _class(
        "ib_completion_remote",
        r"Got completion .*with (?:error (?:9|10|11)\b|status=(?:[^(]*\()?(?:9|10|11)\b)",
        "a peer refused an operation",
        _FIRST,
    ),
    _class(
        "ib_completion",
        r"Got completion .*with (?:error (?!5\b)\d+|status=(?:[^(]*\()?(?!5\b)\d+)",
        "an RDMA operation failed",
        _PORT,
    ),
    _class(
        "bootstrap_timeout",
        r"[Bb]ootstrap\w*.*(?:timeout|timed out)",
        "ranks did not find each other in time",
        "Check DNS, network policies and that every pod started.",
    ),
    _class(
        "socket",
        r"Net : Connect|socketStartConnect: Connect|socketPollConnect|[Cc]onnection closed by|"
        r"Call to (?:connect|recv|send|bind|accept)\b.*failed|[Cc]onnect to \S+ failed",
        "a TCP connection failed or the other side closed it",
        _FIRST,
    ),
    _class(
        "nccl_tests_timeout",
        r"Test timeout \(",
        "the benchmark ran into its own time limit",
        "See which rank lags; NCCL's RAS client tells.",
    ),
    _class(
        "nccl_tests_failure",
        r"Test NCCL failure ",
        "the benchmark stopped on an NCCL error",
        "Look at the first NCCL warning above.",
    ),
    _class(
        "ib_completion_5",
        r"Got completion .*with (?:error 5\b|status=(?:[^(]*\()?5\b)",
        "RDMA operations were flushed after another error",
        _FIRST,
    ),
)
_ORDER = {one.name: place for place, one in enumerate(CLASSES)}
# The program's own last words; they add nothing once the cause is known.
_CONSEQUENCES = ("nccl_tests_failure",)
# What a rank says when another one has died: by itself it explains nothing.
_ECHOES = (*_CONSEQUENCES, "socket", "ib_completion_remote", "ib_completion_5")
# What goes wrong on the host that says so. Its peers then miss it, each in its own words.
_LOCAL = ("segfault", "cuda_failure", "ib_memory_registration", "ib_verbs", "ib_async_fatal", "ib_completion_4")
# The cheap question that decides whether a line outside NCCL's records is worth the expensive ones.
_OUTSIDE = re.compile(
    rb"Test (?:NCCL failure|CUDA failure|timeout)|Segmentation fault|exited on signal|Cuda failure"
    rb"|Watchdog caught collective|died from signal|# error: "
)
_OUTSIDE_WARNING = re.compile(r"Watchdog caught collective operation timeout|died from signal \d+|# error: ")
# Common, and no sign of trouble.
_HARMLESS = re.compile(
    r"Could not find real path of|Failed to find CUDA library|Could not (?:find|load) .*plugin", re.I
)
_PEER = re.compile(r"from peer (\S+?)(?:<\d+>)? ")
_HCA = re.compile(r"\bhca (\S+)\s*$")
_DEVICE = re.compile(r"NET/IB\S* ?: ([\w.\-]+):\d+ (?:Got|async)")
_NUMBERS = re.compile(r"0x[0-9a-f]+|\d+")


@dataclass
class ErrorRecord:
    """Errors of one class that name the same host, peer and HCA; ``text`` is the first one's."""

    name: str
    count: int
    host: str | None
    peer: str | None
    hca: str | None
    text: str

    @property
    def error_class(self) -> ErrorClass:
        """What is known about the class."""
        return CLASSES[_ORDER[self.name]]

    @property
    def echo(self) -> bool:
        """Whether a rank says so when another one has died, so that it explains nothing by itself."""
        return self.name in _ECHOES

    @property
    def local(self) -> bool:
        """Whether it went wrong on the host that says so, and not between two hosts."""
        return self.name in _LOCAL


@dataclass
class WarningRecord:
    """Warnings that differ only in numbers; ``text`` is the first one's."""

    count: int
    host: str | None
    text: str


class Errors:
    """What went wrong, grouped as it is read, so that a million lines of one kind cost one entry."""

    def __init__(self) -> None:
        self._errors: dict[tuple[str, str | None, str | None, str | None], ErrorRecord] = {}
        self._warnings: dict[tuple[str, str | None], WarningRecord] = {}
        self._first_completion: dict[str | None, str] = {}

    def warned(self, text: str, host: str) -> None:
        """Read a WARN record of NCCL."""
        text = text[:_LONGEST_RECORD]
        if not self._error(text, host) and not _HARMLESS.search(text):
            self._warning(text, host)

    def outside(self, line: bytes) -> None:
        """Read a line that NCCL did not print."""
        if _OUTSIDE.search(line) is None:
            return
        text = line.decode("utf-8", "replace").strip()
        if not self._error(text, None) and _OUTSIDE_WARNING.search(text):
            self._warning(text, None)

    def __len__(self) -> int:
        return len(self._errors)

    def ranked(self, host_of: Mapping[str, str]) -> list[ErrorRecord]:
        """The errors, root causes first. ``host_of`` maps addresses to host names, for peers."""
        found = list(self._errors.values())
        causes = [one for one in found if one.name not in _CONSEQUENCES]
        found = causes or found
        for one in found:
            one.peer = host_of.get(one.peer, one.peer) if one.peer else None
        return sorted(found, key=lambda one: (_ORDER[one.name], -one.count, one.host or "", one.hca or ""))

    def timeouts(self, found: Iterable[ErrorRecord], hosts: Iterable[str]) -> tuple[dict[str, int], str | None]:
        """How many RDMA timeouts name each node, as reporter or as peer, and the node that most of them name.

        A node whose operations were flushed before it reported a timeout is a victim and no suspect.
        """
        votes: Counter[str] = Counter()
        for one in found:
            if one.name == "ib_completion_12":
                for node in {one.host, one.peer}.intersection(hosts):
                    votes[str(node)] += one.count
        candidates = [node for node in votes if self._first_completion.get(node) != "ib_completion_5"]
        candidates.sort(key=lambda node: (-votes[node], node))
        tie = len(candidates) > 1 and votes[candidates[0]] == votes[candidates[1]]
        return dict(sorted(votes.items())), None if tie or not candidates else candidates[0]

    def warnings(self) -> list[WarningRecord]:
        """The warnings, most frequent first."""
        return sorted(self._warnings.values(), key=lambda one: (-one.count, one.text))

    def _error(self, text: str, host: str | None) -> bool:
        one = next((known for known in CLASSES if known.pattern.search(text)), None)
        if one is None:
            return False
        if one.name.startswith("ib_completion"):
            self._first_completion.setdefault(host, one.name)
        peer, hca = _PEER.search(text), _HCA.search(text) or _DEVICE.search(text)
        key = (one.name, host, peer[1] if peer else None, hca[1] if hca else None)
        if key not in self._errors and len(self._errors) >= _MOST_KINDS:
            key = (one.name, None, None, None)
        record = self._errors.get(key)
        if record is None:
            self._errors[key] = ErrorRecord(one.name, 1, *key[1:], text=text[:_LONGEST_TEXT])
        else:
            record.count += 1
        return True

    def _warning(self, text: str, host: str | None) -> None:
        key = (_NUMBERS.sub("N", text[:_LONGEST_TEXT]), host)
        record = self._warnings.get(key)
        if record is not None:
            record.count += 1
        elif len(self._warnings) < _MOST_KINDS:
            self._warnings[key] = WarningRecord(1, host, text[:_LONGEST_TEXT])
