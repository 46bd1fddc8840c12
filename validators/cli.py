"""The `gpuready` command: options in, one library call, a report and an exit code out."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml
from gpuready.charts_values import inventory
from gpuready.charts_values.errors import GpureadyError, InputError

from . import catalogue, comparison, probe, rbac, runs
from .model import EXIT_INTERRUPTED, Run
from .progress import Progress
from .report import output
from .target import inventory_file

EXIT_USAGE = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit code. Errors of ours become one line on stderr and code 2."""
    signal.signal(signal.SIGTERM, _interrupt)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by the caller; the exit code still tells
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115
    try:
        args = _parser().parse_args(argv)
        try:
            code: int = args.command(args)
            output.show("")
        except OSError as error:
            if error.filename is not None:
                raise
            output.abandon_stdout(error)
            code = EXIT_USAGE
        return code
    except GpureadyError as error:
        print(f"gpuready: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        # A file that cannot be used, where nobody has said so in better words.
        print(f"gpuready: cannot use {error.filename}: {error.strerror}", file=sys.stderr)
        return EXIT_USAGE
    except KeyboardInterrupt:
        print("gpuready: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED


def _interrupt(number: int, frame: object) -> None:
    """SIGTERM ends a run as Ctrl-C does, so that acceptance cleans up."""
    raise KeyboardInterrupt


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gpuready", description="Proves and watches GPU platforms on Kubernetes, and rehearses both."
    )
    parser.add_argument("--version", action="version", version=f"gpuready {version('gpuready')}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    one = _command(commands, "check", _check, "read-only health check: what is wrong, where, why, what to do")
    _cluster_options(one)
    _run_options(one, timeout=60.0)
    one.add_argument("--node", metavar="N", help="only what concerns this node")
    one.add_argument("--from", dest="from_bundle", metavar="BUNDLE", help="judge a saved bundle, no cluster")
    one.add_argument("--save", metavar="BUNDLE", help="keep the evidence in this new folder")

    one = _command(commands, "accept", _accept, "acceptance: also runs pods on the nodes, and cleans up")
    _cluster_options(one)
    _run_options(one, timeout=1800.0)
    one.add_argument("--nccl", choices=("off", "pair", "all"), default="all", help="all-reduce runs (all)")
    one.add_argument("--save", metavar="BUNDLE", help="keep the evidence in this new folder")
    one.set_defaults(node=None)

    one = _command(commands, "probe", _probe, "what the machine at hand is, as JSON; read-only, best as root")
    one.add_argument("--file", metavar="PATH", action="append", default=[], help="show the text of this file, too")

    one = _command(commands, "learn", _learn, "draft an inventory entry from a live cluster, for review")
    _cluster_options(one)
    one.add_argument("--timeout", metavar="S", type=_seconds, default=60.0, help="seconds (60)")
    one.add_argument("-o", dest="format", choices=("python", "json"), default="python")

    one = _command(commands, "show", _show, "render a saved run in another format")
    one.add_argument("run", metavar="RUN.json")
    _format_options(one)

    one = _command(commands, "diff", _diff, "what changed from one saved run to another")
    one.add_argument("old", metavar="OLD.json")
    one.add_argument("new", metavar="NEW.json")
    one.add_argument("--strict", action="store_true", help="warnings count as failures")
    _format_options(one)

    one = _command(commands, "list", _list, "the checks")
    one.add_argument("-o", dest="format", choices=("text", "json"), default="text")
    one = _command(commands, "explain", _explain, "what a check proves, its rule, its source, its fix")
    one.add_argument("id", metavar="ID")

    one = _command(commands, "values", _values, "what would be installed, as YAML")
    one.add_argument("release", metavar="RELEASE", nargs="?")
    _cluster_options(one)

    one = _command(commands, "rbac", _rbac, "the least role for a command, as YAML")
    one.add_argument("role", choices=rbac.ROLES)

    _add_nccl(commands)
    _add_rehearse(commands)
    return parser


def _command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    run: Callable[[argparse.Namespace], int],
    text: str,
) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
    parser.set_defaults(command=run)
    return parser


def _cluster_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--cluster", metavar="NAME", help="entry of inventory (default: $CLUSTER)")
    parser.add_argument("--kubeconfig", metavar="F", help="instead of the entry's kubeconfig")
    parser.add_argument("--context", metavar="C", help="instead of the entry's context")
    parser.add_argument("--inventory", metavar="F", help="default: $GPUREADY_INVENTORY, else ./inventory")


def _run_options(parser: argparse.ArgumentParser, *, timeout: float) -> None:
    parser.add_argument("--only", metavar="ID", action="append", help="only these checks (repeatable, glob)")
    parser.add_argument("--skip", metavar="ID", action="append", help="not these checks (repeatable, glob)")
    parser.add_argument("--timeout", metavar="S", type=_seconds, default=timeout, help=f"seconds ({timeout:g})")
    parser.add_argument("--strict", action="store_true", help="warnings count as failures")
    _format_options(parser)


def _format_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-o", "--output", dest="format", choices=output.FORMATS, default="text")
    parser.add_argument("--output-file", metavar="F", type=Path, help="write the report there, not to stdout")


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0")
    return seconds


def _check(args: argparse.Namespace) -> int:
    return _judge(args, "check", runs.check)


def _accept(args: argparse.Namespace) -> int:
    return _judge(args, "accept", runs.accept)


def _judge(args: argparse.Namespace, kind: str, run: Callable[[argparse.Namespace, Progress], runs.Judged]) -> int:
    output.require_folder(args.output_file)
    try:
        runs.selection(args)
        with Progress() as progress:
            done = run(args, progress)
    except GpureadyError as error:
        # Who reads the file must not go on believing the last one.
        if args.format != "text" or args.output_file:
            output.write(runs.unanswered(args, kind, error), args.format, args.output_file)
        raise
    code = _report(done.run, args)
    if done.run.interrupted:
        print("gpuready: interrupted; the report is of what was seen until then", file=sys.stderr)
    try:
        done.save(args.save)
    except InputError as error:
        print(f"gpuready: {error}", file=sys.stderr)
        return code or EXIT_USAGE
    return code


def _report(run: Run, args: argparse.Namespace) -> int:
    """Print or save a run. Where that fails it costs a pass, and neither the report nor its exit code."""
    try:
        output.write(run, args.format, args.output_file)
    except InputError as error:
        print(f"gpuready: {error}", file=sys.stderr)
        if args.output_file:
            output.write(run, args.format, None)
        return run.exit_code or EXIT_USAGE
    return run.exit_code


def _probe(args: argparse.Namespace) -> int:
    code: int = probe.main([part for path in args.file for part in ("--file", path)])  # type: ignore[no-untyped-call]
    return code


def _learn(args: argparse.Namespace) -> int:
    from .learn import learn

    return learn(args)


def _show(args: argparse.Namespace) -> int:
    return _report(_saved_run(args.run), args)


def _diff(args: argparse.Namespace) -> int:
    return _report(comparison.compare(_saved_run(args.old), _saved_run(args.new), strict=args.strict), args)


def _saved_run(file: str) -> Run:
    try:
        return Run.from_json(json.loads(Path(file).read_text(encoding="utf-8")))
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{file} is no run saved with -o json: {error}") from error


def _list(args: argparse.Namespace) -> int:
    output.show(catalogue.as_json() if args.format == "json" else catalogue.as_text())
    return 0


def _explain(args: argparse.Namespace) -> int:
    output.show(catalogue.explain(args.id))
    return 0


def _values(args: argparse.Namespace) -> int:
    from gpuready.charts_values import values

    table, folder = inventory.read(inventory_file(args.inventory))
    name = args.cluster or os.environ.get("CLUSTER") or inventory.DEFAULT_CLUSTER
    output.show(values.text(_on_paper(table, name, folder), args.release))
    return 0


def _on_paper(table: dict[str, Mapping[str, Any]], name: str, folder: Path) -> inventory.Cluster:
    """A cluster that need not be up: without a rehearsal, its entry is the one of the default profile."""
    up = (inventory.state_folder(folder) / inventory.STATE_FILE).exists()
    if up or not table.get(name, {}).get("rehearsal"):
        return inventory.select(table, name, folder)
    from gpuready.rehearsal import DEFAULT_NODES, DEFAULT_PROFILE, fleet

    nowhere = inventory.state_folder(folder)
    profile = fleet.load_profile(DEFAULT_PROFILE)
    entry = fleet.entry(profile, DEFAULT_NODES, nowhere, nowhere / "kubeconfig", "", None)
    return inventory.parse(name, {**entry, **table[name]}, folder)


def _rbac(args: argparse.Namespace) -> int:
    output.show(yaml.safe_dump_all(rbac.objects(args.role), sort_keys=False, explicit_start=True))
    return 0


def _add_nccl(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    from .nccl.command import add_parser, run

    add_parser(commands)
    commands.choices["nccl"].set_defaults(command=run)


def _add_rehearse(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    from gpuready.rehearsal.cli import add_parser, run

    add_parser(commands)
    commands.choices["rehearse"].set_defaults(command=run)


if __name__ == "__main__":
    sys.exit(main())
