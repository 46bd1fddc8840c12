"""What differs between two trees of values, in words."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

_SECRET = re.compile(r"secret|password|token|credential|private", re.IGNORECASE)
_SHOWN = 6
_WIDTH = 60


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """``key.path: old -> new`` for each place that differs; the first few, then how many more.

    Values under a key that sounds like a secret are not shown.
    """
    found = list(_walk("", old, new))
    more = len(found) - _SHOWN
    return found[:_SHOWN] + ([f"and {more} more"] if more > 0 else [])


def _walk(path: str, old: Any, new: Any) -> Iterator[str]:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in sorted({*old, *new}, key=str):
            here = f"{path}.{key}" if path else str(key)
            yield from _walk(here, old.get(key, _ABSENT), new.get(key, _ABSENT))
    elif old != new:
        hidden = _SECRET.search(path) is not None
        yield f"{path}: changed" if hidden else f"{path}: {_text(old)} -> {_text(new)}"


class _Absent:
    """No such key; distinct from a null."""


_ABSENT = _Absent()


def _text(value: Any) -> str:
    if value is _ABSENT:
        return "(none)"
    text = value if isinstance(value, str) else json.dumps(value, separators=(",", ":"), default=str)
    text = " ".join(text.split())
    return text if len(text) <= _WIDTH else text[: _WIDTH - 3] + "..."
