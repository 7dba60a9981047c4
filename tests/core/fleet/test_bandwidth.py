from __future__ import annotations

import random

from diskhaul.fleet.bandwidth import BandwidthShares


def test_each_of_as_many_as_can_run_gets_an_equal_part() -> None:
    shares = BandwidthShares(1000, 4)
    assert [shares.take(f"vm{number}", waiting=10) for number in range(4)] == [250] * 4


def test_the_last_ones_share_what_nobody_else_can_use() -> None:
    shares = BandwidthShares(1000, 4)
    assert shares.take("last", waiting=0) == 1000
    shares.give_back("last")
    assert [shares.take("a", waiting=1), shares.take("b", waiting=0)] == [500, 500]


def test_without_a_limit_nobody_gets_one() -> None:
    assert BandwidthShares(0, 4).take("vm", waiting=9) == 0


def test_the_sum_never_exceeds_the_total_and_nothing_is_lost_on_the_way() -> None:
    chance = random.Random(3)
    shares, running, waiting = BandwidthShares(999_983, 7), dict[str, int](), 500
    while waiting or running:
        if waiting and len(running) < 7 and chance.random() < 0.6:
            waiting -= 1
            running[f"vm{waiting}"] = shares.take(f"vm{waiting}", waiting=waiting)
            assert sum(running.values()) <= 999_983
        elif running:
            name = chance.choice(list(running))
            shares.give_back(name)
            del running[name]
    assert shares.take("one more", waiting=0) == 999_983
