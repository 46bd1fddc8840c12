"""The engine: the programs that a rehearsal runs, found or made.

Looked for in $GPUREADY_BIN, in the cache and on PATH; else downloaded from the projects' releases; else
built with Go. ``python -m gpuready.rehearsal.engine`` does just this and says where each is.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from gpuready.charts_values.errors import GpureadyError, InputError, ToolError

from .. import progress
from ..progress import Say
from . import cache, gobuild, releases
from .parts import PARTS, PROGRAMS, Part, Program, complaint, machine

Binaries = Mapping[str, Path]


def find(say: Say = progress.quiet, *, make: bool = True, sources: Mapping[str, str] = releases.OFFICIAL) -> Binaries:
    """The path of each program of the engine, by name; downloads or builds what this machine lacks.

    ``say`` gets a line for everything that takes time or is passed over. Without ``make`` nothing is
    downloaded or built. ``sources`` says where the releases are. Raises InputError where $GPUREADY_BIN is
    wrong, ToolError where a program can neither be found nor made.
    """
    # What an earlier place holds, a later one does not replace.
    found = _own(os.environ.get("GPUREADY_BIN"))
    root = cache.folder()
    found = _cached(_missing(found), root, say) | found
    if _missing(found):
        found = _on_path(_missing(found), say) | found
    if _missing(found) and not make:
        raise ToolError(f"{_names(_missing(found))}: not on this machine; get them with: make engine")
    if _missing(found):
        with cache.locked(root, say):
            # Whoever held the lock before may have made it.
            found = _cached(_missing(found), root, progress.quiet) | found
            found = _make(_missing(found), root, sources, say) | found
    return found


def link(binaries: Binaries, folder: Path) -> None:
    """Put a link to each program into a new folder."""
    folder.mkdir()
    for name, path in binaries.items():
        (folder / name).symlink_to(path)


def key(part: Part) -> str:
    """The name of a part's cache entry: it changes with everything that decides what is in there."""
    recipe = hashlib.sha256(repr((sorted(part.versions.items()), gobuild.arguments(part))).encode())
    for file in gobuild.files(part):
        recipe.update(file.name.encode() + b"\0" + file.read_bytes())
    return f"{part.name}-{part.version}-{sys.platform}-{machine()}-{recipe.hexdigest()[:12]}"


def _missing(found: Binaries) -> list[Part]:
    return [part for part in PARTS if not set(part.names) <= set(found)]


def _names(parts: Iterable[Part]) -> str:
    return ", ".join(name for part in parts for name in part.names)


def _own(folder: str | None) -> dict[str, Path]:
    """The programs that the user's own folder holds; each must suit."""
    if not folder:
        return {}
    own = Path(folder).absolute()
    if not own.is_dir():
        raise InputError(f"$GPUREADY_BIN is {folder}, which is no folder")
    there = {program: own / program.name for program in PROGRAMS if (own / program.name).exists()}
    for fault in _complaints(there).values():
        if fault:
            raise InputError(f"$GPUREADY_BIN: {fault}")
    return {program.name: path for program, path in there.items()}


def _cached(parts: Iterable[Part], root: Path, say: Say) -> dict[str, Path]:
    entries = {part.names: cache.find(root, key(part), part.names, say) for part in parts}
    return {name: entry / name for names, entry in entries.items() if entry for name in names}


def _on_path(parts: Iterable[Part], say: Say) -> dict[str, Path]:
    """The programs on PATH whose versions suit; says which do not."""
    there = {}
    for program in (program for part in parts for program in part.programs):
        if path := shutil.which(program.name):
            there[program] = Path(path)
    faults = _complaints(there)
    for fault in faults.values():
        if fault:
            say(f"passed over: {fault}")
    return {program.name: path for program, path in there.items() if not faults[program]}


def _complaints(paths: Mapping[Program, Path]) -> dict[Program, str | None]:
    with ThreadPoolExecutor(max(1, len(paths))) as pool:
        return dict(zip(paths, pool.map(complaint, paths.keys(), paths.values()), strict=True))


def _make(parts: list[Part], root: Path, sources: Mapping[str, str], say: Say) -> dict[str, Path]:
    made: dict[str, Path] = {}
    reasons: list[str] = []
    downloads = _downloads(parts, sources, say, reasons)
    for part in parts:
        try:
            if part.name in downloads:
                made |= _download(part, downloads[part.name], root, say)
        except GpureadyError as error:
            reasons.append(str(error))
            say(str(error))
    left = [part for part in parts if not set(part.names) <= set(made)]
    if not left:
        return made
    try:
        go = gobuild.find_go()
    except ToolError as error:
        raise ToolError(
            f"{_names(left)}: not on this machine; no download ({'; '.join(reasons)}); no build ({error}). "
            "Connect to the network, or install Go, or name a folder that holds them in $GPUREADY_BIN"
        ) from error
    for part in left:
        made |= _build(go, part, root, say)
    return made


def _downloads(
    parts: list[Part], sources: Mapping[str, str], say: Say, reasons: list[str]
) -> dict[str, dict[releases.Asset, str]]:
    """The parts, by name, that can be downloaded, with the checksum of each of their assets."""
    assets = {part.name: releases.assets(part, machine(), sources) for part in parts}
    sums = releases.checksums(asset for some in assets.values() for asset in some)
    hosts: dict[str, list[str]] = {}
    for asset, answer in sums.items():
        if isinstance(answer, GpureadyError):
            hosts.setdefault(str(answer), []).append(asset.checksums_host)
    faults = [f"{', '.join(dict.fromkeys(names))}: {reason}" for reason, names in hosts.items()]
    if not sums:
        faults = [f"there are no releases for {machine()}"]
    if faults:
        reasons += faults
        say(f"no download: {'; '.join(faults)}")
    return {
        name: {asset: str(sums[asset]) for asset in some}
        for name, some in assets.items()
        if some and not any(isinstance(sums[asset], GpureadyError) for asset in some)
    }


def _download(part: Part, wanted: Mapping[releases.Asset, str], root: Path, say: Say) -> dict[str, Path]:
    with progress.long(f"downloading {part.name} {part.version} for {machine()}", say) as detail:

        def fill(folder: Path) -> None:
            releases.fetch(wanted, folder, detail)
            _prove(part, folder)

        entry = cache.store(root, key(part), part.names, fill)
    return {name: entry / name for name in part.names}


def _build(go: Path, part: Part, root: Path, say: Say) -> dict[str, Path]:
    cost = "5 to 10 minutes on 2 cores, 3 GiB of memory" if part.name == "kubernetes" else "1 to 2 minutes"
    note = f"once, by {go}; {cost}"
    with progress.long(f"building {part.name} {part.version} from source", say, note) as detail:

        def fill(folder: Path) -> None:
            gobuild.build(go, part, folder, detail)
            _prove(part, folder)

        entry = cache.store(root, key(part), part.names, fill)
    return {name: entry / name for name in part.names}


def _prove(part: Part, folder: Path) -> None:
    """Raises ToolError where a program that was just made does not run, or is of another version."""
    for program in part.programs:
        if fault := complaint(program, folder / program.name):
            raise ToolError(fault)
