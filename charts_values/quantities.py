"""Quantities as Kubernetes writes them: 8, 1k, 512Mi, 1e3. The API prints 1000 of anything as 1k."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Any

from .errors import InputError

_NUMBER = re.compile(r"([+-]?(?:\d+\.?\d*|\.\d+))(?:[eE]([+-]?\d{1,3})|([numkMGTPE]|[KMGTPE]i)?)", re.ASCII)
_POWERS = {"n": -9, "u": -6, "m": -3, "": 0, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}
_FACTORS = {
    **{suffix: Decimal(10) ** power for suffix, power in _POWERS.items()},
    **{f"{letter}i": Decimal(2) ** (10 * (place + 1)) for place, letter in enumerate("KMGTPE")},
}


def parse(value: Any) -> Decimal:
    """The number that a quantity stands for; raises InputError where it is none."""
    found = _NUMBER.fullmatch(str(value)) if isinstance(value, str | int | float | Decimal) else None
    if found is None or isinstance(value, bool):
        raise InputError(f"{value!r} is no quantity of Kubernetes, such as 8, 1k or 512Mi")
    number, exponent, suffix = found.groups()
    return Decimal(number) * (Decimal(10) ** int(exponent) if exponent else _FACTORS[suffix or ""])


def milli(value: Any) -> int:
    """Thousandths of it, as CPU is counted: 500m is 500, 1.5 is 1500; raises InputError where it is no quantity."""
    return round(1000 * parse(value))


def count(value: Any) -> int:
    """How many whole things a quantity is; raises InputError where it is no quantity."""
    return int(parse(value))


def leading(text: Any) -> float:
    """The number that a text of the kernel begins with, such as `32.0 GT/s PCIe`; 0 where it begins with none."""
    first = str(text or "").split(" ")[0]
    return float(first) if first.replace(".", "", 1).isdecimal() else 0.0
