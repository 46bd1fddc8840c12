"""Fields of an inventory entry, checked: what does not fit is one line that names the key."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from ipaddress import ip_network
from typing import Any

from .errors import InputError


def choices(where: str, value: Mapping[str, Any], allowed: Mapping[str, tuple[str, ...]]) -> None:
    """Each key of ``allowed`` that is given has one of its values."""
    for key, values in allowed.items():
        if key in value and value[key] not in values:
            raise InputError(f"{where}: `{key}` is {value[key]!r}; it may be {', '.join(values)}")


def known(where: str, value: Mapping[str, Any], keys: set[str]) -> None:
    """No other key than these."""
    unknown = sorted(set(value) - keys)
    if unknown:
        raise InputError(f"{where}: unknown key {unknown[0]!r}; known keys are {', '.join(sorted(keys))}")


def table(where: str, value: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """The table under ``key``, empty where it is left out."""
    found = value.get(key, {})
    if not isinstance(found, Mapping):
        raise InputError(f"{where}: `{key}` must be a table, not {type(found).__name__}")
    return found


def strings(where: str, key: str, value: Any) -> tuple[str, ...]:
    """A list of names."""
    if isinstance(value, str) or not isinstance(value, Sequence) or not all(isinstance(x, str) for x in value):
        raise InputError(f"{where}: `{key}` must be a list of names")
    return tuple(value)


def cidr(where: str, key: str, value: str) -> None:
    """A network such as 10.244.0.0/16."""
    try:
        ip_network(value)
    except ValueError as error:
        raise InputError(f"{where}: `{key}` is {value!r}: {error}; write it like 10.244.0.0/16") from error
