"""Jobs that fail, in the words of each NCCL release that has its own: what is printed, and whom it names."""

from __future__ import annotations

from collections.abc import Iterator

from gpuready.rehearsal.outputs.nccl import Dialect

from .nccl_jobs import FAIL, Job, Kind, kind, pair
from .nccl_kinds import behind

_IB = "transport/net_ib.cc:1295", "ncclIbTest"
_SOCKET = "misc/socket.cc:561", "socketPollConnect"
_PEER = "from peer 192.0.2.11<40921> "
# Release, where it is printed, what it says, the class, and peer and HCA that it names.
ERRORS: tuple[tuple[str, tuple[str, str], str, str, str | None, str | None], ...] = (
    ("2.18.3+cuda12.1", _IB, f"NET/IB : Got completion {_PEER}with error 12, opcode 0, len 0, vendor err 129",
     "ib_completion_12", "pod-1", None),
    ("2.20.3+cuda12.3", _IB, f"NET/IB : Got completion {_PEER}with status=12 opcode=0 len=0 vendor err 129",
     "ib_completion_12", "pod-1", None),
    ("2.22.3+cuda12.5", _IB, f"NET/IB: Got completion {_PEER}with status=12 opcode=0 len=0 vendor err 129 (Send)"
     " localGid fe80::1 remoteGids fe80::2 hca mlx5_1", "ib_completion_12", "pod-1", "mlx5_1"),
    ("2.28.9+cuda12.9", _IB, f"NET/IB: Got completion {_PEER}with status=IBV_WC_RETRY_EXC_ERR(12) opcode=0 len=0 "
     "vendor err 129 (Send) hca mlx5_1", "ib_completion_12", "pod-1", "mlx5_1"),
    ("2.28.9+cuda12.9", _IB, f"NET/IB: Got completion {_PEER}with status=IBV_WC_RNR_RETRY_EXC_ERR(13) opcode=0 len=0 "
     "vendor err 129 (Send) hca mlx5_0", "ib_completion_13", "pod-1", "mlx5_0"),
    ("2.28.9+cuda12.9", _IB, f"NET/IB/GIN: Got completion {_PEER}with status=IBV_WC_LOC_PROT_ERR(4) opcode=0 len=0 "
     "vendor err 81 (Recv) hca mlx5_0", "ib_completion_4", "pod-1", "mlx5_0"),
    ("2.27.7+cuda12.9", _IB, f"NET/IB: Got completion {_PEER}with status=10 opcode=0 len=0 vendor err 136 (Send) "
     "hca mlx5_0", "ib_completion_remote", "pod-1", "mlx5_0"),
    ("2.27.7+cuda12.9", _IB, f"NET/IB: Got completion {_PEER}with status=5 opcode=0 len=0 vendor err 249 (Recv) "
     "hca mlx5_0", "ib_completion_5", "pod-1", "mlx5_0"),
    ("2.18.3+cuda12.1", _IB, "NET/IB : Got async event : port error", "ib_async_fatal", None, None),
    ("2.20.3+cuda12.3", _IB, "NET/IB : mlx5_1:1 Got async event : port error", "ib_async_fatal", None, "mlx5_1"),
    ("2.24.3+cuda12.6", _IB, "NET/IB : mlx5_1:1 Got async error event: port error", "ib_async_fatal", None, "mlx5_1"),
    ("2.28.9+cuda12.9", _IB, "NET/IB : mlx5_1:1 Got non-fatal async event: port error(10)", "ib_async_fatal", None,
     "mlx5_1"),
    ("2.24.3+cuda12.6", _IB, "NET/IB : mlx5_1:1 async fatal event on QP (0x7f00): local work queue catastrophic error",
     "ib_async_fatal", None, "mlx5_1"),
    ("2.18.3+cuda12.1", _IB, "Call to ibv_reg_mr failed", "ib_memory_registration", None, None),
    ("2.20.3+cuda12.3", _IB, "Call to ibv_reg_mr_iova2 failed with error Cannot allocate memory",
     "ib_memory_registration", None, None),
    ("2.20.3+cuda12.3", _IB, "Call to ibv_create_qp failed with error Cannot allocate memory", "ib_verbs", None, None),
    ("2.20.3+cuda12.3", _IB, "Call to ibv_modify_qp failed with error Connection timed out", "ib_connect", None, None),
    ("2.24.3+cuda12.6", _IB, "Call to ibv_modify_qp failed with 110 Connection timed out, on dev mlx5_1:1, curr state "
     "INIT, next state RTR, local GID index 3", "ib_connect", None, None),
    ("2.14.3+cuda11.7", _SOCKET, "Net : Connect to 192.0.2.11<40921> failed : Connection refused", "socket", None,
     None),
    ("2.21.5+cuda12.4", _SOCKET, "socketStartConnect: Connect to 192.0.2.11<40921> failed : Software caused connection "
     "abort", "socket", None, None),
    ("2.27.7+cuda12.9", _SOCKET, "socketProgress: Connection closed by remote peer pod-1<40921>", "socket", None, None),
    ("2.29.2+cuda13.0", _SOCKET, "Call to connect to 192.0.2.11<40921> failed: Connection refused", "socket", None,
     None),
    ("2.23.4+cuda12.6", ("bootstrap.cc:45", "bootstrapNetInit"), "Bootstrap : no socket interface found",
     "bootstrap_no_interface", None, None),
    ("2.27.7+cuda12.9", ("bootstrap.cc:300", "bootstrapRoot"), "bootstrapRoot: timed out waiting for rank 3",
     "bootstrap_timeout", None, None),
    ("2.23.4+cuda12.6", ("init.cc:950", "fillInfo"), "Mismatched NCCL version detected : rank 1 version 22703 rank 0 "
     "version 22304", "version_mismatch", None, None),
    ("2.26.2+cuda12.8", ("net.cc:70", "ncclNetInit"), "Error: network IB not found.", "network_not_found", None, None),
    ("2.27.7+cuda12.9", ("plugin/net.cc:300", "ncclNetInit"), "Failed to initialize any NET plugin",
     "network_not_found", None, None),
    ("2.27.7+cuda12.9", ("init.cc:1050", "initTransportsRank"), "MNNVL (cliqueSize 8) is available but not working on "
     "some system. Check the IMEX configuration", "mnnvl_not_working", None, None),
    ("2.27.7+cuda12.9", ("transport/nvls.cc:240", "nvlsGroupBind"), "Failed to bind NVLink SHARP (NVLS) Multicast "
     "memory of size 2097152 : CUDA error 802", "nvls_failed", None, None),
    ("2.30.4+cuda13.1", ("enqueue.cc:1500", "ncclLaunchKernel"), "Cuda failure 999 'unknown error'", "cuda_failure",
     None, None),
    ("2.12.12+cuda11.6", ("init.cc:100", "x"), "Cuda failure 'out of memory'", "cuda_failure", None, None),
)  # fmt: skip
_LAST_WORDS = "pod-0: Test NCCL failure common.cu:401 'unhandled system error (run with NCCL_DEBUG=INFO) / {text}'\n"
# A rank's own GPU, then its own NIC, then a peer that does not answer, then what follows from it.
_CHAIN = (
    "NET/IB: Got completion from peer 192.0.2.11<1> with status=5 opcode=0 len=0 vendor err 249 (Recv) hca mlx5_0",
    "socketProgress: Connection closed by remote peer pod-1<40921>",
    "NET/IB: Got completion from peer 192.0.2.11<1> with status=12 opcode=0 len=0 vendor err 129 (Send) hca mlx5_1",
    "NET/IB : mlx5_1:1 Got async error event: port error",
    "Cuda failure 719 'unspecified launch failure'",
)


