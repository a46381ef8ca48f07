"""Runs marked tests in a user-mode kernel, all in one boot, and reports here what became of them there.

Inside, pytest runs those that were chosen here, and writes each of its reports as a line of OUT/reports; here the
lines are read as they come, so that a test that passes or fails inside does so here. It begins with the session, and
the tests that are not marked come first: they run on another processor meanwhile.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest

from fabric.lab.node import Process
from tests.uml.kernel import OUT, ROOT, Kernel, KernelError

MARK = "inside"
REPORTS = "UML_REPORTS"  # in the environment of a pytest that is inside: where its reports go
PREFIX = "fabricctl-uml-"  # of the folder OUT, before the pid of whose it is
WITHIN = 600.0  # seconds for the boot and all tests: four times what they take where nothing else runs
POLL = 0.05  # seconds


class Inside:
    """The plugin of the pytest inside: writes down its reports."""

    def __init__(self, config: pytest.Config, reports: Path) -> None:
        self._config, self._reports = config, reports

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        data = self._config.hook.pytest_report_to_serializable(config=self._config, report=report)
        with self._reports.open("a") as file:  # closed, which is when the host sees it
            file.write(f"{json.dumps(data)}\n")


class Outside:
    """The plugin of the pytest on the host: boots at the beginning if a test is marked, and ends with the session."""

    def __init__(self, config: pytest.Config) -> None:
        self._config, self._owned = config, ExitStack()
        self._out: Path | None = None
        self._lines: Iterator[str] = iter(())

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items.sort(key=_marked)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> None:
        chosen = [item.nodeid for item in session.items if _marked(item)]
        if chosen and not self._config.option.collectonly:
            self._lines = self._boot(chosen)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> bool | None:
        if not _marked(item):
            return None
        item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        try:
            for report in self._reports(item):
                item.ihook.pytest_runtest_logreport(report=report)
        except KernelError as err:
            report = pytest.TestReport(item.nodeid, item.location, {}, "failed", str(err), "call")
            item.ihook.pytest_runtest_logreport(report=report)
        item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        return True

    def pytest_sessionfinish(self, exitstatus: int) -> None:
        self._owned.close()
        if self._out and not exitstatus:
            shutil.rmtree(self._out)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter, exitstatus: int) -> None:
        if self._out and exitstatus:
            terminalreporter.write_line(f"what the user-mode kernel left: {self._out}")

    def _reports(self, item: pytest.Item) -> Iterator[pytest.TestReport]:
        """Yield what the kernel reports of the next test, which is this one."""
        for line in self._lines:
            data = json.loads(line)
            report = self._config.hook.pytest_report_from_serializable(config=self._config, data=data)
            assert report.nodeid == item.nodeid, f"{report.nodeid} was run, not {item.nodeid}"
            if report.skipped:
                raise KernelError(f"it was skipped inside, where nothing is missing: {report.longreprtext}")
            yield report
            if report.when == "teardown":
                return
        raise KernelError("the user-mode kernel has ended already")

    def _boot(self, chosen: Sequence[str]) -> Iterator[str]:
        """Boot, and return the lines of OUT/reports as they come; a boot that fails says so where those would be.

        What sessions before this left, because they failed or were killed, is removed.
        """
        for left in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
            if not Process.find(int(left.name.removeprefix(PREFIX).partition("-")[0])):
                shutil.rmtree(left)
        self._out = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-"))
        reports = self._out / "reports"
        reports.touch()
        options = ("-p", "no:cacheprovider", "-p", "no:xdist")
        kernel = Kernel(
            self._out,
            [sys.executable, "-m", "pytest", "-vv", *options, *chosen],
            where=ROOT,
            environment={REPORTS: str(OUT / reports.name)},
            within=WITHIN,
        )
        try:
            self._owned.enter_context(kernel)
        except KernelError as err:
            return _raising(err)
        return _follow(kernel, reports)


def _marked(item: pytest.Item) -> bool:
    return item.get_closest_marker(MARK) is not None


def _raising(err: KernelError) -> Iterator[str]:
    yield from ()
    raise err


def _follow(kernel: Kernel, reports: Path) -> Iterator[str]:
    """Yield the lines of a file that `kernel` writes, as they come."""
    with reports.open() as file:
        line = ""
        while True:
            ended = kernel.ended
            line += file.readline()
            if line.endswith("\n"):
                yield line
                line = ""
            elif ended:
                break
            else:
                time.sleep(POLL)
    status = kernel.wait()
    raise KernelError(f"the pytest inside ended with status {status}{kernel.last_words()}")
