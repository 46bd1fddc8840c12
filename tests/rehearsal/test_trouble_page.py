"""The reference page of troubles lists what tests see, and nothing else.

That tests see nothing that is not on the page is what `spoilt.complaint` asserts of every line.
"""

from __future__ import annotations

import ast
from pathlib import Path

from .spoilt import listed, messages

HERE = Path(__file__).parent
# Shorter words would be in any text.
LEAST = 7


def words() -> set[str]:
    """The constant texts of the tests of trouble, this module apart."""
    return {
        node.value.strip()
        for file in HERE.glob("test_trouble*.py")
        if file.name != Path(__file__).name
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and len(node.value.strip()) >= LEAST
    }


def asserted(word: str, message: str) -> bool:
    """Whether a text of a test is a message's, or holds the whole of one of its fixed parts."""
    parts = [part.strip(" :;,") for part in message.split("…")]
    return any(word in part or (len(part) >= LEAST and part in word) for part in parts)


def test_every_message_is_asserted_by_a_test() -> None:
    known = words()
    assert [message for message in messages() if not any(asserted(word, message) for word in known)] == []


def test_no_message_is_listed_twice() -> None:
    assert len(messages()) == len(set(messages())) > 50


def test_a_line_that_is_not_listed_is_noticed() -> None:
    try:
        listed("gpuready: the dog ate the kubeconfig")
    except AssertionError as error:
        assert "does not list: the dog ate" in str(error)
    else:
        raise AssertionError("it was taken for a listed one")
