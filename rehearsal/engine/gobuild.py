"""The engine built from the Go modules under engine/, whose go.sum pins every source."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import threading
import time
from pathlib import Path

from gpuready.charts_values.errors import DeadlineError, ToolError

from ..progress import Say
from .parts import Part

MODULES = Path(__file__).parent
HOW_TO_GET_GO = "https://go.dev/dl"

_BUILD_SECONDS = 3600.0
# A user's setting of these would change what is built.
_CLEARED = ("GOOS", "GOARCH", "GOAMD64", "GOARM64", "GOEXPERIMENT", "GODEBUG", "GO111MODULE")


def files(part: Part) -> list[Path]:
    """The files that decide what is built."""
    return sorted(path for path in (MODULES / part.name).iterdir() if path.suffix in (".mod", ".sum", ".go"))


def arguments(part: Part) -> list[str]:
    """The arguments of `go build`, but for the output."""
    stamps = " ".join(f"-X {variable}={value}" for variable, value in part.stamps.items())
    tags = ["-tags", part.tags] if part.tags else []
    return ["build", "-v", "-trimpath", *tags, "-ldflags", f"-s -w {stamps}"]


def find_go() -> Path:
    """The go command; raises ToolError where there is none, or one too old."""
    found = shutil.which("go")
    wanted = max(_go_line(file) for file in MODULES.glob("*/go.mod"))
    needed = f"Go {'.'.join(str(number) for number in wanted[:2])} or newer ({HOW_TO_GET_GO})"
    if found is None:
        raise ToolError(f"go is not installed; install {needed}")
    try:
        answer = subprocess.run(
            [found, "env", "GOVERSION"],
            env=_environ(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ToolError(f"{found} cannot be run: {error}; install {needed}") from error
    version = _numbers(answer.stdout)
    if version < wanted:
        raise ToolError(f"{found} is {answer.stdout.strip() or 'of no known version'}; install {needed}")
    return Path(found)


def build(go: Path, part: Part, folder: Path, detail: Say) -> None:
    """Build a part into ``folder``, with a link for every program that the one binary is.

    ``detail`` gets what go is at. Raises ToolError, DeadlineError.
    """
    said: list[str] = []
    packages = downloads = 0
    process = subprocess.Popen(
        [str(go), *arguments(part), "-o", str(folder / part.output), part.package],
        cwd=MODULES / part.name,
        env=_environ(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    began = time.monotonic()
    timer = threading.Timer(_BUILD_SECONDS, lambda: _kill(process))
    timer.daemon = True
    timer.start()
    try:
        for line in process.stderr or ():
            if line.startswith("go: downloading "):
                downloads += 1
                detail(f"{downloads} modules downloaded, {line.split()[2]}")
            elif re.fullmatch(r"[\w.~/@-]+", line.strip()):
                packages += 1
                detail(f"{packages} packages compiled, {line.strip()}")
            else:
                said.append(line.strip())
        code = process.wait()
    finally:
        timer.cancel()
        if process.poll() is None:
            _kill(process)
        process.communicate()
    if time.monotonic() - began >= _BUILD_SECONDS:
        raise DeadlineError(f"go build of {part.name} did not end within {_BUILD_SECONDS / 60:.0f} min")
    if code != 0:
        raise ToolError(f"go build of {part.name} failed (exit {code}): {' | '.join(said[-3:]) or 'it says nothing'}")
    for name in part.names:
        if name != part.output:
            (folder / name).symlink_to(part.output)


def _kill(process: subprocess.Popen[str]) -> None:
    """End go together with its compilers, which are in its session."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _environ() -> dict[str, str]:
    """The user's environment, proxies and caches included, without what would change the result."""
    kept = {key: value for key, value in os.environ.items() if key not in _CLEARED}
    # GOFLAGS has a value, as an empty one would let `go env -w` decide. GOTOOLCHAIN: download no other Go.
    return kept | {
        "CGO_ENABLED": "0",
        "GOFLAGS": "-mod=readonly -buildvcs=false",
        "GOTOOLCHAIN": "local",
        "GOWORK": "off",
    }


def _go_line(file: Path) -> tuple[int, ...]:
    """The Go version that a go.mod asks for."""
    line = re.search(r"^go (\S+)$", file.read_text(), re.MULTILINE)
    return _numbers(line[1]) if line else ()


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", text.partition("rc")[0])[:3])
