"""How long it takes from hearing an Update to the kernel."""

from fabric.agent.reaction import Reaction


def counted(reaction: Reaction) -> dict[str, int]:
    return dict(reaction.buckets())


def test_a_pass_counts_the_first_update_that_it_applies() -> None:
    reaction = Reaction()
    reaction.heard(10.0)
    reaction.heard(10.4)
    reaction.planned()
    reaction.applied(10.5)
    assert reaction.sum == 0.5
    assert (counted(reaction)["0.25"], counted(reaction)["0.5"], counted(reaction)["+Inf"]) == (0, 1, 1)


def test_what_is_heard_while_a_pass_runs_is_the_next_ones() -> None:
    reaction = Reaction()
    reaction.heard(10.0)
    reaction.planned()
    reaction.heard(10.1)
    reaction.applied(10.2)
    assert counted(reaction)["+Inf"] == 1
    reaction.planned()
    reaction.applied(11.1)
    assert counted(reaction)["+Inf"] == 2
    assert abs(reaction.sum - 1.2) < 1e-9


def test_a_pass_that_is_asked_twice_what_is_desired_counts_from_the_first() -> None:
    reaction = Reaction()
    reaction.heard(1.0)
    reaction.planned()
    reaction.heard(2.0)
    reaction.planned()
    reaction.applied(21.0)
    assert (reaction.sum, counted(reaction)["10.0"], counted(reaction)["+Inf"]) == (20.0, 0, 1)


def test_a_pass_without_news_counts_nothing() -> None:
    reaction = Reaction()
    reaction.planned()
    reaction.applied(1.0)
    assert counted(reaction)["+Inf"] == 0
