"""A draft: an inventory entry, what is open about it, and its text."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Path = tuple[str, ...]


@dataclass
class Draft:
    """An inventory entry and what a reviewer must know.

    ``entry`` is what `inventory.parse` takes, as far as it could be learned; a required key that could not has an
    empty value, which `parse` refuses by name. ``comments`` maps the path of a key to what is open about it: it
    begins with ``fill in:``, ``guess:`` or ``check:``. ``notes`` are about the cluster as a whole.
    """

    name: str
    entry: dict[str, Any] = field(default_factory=dict)
    comments: dict[Path, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def put(self, key: str, value: Any, comment: str = "") -> None:
        """Set a key, or leave it out where ``value`` is None; ``comment`` says what is open about it."""
        if value is not None:
            self.entry[key] = value
        if comment:
            self.comments[(key,)] = comment

    def to_json(self) -> dict[str, Any]:
        """The document of ``-o json``."""
        comments = {".".join(path): text for path, text in self.comments.items()}
        return {"schema": 1, "kind": "learn", "name": self.name, "entry": self.entry, "comments": comments,
                "notes": self.notes}  # fmt: skip

    def to_python(self) -> str:
        """The entry as it goes into `_CLUSTERS` of inventory."""
        lines = [f"    # {note}" for note in self.notes]
        lines += _table(self.name, self.entry, self.comments, (), "    ")
        return "\n".join(lines) + "\n"


def _table(name: str, table: Mapping[str, Any], comments: Mapping[Path, str], path: Path, pad: str) -> list[str]:
    """A table as Python source: values, then keys that have only a comment, then the tables within."""
    values, tables = [], []
    for key, value in table.items():
        here = (*path, key)
        if isinstance(value, dict) and (key in ("groups", "networks") or path == ("groups",)):
            tables += _table(key, value, comments, here, pad + "    ")
        else:
            values.append(f"{pad}    {_literal(key)}: {_literal(value)}," + _comment(comments.get(here, "")))
    missing = [where for where in comments if where[:-1] == path and where[-1] not in table]
    values += [f"{pad}    # {_literal(where[-1])}:" + _comment(comments[where]) for where in missing]
    return [f"{pad}{_literal(name)}: {{" + _comment(comments.get(path, "")), *values, *tables, f"{pad}}},"]


def _literal(value: Any) -> str:
    """Strings, whole numbers, lists and tables of them: JSON writes these as Python does."""
    return json.dumps(value, ensure_ascii=False)


def _comment(text: str) -> str:
    return f"  # {' '.join(text.split())}" if text else ""
