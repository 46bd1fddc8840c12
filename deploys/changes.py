"""What differs between two trees of values, in words."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

_WORDS = r"secret|passw(?:or)?d|token|credential|private"
_SECRET = re.compile(_WORDS, re.IGNORECASE)
# Below these names text is a key, a certificate or an environment variable. Whole names: labels have keys, too.
_KEYS = re.compile(
    r"((api|access|auth|ca|client|server|ssl|tls)[-_]?)?(key|cert|crt|pem|certificate)|tls|ca|(extra)?env|environment",
    re.IGNORECASE,
)
# What a text gives away by itself: who logs in at a URL, and words such as --token=...
_USER = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*://)[^/\s\"']*@")
_GIVEN = re.compile(
    rf"""([\w-]*(?:{_WORDS})[\w-]*["']?\s*[=:]\s*)("[^"]*"|'[^']*'|[^\s,}}"']+)""",
    re.IGNORECASE,
)
_HIDDEN = "(hidden)"
_SHOWN = 6
_WIDTH = 60


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """``key.path: old -> new`` for each place that differs; the first few, then how many more.

    What may be secret is not shown: values under a key that sounds so, keys and certificates, values of environment
    variables, and whoever logs in at a URL.
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
        one, other = (_text(_safe(value, path)) for value in (old, new))
        yield f"{path}: changed" if _SECRET.search(path) or one == other else f"{path}: {one} -> {other}"


def _safe(value: Any, path: str) -> Any:
    """A value without what may be secret in it; ``path`` is where it stands."""
    if isinstance(value, Mapping):
        # What names a toleration or a variable, and is no secret of it.
        shown = {"key"} if "operator" in value or "effect" in value else set()
        if "name" in value and ("value" in value or "valueFrom" in value):
            shown, hidden = {"name"}, {"value"}
        else:
            hidden = {key for key in value if _SECRET.search(str(key))}
        return {
            key: one if key in shown else _HIDDEN if key in hidden else _safe(one, f"{path}.{key}")
            for key, one in value.items()
        }
    if isinstance(value, list | tuple):
        return [_safe(one, path) for one in value]
    if not isinstance(value, str):
        return value
    if "-----BEGIN " in value or any(_KEYS.fullmatch(one) for one in path.split(".")):
        return _HIDDEN
    return _GIVEN.sub(rf"\1{_HIDDEN}", _USER.sub(rf"\1{_HIDDEN}@", value))


class _Absent:
    """No such key; distinct from a null."""


_ABSENT = _Absent()


def _text(value: Any) -> str:
    if value is _ABSENT:
        return "(none)"
    text = value if isinstance(value, str) else json.dumps(value, separators=(",", ":"), default=str)
    text = " ".join(text.split())
    return text if len(text) <= _WIDTH else text[: _WIDTH - 3] + "..."
