"""Folds host names the way Slurm does: gpu-0001, gpu-0002, gpu-0007 -> gpu-[0001-0002,0007]."""

from __future__ import annotations

import re
from collections.abc import Iterable


def fold(names: Iterable[str]) -> str:
    """One short text for many names; names without a trailing number stay as they are."""
    numbered: dict[tuple[str, int], list[int]] = {}
    plain: list[str] = []
    for name in sorted(set(names)):
        found = re.fullmatch(r"(.*?)(\d+)", name)
        if found:
            numbered.setdefault((found.group(1), len(found.group(2))), []).append(int(found.group(2)))
        else:
            plain.append(name)
    folded = [_prefix(prefix, width, numbers) for (prefix, width), numbers in sorted(numbered.items())]
    return " ".join(folded + plain)


def _prefix(prefix: str, width: int, numbers: list[int]) -> str:
    if len(numbers) == 1:
        return f"{prefix}{numbers[0]:0{width}d}"
    ranges: list[list[int]] = []
    for number in sorted(numbers):
        if ranges and number == ranges[-1][1] + 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    parts = (f"{a:0{width}d}" if a == b else f"{a:0{width}d}-{b:0{width}d}" for a, b in ranges)
    return f"{prefix}[{','.join(parts)}]"
