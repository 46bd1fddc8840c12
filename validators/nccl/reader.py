"""Reads logs of NCCL and nccl-tests. Memory grows with ranks and channels, not with the length of the log."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable
from itertools import compress
from operator import not_

from . import channels, results
from .channels import CHANNEL, CHANNEL_PATTERN, COLLNET, RingList, Transport
from .communicators import Communicators
from .devices import Devices
from .errors import Errors
from .records import PREFIX, Process, Processes, undecorated
from .sources import Source, Stamps, blocks
from .tables import Table, TableReader

_VERSION = re.compile(rb"NCCL version (\d+\.\d+\.\d+[\w.+\-]*)")
_RETURNED = re.compile(rb"\S+\.(?:cc|h|cu):\d+ -> (\d{1,9})")
# Seen on every normal end: sockets that close, and calls still in progress.
_NORMAL_RETURN = re.compile(rb"(?:misc/socket|misc/ipcsocket|proxy)\.cc:\d+ -> |\S+ -> (?:0|7)\b")
# How the records begin that are worth a look; whole channels apart, most of which are known already.
_WORDS = (
    rb"(?:Ch|Ring |Using network|comm |CollNet|GPU Direct|NVLS (?:comm|multicast)|MNNVL|Connected all|nccl"
    rb"|NCCL|Trees |Bootstrap|There are|\[Rank|NET/(?:IB|Socket) : |NET/[^:]+: GPU|NET/OFI Could not disable"
    rb"|(?:[\w/\-]*+\.)++(?:cc|h|cu):\d+ -> )"
)
# A line from its " NCCL " on: a whole channel as groups 1 and 2, or the beginning of anything else worth a look.
_WORTH = re.compile(rb" NCCL (?:INFO (?:%b|%b)|WARN)" % (CHANNEL_PATTERN, _WORDS))
# All the rest; who printed it is all that counts of it.
_QUIET = re.compile(rb" NCCL INFO (?!%b).*" % _WORDS)
_INFO, _WARN = b" NCCL INFO", b" NCCL WARN"
_DIGITS = frozenset(b"0123456789.-")
# From this share of quiet or new lines on, it pays to look for the quiet ones first.
_CHATTY = 0.125
_MOST_HEADS = 100_000
# Lines that say nothing new: so many bytes of them are kept, and what keeping one costs besides its text.
_MOST_KNOWN = 32 << 20
_LINE_OVERHEAD = 130
_MOST_TORN = 1_000
_MOST_TREES = 20_000
_MOST_TRANSPORTS = 50_000


class Reader:
    """What was read so far. ``feed`` takes one source after the other; the rest are results."""

    def __init__(self) -> None:
        self.lines = 0
        self.torn = 0
        self.lost = 0
        self.torn_records: list[tuple[Process, bytes]] = []
        self.headless: list[tuple[bytes, int]] = []
        self.processes = Processes()
        self.communicators = Communicators()
        self.devices = Devices()
        self.errors = Errors()
        self.tables: list[TableReader] = []
        self.documents: list[Table] = []
        self.transports: list[Transport] = []
        self.versions: dict[str, set[str]] = {}
        self.library_versions: set[str] = set()
        self.ring_lists: dict[tuple[str, int, int], RingList] = {}
        self.trees: set[bytes] = set()
        self.rings_connected = False
        self.trees_connected = False
        self.failed_calls: set[int] = set()
        self._transport_numbers: dict[bytes, int] = {}
        self._heads: dict[bytes, Process] = {}
        self._quiet: dict[bytes, Process] = {}
        self._known: dict[bytes, Process] = {}
        self._room = _MOST_KNOWN
        self._said: Counter[Process | None] = Counter()
        self._chatty = False
        self._table = TableReader()
        self._handlers: dict[bytes, Callable[[Process, bytes], None]] = {
            b"Using": self._using,
            b"comm": self._communicator,
            b"CollNet": self._collnet,
            b"GPU": lambda process, text: self.devices.gpu_distance(text, process.host),
            b"NVLS": self._nvls,
            b"MNNVL": lambda process, text: self.communicators.clique(text),
            b"Connected": self._connected,
            b"NCCL": lambda process, text: self._version(text, process.host),
            b"Bootstrap": lambda process, text: self.devices.address(text, process.host),
            b"Bootstrap:": lambda process, text: self.devices.address(text, process.host),
            b"There": self._mismatch,
            b"Trees": self._trees,
            b"[Rank": self._communicator,
        }

    def feed(self, source: Source) -> None:
        """Read one source to its end."""
        self._table = TableReader()
        self.tables.append(self._table)
        stamps = Stamps()
        left = b""
        for block in blocks(source):
            if block.cut:
                left = stamps.off(block.text)
            else:
                self._whole_lines(block.text, stamps)
        for line in filter(None, (left, *stamps.rest())):
            self.lines += 1
            self._irregular(line, cut=True)
        self._table.end()

    def end(self) -> None:
        """All sources are read."""
        for process, times in self._said.items():
            if process is not None:
                process.records += times

    def _whole_lines(self, text: bytes, stamps: Stamps) -> None:
        """Many lines at once, so that most of the work is not done line by line.

        Most lines say again what others said: they are known. Where few are, most of them are quiet.
        """
        skipped, lines = self._without_quiet(text) if self._chatty else (0, text.split(b"\n"))
        new = self._unknown(lines)
        if stamps.on(new):
            skipped, lines = self._without_quiet(stamps.off(text))
            new = self._unknown(lines)
        self.lines += skipped + len(lines)
        self._chatty = max(skipped, len(new)) > (skipped + len(lines)) * _CHATTY
        for line in new:
            self._line(line)

    def _without_quiet(self, text: bytes) -> tuple[int, list[bytes]]:
        """How many lines are quiet, by processes that are known, and the other lines."""
        # Between one quiet text and the next stands, mostly, but the head of the next.
        pieces = _QUIET.split(text)
        pieces[0] = b"\n" + pieces[0]
        end = pieces.pop()
        by = list(map(self._quiet.get, pieces))
        self._said.update(by)
        odd = list(compress(pieces, map(not_, by)))
        # A record may have run into a quiet one; then all stays as it is. To look for one letter costs next to nothing.
        records = len(pieces) + sum(piece.count(_INFO) for piece in odd) + end.count(_INFO)
        warnings = sum(piece.count(_WARN) for piece in (*odd, end))
        if text.count(_INFO) != records or (b"W" in text and text.count(_WARN) != warnings):
            return 0, text.split(b"\n")
        lines: list[bytes] = []
        for piece in odd:
            _, *whole, head = piece.split(b"\n")
            lines += whole
            lines.append(head + _INFO)
        return len(pieces) - len(odd), lines + end.split(b"\n")[1:]

    def _unknown(self, lines: list[bytes]) -> list[bytes]:
        """The lines that may say something new; the others are counted for their processes."""
        said, get = self._said, self._known.get
        before = said[None]
        said.update(map(get, lines))
        return list(compress(lines, map(not_, map(get, lines)))) if said[None] > before else []

    def _line(self, line: bytes) -> None:
        """A line that is not known yet."""
        at = line.find(b" NCCL ")
        if at < 0:
            if line:
                self._other(line)
            return
        process = self._heads.get(line[:at])
        if process is None or line.find(b" NCCL ", at + 11) >= 0:
            self._irregular(line, cut=False)
            return
        process.records += 1
        match = _WORTH.match(line, at)
        if match is None:
            self._quiet[b"\n" + line[:at]] = process
        else:
            path, via = match.groups()
            number = self._transport_numbers.get(via)
            if number is not None:
                self.connect(process, path, number)
            elif not self._record(process, line[at + 6 : at + 10], line[at + 11 :], whole=True):
                return
        self._room -= len(line) + _LINE_OVERHEAD
        if self._room < 0:
            self._known.clear()
            self._room = _MOST_KNOWN
        self._known[line] = process

    def _irregular(self, line: bytes, *, cut: bool) -> None:
        """A line whose head is new, that holds several records, or that has no end."""
        found = list(PREFIX.finditer(line))
        if not found:
            if not self._without_head(line, cut=cut):
                self._other(line)
            return
        starts = [match.start() for match in found]
        starts[0] += self._run_in(found[0])
        left = line[: starts[0]]
        self._document(left)
        in_table = bool(left) and self._table.open and self._table_line(left)
        for place, match in enumerate(found):
            last = place + 1 == len(found)
            process = self.processes.get(line[starts[place] : match.end(1)], match[2])
            process.records += 1
            if len(found) == 1 and not cut and not in_table:
                self._remember(line, match, process)
            text = line[match.end() :] if last else line[match.end() : starts[place + 1]]
            self._record(process, match[5], text, whole=last and not cut)

    def _without_head(self, line: bytes, *, cut: bool) -> bool:
        """A channel whose left end was torn off; its ranks may tell later whose it is."""
        match = CHANNEL.match(line.partition(b" NCCL INFO ")[2])
        number = self._number(match[2].rstrip()) if match and not cut else None
        if match is None or number is None:
            return False
        if len(self.headless) < _MOST_TORN:
            self.headless.append((match[1], number))
        else:
            self.lost += 1
        return True

    def _remember(self, line: bytes, match: re.Match[bytes], process: Process) -> None:
        """The next line with the same head is by the same process."""
        at = line.find(b" NCCL ")
        if match.start() < at < match.end():
            if len(self._heads) >= _MOST_HEADS:
                self._heads.clear()
                self._quiet.clear()
            self._heads[line[:at]] = process

    def _run_in(self, match: re.Match[bytes]) -> int:
        """How many characters of an open table's row ran into the host name after it."""
        if not self._table.open or (match[1], match[2]) in self.processes:
            return 0
        extra = self.processes.run_in(match[1], match[2])
        return len(extra) if _DIGITS.issuperset(extra) else 0

    def _record(self, process: Process, level: bytes, text: bytes, *, whole: bool) -> bool:
        """One record of a process. ``whole`` is False where its end is not to be seen.

        False where the same record says something more when it comes again: warnings and torn records are counted.
        """
        if level == b"WARN":
            self.errors.warned(text.decode("utf-8", "replace").strip(), process.host)
            return False
        if level != b"INFO":
            return True
        word, _, _ = text.partition(b" ")
        if word in (b"Channel", b"Ring") or b"Channel".startswith(word):
            return self._channel(process, text, whole=whole)
        handler = self._handlers.get(word)
        if handler is not None:
            handler(process, text)
        elif word.startswith(b"NET/"):
            self.devices.network(text, process.host)
        elif word.startswith(b"NCCL_"):
            self.devices.setting(text, process.host)
        elif word.startswith(b"nccl"):
            self._communicator(process, text)
        elif (match := _RETURNED.match(text)) and not _NORMAL_RETURN.match(text):
            self.failed_calls.add(int(match[1]))
        return True

    def _channel(self, process: Process, text: bytes, *, whole: bool) -> bool:
        match = CHANNEL.match(text) if whole else None
        if match is not None:
            number = self._number(match[2].rstrip())
            if number is not None:
                self.connect(process, match[1], number, match[2])
                return True
        elif whole and (ring := channels.ring_list(text)):
            self.ring_lists[process.host, process.pid, ring.channel] = ring
            return True
        if not channels.is_torn(text):
            return True
        self._torn(process, text)
        return False

    def connect(self, process: Process, path: bytes, number: int, via: bytes = b"") -> None:
        """Count a channel for a process; ``via`` is the transport as it stood in the line."""
        if via and len(self._transport_numbers) < _MOST_TRANSPORTS:
            self._transport_numbers[via] = number
        known = process.channels.setdefault(path, number)
        if known != number:
            self._again(process, path, known, number)

    def _again(self, process: Process, path: bytes, known: int, number: int) -> None:
        """The same channel over another transport: the worse one counts, the other is kept in mind."""
        old, new = self.transports[known], self.transports[number]
        worse = number if old.gdr and not new.gdr else known
        process.channels[path] = worse
        process.more_transports.add(known if worse == number else number)

    def _number(self, via: bytes) -> int | None:
        """The number of a transport; None where the text is none."""
        number = self._transport_numbers.get(via)
        if number is None and (found := channels.transport(via)) is not None:
            number = len(self.transports)
            self.transports.append(found)
            self._transport_numbers[via] = number
        return number

    def _torn(self, process: Process, text: bytes) -> None:
        self.torn += 1
        if len(self.torn_records) < _MOST_TORN:
            self.torn_records.append((process, text))
        else:
            self.lost += 1

    def _collnet(self, process: Process, text: bytes) -> None:
        match = COLLNET.match(text)
        number = self._number(match[2].rstrip()) if match else None
        if match and number is not None:
            self.connect(process, match[1], number)

    def _communicator(self, process: Process, text: bytes) -> None:
        if self.communicators.initialised(text, process) or self.communicators.shape(text):
            process.in_communicator = True

    def _using(self, process: Process, text: bytes) -> None:
        if text.startswith(b"Using network "):
            process.networks.add(text[14:].strip().decode("utf-8", "replace"))

    def _nvls(self, process: Process, text: bytes) -> None:
        # That multicast "is available" is but a capability, which only NVSwitch has; the other means it is set up.
        process.nvswitch |= text.startswith(b"NVLS multicast support is available")
        process.nvls |= text.startswith(b"NVLS comm ")

    def _connected(self, process: Process, text: bytes) -> None:
        self.rings_connected |= text.startswith(b"Connected all rings")
        self.trees_connected |= text.startswith(b"Connected all trees")

    def _trees(self, process: Process, text: bytes) -> None:
        if len(self.trees) < _MOST_TREES:
            self.trees.add(text)

    def _mismatch(self, process: Process, text: bytes) -> None:
        if text.startswith(b"There are mismatched physical devices"):
            self.devices.rails_mismatched.add(process.host)

    def _version(self, text: bytes, host: str | None = None) -> None:
        match = _VERSION.search(text)
        if match:
            hosts = self.versions.setdefault(match[1].decode(), set())
            hosts.update([host] if host else [])

    def _other(self, line: bytes) -> None:
        """A line without a record: a table's, the bare version, or the end of something else."""
        if b"NCCL version " in line:
            self._version(line)
        elif not self._document(line) and not self._table_line(line):
            self.errors.outside(line)

    def _document(self, line: bytes) -> bool:
        """The JSON that nccl-tests writes: a table, and what it says of NCCL and its environment."""
        if b"{" not in line or not results.begins(plain := undecorated(line)):
            return False
        found = results.read(plain)
        self.documents.append(found.table)
        if found.version:
            self.library_versions.add(found.version)
        host = next((device.host for device in found.table.devices.values()), "")
        for name, value in found.settings:
            self.devices.set_to(name, value, host)
        for text in found.errors:
            self.errors.outside(b"# error: " + text.encode())
        return True

    def _table_line(self, line: bytes) -> bool:
        return self._table.feed(undecorated(line))


def read_all(sources: Iterable[Source]) -> Reader:
    """Read every source as part of one run. Raises LogError where one cannot be read."""
    reader = Reader()
    for source in sources:
        reader.feed(source)
    reader.end()
    return reader
