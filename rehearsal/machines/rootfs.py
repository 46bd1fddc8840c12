"""The machines' root file system: Debian with systemd, sshd and containerd, made once and kept in the cache.

mmdebstrap makes it from the Debian mirror that apt is configured with. Every machine gets a writable layer of
its own over it; the cached one is never written to.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import signal
import subprocess
import tempfile
import threading
from importlib.resources import files
from pathlib import Path

from gpuready.charts_values.errors import DeadlineError, ToolError

from .. import progress
from ..engine import cache
from ..engine.parts import machine
from ..progress import Say

SUITE = "bookworm"
_DEFAULT_MIRROR = "http://deb.debian.org/debian"
_PACKAGES = (
    *("systemd", "systemd-sysv", "dbus", "udev", "openssh-server", "sudo", "python3"),
    *("iproute2", "iptables", "kmod", "pciutils", "procps", "ethtool", "iputils-ping"),
    *("containerd", "runc", "containernetworking-plugins", "busybox-static"),
)
# What a whole root file system holds; the cache remembers size and checksum of each.
_PROOF = ("usr/bin/containerd", "usr/sbin/runc", "usr/sbin/sshd", "usr/lib/cni/bridge", "bin/busybox")
_SECONDS = 900.0
_TOOL = ("mmdebstrap", "mmdebstrap")
_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")


def find(say: Say) -> Path | None:
    """The root file system, where the cache holds it."""
    entry = cache.find(cache.folder(), _key(), _names(), say)
    return entry / "root" if entry else None


def lacking() -> list[tuple[str, str]]:
    """The programs that making it needs, with their packages."""
    return [_TOOL]


def make(say: Say) -> Path:
    """The root file system; made where the cache lacks it. Raises ToolError, DeadlineError."""
    if found := find(say):
        return found
    if not _KEYRING.exists():
        raise ToolError(f"{_KEYRING} is not on this host; apt install debian-archive-keyring")
    root = cache.folder()
    with cache.locked(root, say):
        # Whoever held the lock before may have made it.
        if found := find(progress.quiet):
            return found
        text = f"making the machines' root file system, Debian {SUITE}"
        with progress.long(text, say, f"once, by mmdebstrap from {_mirror()}; about a minute, 400 MiB") as detail:
            entry = cache.store(root, _key(), _names(), lambda folder: _fill(folder, detail))
    return entry / "root"


def _names() -> tuple[str, ...]:
    return tuple(f"root/{name}" for name in _PROOF)


def _recipe() -> dict[str, bytes]:
    """What the root file system gets besides its packages, and the script that puts it there."""
    return {one.name: one.read_bytes() for one in (files(__package__) / "files").iterdir()}


def _key() -> str:
    recipe = hashlib.sha256(repr((SUITE, _PACKAGES, sorted(_recipe().items()))).encode()).hexdigest()[:12]
    return f"machine-{SUITE}-linux-{machine()}-{recipe}"


def _mirror() -> str:
    """The Debian mirror that apt uses on this host, else the default."""
    command = ["apt-get", "indextargets", "--format", "$(SITE) $(RELEASE)"]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        answer = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
        for line in answer.stdout.splitlines():
            site, _, release = line.partition(" ")
            if release == SUITE and re.fullmatch(r"https?://\S+/debian/?", site):
                return site
    return _DEFAULT_MIRROR


def _fill(folder: Path, detail: Say) -> None:
    root = folder / "root"
    with tempfile.TemporaryDirectory(prefix="gpuready-") as scratch:
        for name, content in _recipe().items():
            (Path(scratch) / name).write_bytes(content)
        script = Path(scratch) / "customize.sh"
        script.chmod(0o755)
        command = [
            "mmdebstrap",
            "--mode=root",
            "--variant=minbase",
            "--format=directory",
            f"--include={','.join(_PACKAGES)}",
            # It is renamed into place when it is whole, and need not survive a power cut before.
            "--dpkgopt=force-unsafe-io",
            "--dpkgopt=path-exclude=/usr/share/man/*",
            "--dpkgopt=path-exclude=/usr/share/locale/*",
            "--dpkgopt=path-exclude=/usr/share/doc/*",
            f"--keyring={_KEYRING}",
            f"--customize-hook={script}",
            SUITE,
            str(root),
            _mirror(),
        ]
        _run(command, detail)


def _run(command: list[str], detail: Say) -> None:
    """Run mmdebstrap in a session of its own, so that all of it ends at the deadline."""
    said: list[str] = []
    environ = {**os.environ, "LC_ALL": "C"}
    try:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
            errors="replace", env=environ, start_new_session=True,
        )  # fmt: skip
    except OSError as error:
        raise ToolError(f"cannot run {command[0]}: {error.strerror}") from error
    late = threading.Event()

    def end() -> None:
        late.set()
        _kill(process)

    timer = threading.Timer(_SECONDS, end)
    timer.daemon = True
    timer.start()
    try:
        for line in process.stderr or ():
            if line.startswith("I: "):
                detail(line[3:].strip())
            elif line.strip():
                said.append(line.strip())
        code = process.wait()
    finally:
        timer.cancel()
        if process.poll() is None:
            _kill(process)
        process.communicate()
    if late.is_set():
        raise DeadlineError(f"mmdebstrap did not end within {_SECONDS / 60:.0f} min")
    if code != 0:
        errors = [line for line in said if line.startswith("E:")] or said
        raise ToolError(f"mmdebstrap failed (exit {code}): {' | '.join(errors[:2]) or 'it says nothing'}")


def _kill(process: subprocess.Popen[str]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
