"""Tables such as a kubelet's configuration: read from text, and put on top of each other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml


def document(text: Any) -> dict[str, Any]:
    """A YAML or JSON table; empty where the text is none."""
    try:
        found = yaml.safe_load(text) if text else {}
    except yaml.YAMLError:
        found = {}
    return found if isinstance(found, dict) else {}


def merge_patch(base: Any, patch: Any) -> Any:
    """RFC 7386, by which a kubelet puts its drop-in files on top of its configuration."""
    if not isinstance(patch, Mapping):
        return patch
    result = dict(base) if isinstance(base, Mapping) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merge_patch(result.get(key), value)
    return result
