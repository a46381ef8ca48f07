"""Write how policy tests came out as JUnit XML: a suite a file, a test case a case."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from junitparser import Failure, JUnitXml, TestCase, TestSuite

from fabric.errors import ConfigError
from fabric.ops.policy_cases import Tried, actual, expected
from policy.cases import Outcome


def write(file: Path, found: Iterable[Tried]) -> None:
    """Write `file`, over what was there.

    Raises:
        ConfigError: it cannot be written.
    """
    document = JUnitXml("fabricctl policy test")
    for one in found:
        suite = TestSuite(one.suite.file)
        for outcome in one.outcomes:
            suite.add_testcase(_case(outcome))
        document.add_testsuite(suite)
    try:
        document.write(str(file), pretty=True)
    except OSError as err:
        raise ConfigError(f"{file}: {err.strerror}; the report was not written") from err


def _case(outcome: Outcome) -> TestCase:
    case = outcome.case
    made = TestCase(str(case), f"policy.{case.expect}")
    if not outcome.holds:
        failure = Failure(f"expected {expected(case)}, found {actual(outcome)}", case.expect)
        failure.text = case.where
        made.result = [failure]
    return made
