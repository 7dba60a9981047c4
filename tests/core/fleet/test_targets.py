"""In turn or by room, not to where the disks lie if that can be avoided."""

from __future__ import annotations

from diskhaul.fleet.targets import TROUBLE_S, Targets


def test_nodes_take_turns_and_the_own_one_is_passed_over() -> None:
    targets = Targets(("alpha", "beta", "gamma"), 9, "round-robin")
    assert [targets.take("alpha", 1) for _ in range(4)] == ["beta", "gamma", "beta", "gamma"]
    assert targets.take("beta", 1) == "alpha"


def test_the_only_node_there_is_takes_its_own_instances_too() -> None:
    assert Targets(("alpha",), 1, "round-robin").take("alpha", 1) == "alpha"


def test_the_own_node_is_not_taken_while_others_are_only_busy() -> None:
    targets = Targets(("alpha", "beta"), 1, "round-robin")
    assert targets.take("alpha", 1) == "beta"
    assert targets.take("alpha", 1) is None
    targets.give_back("beta", 1)
    assert targets.take("alpha", 1) == "beta"


def test_a_node_that_did_not_answer_is_left_alone_for_a_while_where_there_are_others() -> None:
    now = [0.0]
    targets = Targets(("beta", "gamma"), 1, "round-robin", clock=lambda: now[0])
    targets.trouble("beta")
    assert [targets.take("alpha", 1), targets.take("alpha", 1)] == ["gamma", None]
    now[0] = TROUBLE_S
    assert targets.take("alpha", 1) == "beta"


def test_where_no_other_node_answers_either_they_are_tried() -> None:
    targets = Targets(("beta", "gamma"), 1, "round-robin")
    targets.trouble("beta")
    assert targets.take("gamma", 1) == "beta"
    targets.trouble("gamma")
    assert targets.take("alpha", 1) == "gamma"


def test_the_most_room_counts_what_running_exports_may_come_to_take() -> None:
    targets = Targets(("beta", "gamma"), 9, "most-free")
    targets.tell_free("beta", 100, asked_at=0)
    targets.tell_free("gamma", 90, asked_at=0)
    assert [targets.take("alpha", 30) for _ in range(4)] == ["beta", "gamma", "beta", "gamma"]
    targets.give_back("gamma", 30, stored=5)
    assert targets.take("alpha", 1) == "gamma"  # 90 - 30 - 5 against 100 - 60


def test_an_answer_replaces_what_was_spent_before_it_was_asked_for_and_not_after() -> None:
    targets = Targets(("beta", "gamma"), 9, "most-free")
    targets.tell_free("beta", 100, asked_at=0)
    targets.tell_free("gamma", 75, asked_at=0)
    for stored in (10, 20):
        assert targets.take("alpha", 0) == "beta"
        asked_at = targets.spent("beta")
        targets.give_back("beta", 0, stored=stored)
    targets.tell_free("beta", 90, asked_at=asked_at)  # asked between the two: 70 are left
    assert targets.take("alpha", 0) == "gamma"


def test_a_node_that_does_not_say_how_much_room_it_has_comes_last() -> None:
    targets = Targets(("beta", "gamma"), 1, "most-free")
    targets.tell_free("gamma", 1, asked_at=0)
    assert [targets.take("alpha", 0) for _ in range(2)] == ["gamma", "beta"]
