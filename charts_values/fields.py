"""Fields of an inventory entry, checked: what does not fit is one line that names the key."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from ipaddress import ip_network
from typing import Any
from urllib.parse import urlsplit

from .errors import InputError


def choices(where: str, value: Mapping[str, Any], allowed: Mapping[str, tuple[str, ...]]) -> None:
    """Each key of ``allowed`` that is given has one of its values."""
    for key, values in allowed.items():
        if key in value and value[key] not in values:
            raise InputError(f"{where}: `{key}` is {value[key]!r}; it may be {', '.join(values)}")


def known(where: str, value: Mapping[str, Any], keys: set[str]) -> None:
    """No other key than these."""
    unknown = sorted(set(value) - keys, key=str)
    if unknown:
        raise InputError(f"{where}: unknown key {unknown[0]!r}; known keys are {', '.join(sorted(keys))}")


def texts(where: str, value: Mapping[str, Any], keys: Iterable[str], *, none: bool = False) -> None:
    """Each of ``keys`` that is given is text; with ``none`` it may be None as well."""
    for key in keys:
        found = value.get(key, "")
        if not isinstance(found, str) and not (none and found is None):
            raise InputError(f"{where}: `{key}` is {found!r}; it is text, so write it in quotes")


def flags(where: str, value: Mapping[str, Any], keys: Iterable[str]) -> None:
    """Each of ``keys`` that is given is True or False."""
    for key in keys:
        if not isinstance(found := value.get(key, False), bool):
            raise InputError(f"{where}: `{key}` is {found!r}; it is True or False")


def whole(where: str, value: Mapping[str, Any], keys: Iterable[str]) -> None:
    """Each of ``keys`` that is given is a whole number, 0 or more."""
    for key in keys:
        found = value.get(key, 0)
        if not isinstance(found, int) or isinstance(found, bool) or found < 0:
            raise InputError(f"{where}: `{key}` is {found!r}; it is a whole number, without quotes")


def numbers(where: str, value: Mapping[str, Any], keys: Iterable[str]) -> None:
    """Each of ``keys`` that is given is a number, 0 or more."""
    for key in keys:
        found = value.get(key, 0)
        if not isinstance(found, int | float) or isinstance(found, bool) or not 0 <= found < math.inf:
            raise InputError(f"{where}: `{key}` is {found!r}; it is a number, without quotes")


def table(where: str, value: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """The table under ``key``, empty where it is left out."""
    found = value.get(key, {})
    if not isinstance(found, Mapping):
        raise InputError(f"{where}: `{key}` must be a table, not {type(found).__name__}")
    return found


def named(where: str, value: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """The table under ``key``, by names."""
    found = table(where, value, key)
    for name in found:
        if not isinstance(name, str):
            raise InputError(f"{where}: `{key}` has the name {name!r}; names are text, so write it in quotes")
    return found


def labels(where: str, value: Mapping[str, Any], key: str) -> Mapping[str, str]:
    """The table under ``key``, of text to text."""
    found = named(where, value, key)
    for name, text in found.items():
        if not isinstance(text, str):
            raise InputError(f"{where}: `{key}` {name!r} is {text!r}; it is text, so write it in quotes")
    return found


def strings(where: str, key: str, value: Any) -> tuple[str, ...]:
    """A list of names."""
    if isinstance(value, str | bytes) or not isinstance(value, Sequence) or not all(isinstance(x, str) for x in value):
        raise InputError(f"{where}: `{key}` must be a list of names")
    return tuple(value)


def cidr(where: str, key: str, value: str) -> None:
    """A network such as 10.244.0.0/16."""
    try:
        ip_network(value)
    except ValueError as error:
        raise InputError(f"{where}: `{key}` is {value!r}: {error}; write it like 10.244.0.0/16") from error


def endpoint(where: str, key: str, value: str) -> None:
    """A host with or without a port, or an https URL of one, without a path."""
    try:
        url = urlsplit(value if "//" in value else f"//{value}")
        good = bool(url.hostname) and url.port != 0 and url.scheme in ("", "http", "https")
    except ValueError:
        good = False
    if not good or url.path.strip("/") or url.query:
        raise InputError(
            f"{where}: `{key}` is {value!r}; it is host:port, such as 192.0.2.1:6443 or [2001:db8::1]:6443"
        )