def broken(job: Job, *warnings: tuple[tuple[str, str], str]) -> tuple[bytes, ...]:
    """The logs of a job that ends with these warnings on its first host, in the middle of its table."""
    first, *rest = job.rendered.logs.values()
    dialect = Dialect(job.version)
    lines = [line for line in first.splitlines(keepends=True) if not line.startswith("# ") or ":" not in line[:30]]
    lines = [line for line in lines if "Destroy" not in line and "Collective test concluded" not in line]
    said = ""
    for place, text in warnings:
        before, after = dialect.warning(*place, text)
        said += f"{before}pod-0:101:301 [0] {after}\n"
        said += f"pod-0:101:301 [0] NCCL INFO {place[0].split(':')[0]}:1200 -> 6\n"
    return ("".join(lines) + said + _LAST_WORDS.format(text="")).encode(), *(text.encode() for text in rest)


def every() -> Iterator[Kind]:
    """Each class of errors in the words of each release that has its own."""
    for version, place, text, name, _, _ in ERRORS:
        job = Job(pair(), version)
        truth = {**job.truth, "errors": [name], "wrong": None}
        says = frozenset({"".join(part.capitalize() for part in name.split("_"))})
        title = f"{version.partition('+')[0]} {name}: {text[:24]}"
        yield Kind(title, "B.7", broken(job, (place, text)), truth, FAIL, says)
    job = Job(pair(), "2.27.7+cuda12.9")
    order = ["cuda_failure", "ib_async_fatal", "ib_completion_12", "socket", "ib_completion_5"]
    chain = broken(job, *((_IB, text) for text in _CHAIN))
    yield Kind("a chain of errors", "B.7 root cause", chain, {**job.truth, "errors": order, "wrong": None}, FAIL)
    rails = "There are mismatched physical devices between local (mlx5_0) and remote (mlx5_1)"
    yield kind("rails mismatched", "B.7", job, edit=behind("Connected all trees", rails))
