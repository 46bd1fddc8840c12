"""JUnit XML: one suite per check, one case per subject."""

from __future__ import annotations

import re
from xml.etree import ElementTree as ET

from ..model import Result, Run, Status
from .groups import group

_ILLEGAL = re.compile(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd]")


def render(run: Run) -> str:
    """The document. unproven is an error when required, since CI must not rest on it."""
    root = ET.Element("testsuites", name=f"gpuready {run.kind}", time=f"{run.seconds:.3f}")
    suites: dict[str, list[Result]] = {}
    for one in group(run.results):
        suites.setdefault(one.first.check, []).extend(one.results)
    totals = [0, 0, 0, 0]
    for check, results in suites.items():
        suite = ET.SubElement(root, "testsuite", name=check, timestamp=run.started)
        numbers = [len(results), 0, 0, 0]
        for result in results:
            case = ET.SubElement(suite, "testcase", classname=f"gpuready.{check}", name=result.id)
            case.set("time", "0")
            place = _outcome(case, result)
            if place is not None:
                numbers[place] += 1
        _number(suite, numbers)
        totals = [a + b for a, b in zip(totals, numbers, strict=True)]
    _number(root, totals)
    ET.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"


def _outcome(case: ET.Element, result: Result) -> int | None:
    """Write a case's outcome; which of tests, failures, errors, skipped it counts under, None for a pass."""
    found = result.finding
    message = _clean(found.cause + (f": {found.detail}" if found.detail else ""))
    if result.status is Status.FAIL:
        child, place = ET.SubElement(case, "failure", type=found.reason, message=message), 1
    elif result.status in (Status.ERROR, Status.UNPROVEN) and found.required:
        child, place = ET.SubElement(case, "error", type=found.reason, message=message), 2
    elif result.status in (Status.SKIP, Status.UNPROVEN, Status.ERROR):
        child, place = ET.SubElement(case, "skipped", message=message), 3
    else:
        if message:
            ET.SubElement(case, "system-out").text = _clean(f"{result.status.value}: {message}")
        return None
    child.text = _clean(
        "\n".join(
            line
            for line in (
                f"expected: {found.expected}" if found.expected else "",
                f"observed: {found.observed}" if found.observed else "",
                f"fix: {result.fix}" if result.fix else "",
                f"follows from: {result.caused_by}" if result.caused_by else "",
            )
            if line
        )
    )
    return place


def _number(element: ET.Element, numbers: list[int]) -> None:
    for name, number in zip(("tests", "failures", "errors", "skipped"), numbers, strict=True):
        element.set(name, str(number))


def _clean(text: str) -> str:
    return _ILLEGAL.sub("?", text)
