"""The order of stages: what each waits for, and circles in which none could begin."""

from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric.lab.stages import Step, cycle, graph, needs
from fabric.lab.topology import STAGES, Node, Stage, Topology


def node(name: str, network: str = "none", **waits: tuple[Step, ...]) -> Node:
    stages = {stage.replace("_", "-"): Stage(wait_for=steps) for stage, steps in waits.items()}
    return Node(name, "alpine", network=network, stages=stages)


def test_a_stage_waits_for_the_one_before_it_and_for_what_the_file_says() -> None:
    nodes = (
        node("a", create_links=(("b", "healthy"), ("c", "exit"))),
        node("b"),
        node("c", "container:b", create=(("a", "create"),)),
    )
    lab = Topology("lab", nodes)
    assert needs(lab, "a", "create") == set()
    assert needs(lab, "a", "create-links") == {("a", "create"), ("b", "healthy"), ("c", "exit")}
    assert needs(lab, "b", "exit") == {("b", "healthy")}
    assert needs(lab, "c", "create") == {("b", "create"), ("a", "create")}
    assert cycle(nodes) == ()


@pytest.mark.parametrize(
    ("nodes", "want"),
    [
        pytest.param(
            [node("a", create=(("b", "create"),)), node("b", create=(("a", "create"),))],
            (("a", "create"), ("b", "create")),
            id="two",
        ),
        pytest.param(
            [node("z"), node("a", configure=(("b", "create"),)), node("b", create=(("a", "exit"),))],
            (("a", "configure"), ("b", "create"), ("a", "exit"), ("a", "healthy")),
            id="through the stages of one node",
        ),
        pytest.param(
            [node("a", create=(("b", "create"),)), node("b", "container:a")],
            (("a", "create"), ("b", "create")),
            id="through a shared network",
        ),
        pytest.param([node("a", healthy=(("a", "exit"),))], (("a", "healthy"), ("a", "exit")), id="itself"),
    ],
)
def test_a_circle_is_told_in_its_order(nodes: list[Node], want: tuple[Step, ...]) -> None:
    assert cycle(nodes) == want


NAMES = "abcd"
STEPS = st.tuples(st.sampled_from(NAMES), st.sampled_from(STAGES))


@given(st.dictionaries(STEPS, st.lists(STEPS, max_size=3).map(tuple), max_size=8))
def test_either_all_stages_can_begin_or_there_is_a_circle(waits: dict[Step, tuple[Step, ...]]) -> None:
    nodes = [
        Node(name, "x", stages={stage: Stage(steps) for (n, stage), steps in waits.items() if n == name})
        for name in NAMES
    ]
    found, steps = cycle(nodes), graph(nodes)
    assert bool(found) != (begun(steps.items()) == steps.keys())
    for this, following in zip(found, (*found[1:], *found[:1]), strict=True):
        assert following in steps[this]


def begun(steps: Iterable[tuple[Step, tuple[Step, ...]]]) -> set[Step]:
    """Return the steps that a runner could take one after the other."""
    done: set[Step] = set()
    left = dict(steps)
    while able := [step for step, waits in left.items() if done.issuperset(waits)]:
        done.update(able)
        for step in able:
            del left[step]
    return done
