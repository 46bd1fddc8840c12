"""The checks as text: `gpuready list`, `gpuready explain`, and docs/reference/checks.md."""

from __future__ import annotations

import json
import textwrap
from dataclasses import fields

from . import registry

_TOLD = ("title", "proves", "rule", "source", "fix", "avoid", "needs", "after", "phase", "tier")


def as_text() -> str:
    """One line per check."""
    return "".join(f"{one.id:<20} {one.phase:<7} {one.title}\n" for one in registry.all_checks())


def as_json() -> str:
    """Every check with all that is written about it."""
    told = [
        {field.name: getattr(one, field.name) for field in fields(one) if field.name != "judge"}
        for one in registry.all_checks()
    ]
    return json.dumps(told, indent=2) + "\n"


def explain(id: str) -> str:
    """All about one check; raises InputError where there is none of that id."""
    one = registry.get(id)
    out = [one.id]
    for name in _TOLD:
        value = getattr(one, name)
        text = ", ".join(value) if isinstance(value, tuple) else value
        if text:
            out += textwrap.wrap(text, 100, initial_indent=f"  {name:<8}", subsequent_indent=" " * 10)
    return "\n".join(out) + "\n"


def markdown() -> str:
    """docs/reference/checks.md."""
    out = [
        "# Checks",
        "",
        "Generated from the registry by `make docs`; `gpuready explain ID` prints the same. A check of phase",
        "`check` only reads: the API and, over SSH, the machines of `ssh_nodes`; one of phase `accept` judges what",
        "probe pods did.",
    ]
    for one in registry.all_checks():
        out += ["", f"## `{one.id}`", "", f"{one.title[0].upper()}{one.title[1:]}.", ""]
        for name in _TOLD[1:]:
            value = getattr(one, name)
            text = ", ".join(f"`{v}`" for v in value) if isinstance(value, tuple) else value
            if text:
                out.append(f"- **{name}**: {text}")
    return "\n".join(out) + "\n"
