"""Write what became of a lab's expectations as JUnit XML: one test case an expectation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from junitparser import Failure, JUnitXml, TestCase, TestSuite

from fabric.errors import ConfigError
from fabric.lab.verify import Result


def write(file: Path, lab: str, expectations: Path, results: Sequence[Result]) -> None:
    """Write `file`, over what was there; the suite is the lab, the class of a case what it expects.

    Raises:
        ConfigError: it cannot be written.
    """
    suite = TestSuite(lab)
    for result in results:
        suite.add_testcase(_case(expectations, result))
    document = JUnitXml(lab)
    document.add_testsuite(suite)
    try:
        document.write(str(file), pretty=True)
    except OSError as err:
        raise ConfigError(f"{file}: {err.strerror}; the report was not written") from err


def _case(expectations: Path, result: Result) -> TestCase:
    each = result.expectation
    case = TestCase(each.where, f"lab.{each.what}", round(result.seconds, 3))
    if not result.holds:
        failure = Failure(f"expected {each.expected}, found {result.found}", each.what)
        failure.text = f"{expectations}:{each.line}"
        case.result = [failure]
    return case
