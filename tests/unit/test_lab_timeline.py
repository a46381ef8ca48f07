"""The timeline is a picture with a row for each flow and route, and is drawn only where matplotlib is."""

import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from fabric.errors import LabError
from fabric.lab.report import Change, Flow, Gap, Report, Route
from fabric.lab.timeline import MOST_FLOWS, MOST_ROUTES, write_svg


def flow(source: str, target: str, *gaps: Gap, back: bool = True) -> Flow:
    return Flow(source, target, True, back, 300, 0, gaps, 0.1)


CONTROL = (flow("control a", "control b"), flow("control b", "control a"))
CUT = flow("web", "db", Gap(8.0, 78.0)), flow("db", "web", Gap(8.0, 2500.0), back=False)
ROUTES = (
    Route("tor", "10.77.0.0/26", ("10.0.0.1",), (Change(4.0, ()), Change(77.0, ("10.0.0.2",)))),
    Route("tor", "10.77.1.0/26", ("10.0.0.1",), (Change(4.0, ()),)),
)


def report(
    flows: tuple[Flow, ...] = CUT, routes: tuple[Route, ...] = ROUTES, control: tuple[Flow, ...] = CONTROL
) -> Report:
    return Report("link cut", 1.8e9, 4.5, 2500.0, False, flows, control, routes)


def texts(drawn: Report, path: Path) -> list[str]:
    """Draw, and return all that is written in the picture."""
    write_svg(drawn, path)
    root = ElementTree.parse(path).getroot()
    return ["".join(text.itertext()).strip() for text in root.iter("{http://www.w3.org/2000/svg}text")]


def test_every_flow_and_route_has_a_row_and_the_control_is_the_last(tmp_path: Path) -> None:
    shown = texts(report(), tmp_path / "timeline.svg")
    rows = ["web → db", "db → web", "tor: 10.77.0.0/26", "tor: 10.77.1.0/26"]
    rows += ["control a → control b", "control b → control a"]
    assert [text for text in shown if text in rows] == rows
    for text in (
        *("70 ms", "2492 ms, not back", "10.0.0.2", "no route", "withdrawn"),
        *("ms after the act, which took 4 ms", "link cut; worst: db → web, 2492 ms"),
    ):
        assert text in shown


def test_a_long_one_is_told_in_seconds(tmp_path: Path) -> None:
    long = Report("cut", 1.8e9, 4.5, 60_000.0, True, (flow("a", "b", Gap(5.0, 40_000.0)),), CONTROL, ())
    assert "s after the act, which took 4 ms" in texts(long, tmp_path / "timeline.svg")


def test_nothing_lost_is_said(tmp_path: Path) -> None:
    quiet = report(flows=(flow("web", "db"),), routes=())
    assert "link cut; nothing was lost" in texts(quiet, tmp_path / "timeline.svg")


def test_an_invalid_run_says_so_first(tmp_path: Path) -> None:
    busy = report(control=(flow("control a", "control b", Gap(100.0, 140.0)),))
    shown = texts(busy, tmp_path / "timeline.svg")
    assert any(text.startswith("INVALID, the control flow has gaps") for text in shown)


def test_of_many_flows_the_worst_are_shown_and_of_many_routes_a_node_has_one_row(tmp_path: Path) -> None:
    flows = tuple(flow("a", f"b{i}", Gap(0.0, 10.0 * i)) for i in range(MOST_FLOWS + 1))
    routes = tuple(
        Route(node, f"10.{i}.0.0/16", ("10.0.0.1",), (Change(5.0, ()),))
        for node in ("tor1", "tor2")
        for i in range(MOST_ROUTES)
    )
    shown = texts(report(flows, routes), tmp_path / "timeline.svg")
    assert "a → b0" not in shown
    assert "a → b1" in shown
    assert f"tor1: {MOST_ROUTES} routes" in shown
    assert f"tor2: {MOST_ROUTES} routes" in shown


def test_a_report_is_always_drawn_the_same(tmp_path: Path) -> None:
    write_svg(report(), tmp_path / "a.svg")
    write_svg(report(), tmp_path / "b.svg")
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(LabError, match=r"nowhere/timeline\.svg: No such file or directory; the measurement"):
        write_svg(report(), tmp_path / "nowhere" / "timeline.svg")


def test_without_matplotlib_the_extra_is_named_before_there_is_anything_to_draw() -> None:
    script = (
        "import sys\n"
        "from fabric.errors import LabError\n"
        "from fabric.lab.timeline import check\n"
        "check()\n"
        "sys.modules['matplotlib'] = sys.modules['matplotlib.figure'] = None\n"
        "try: check()\n"
        "except LabError as err: print(err)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "nothing was done; install it: pip install 'fabricctl[plots]'" in done.stdout
