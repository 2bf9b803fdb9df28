"""Virtual token counters: nobody saves up credit, nobody loses what was over-estimated."""

from __future__ import annotations

from llmd.core.fairness import FairShares


def served(shares: FairShares, key: str, counter: float):
    """A key that runs something and has been charged `counter` so far."""
    share = shares.enter(key)
    share.counter = counter
    share.running += 1
    return share


def test_a_key_back_from_idle_is_lifted_to_the_least_of_the_active():
    shares = FairShares()
    served(shares, "busy", 1000)
    served(shares, "busier", 5000)
    assert shares.enter("new").counter == 1000


def test_a_key_is_not_lowered_and_keeps_its_debt_while_others_are_active():
    shares = FairShares()
    greedy = served(shares, "greedy", 9000)
    served(shares, "other", 100)
    greedy.running = 0
    shares.leave(greedy)
    assert shares.enter("greedy").counter == 9000


def test_when_nobody_is_active_all_is_forgotten():
    shares = FairShares()
    share = served(shares, "a", 9000)
    share.running = 0
    shares.leave(share)
    assert len(shares) == 0
    assert shares.enter("a").counter == 0


def test_one_long_small_lease_saves_up_no_credit():
    shares = FairShares()
    sly = served(shares, "sly", 1)
    served(shares, "busy", 10_000)
    assert shares.enter("sly") is sly
    assert sly.counter == 10_000


def test_what_is_queued_is_not_lifted():
    shares = FairShares()
    waits = served(shares, "waits", 1)
    waits.queued = 1
    served(shares, "busy", 10_000)
    assert shares.enter("waits").counter == 1


def test_an_over_estimate_is_given_back():
    share = FairShares().enter("a")
    share.charge(1000, 2.0)
    assert (share.counter, share.pending, share.running) == (500, 500, 1)
    share.settle(1000, 100, 2.0)
    assert (share.counter, share.pending, share.running) == (50, 0, 0)


def test_a_newcomer_does_not_pay_for_the_estimates_of_others():
    shares = FairShares()
    first = served(shares, "first", 700)
    first.charge(100_000, 1.0)
    assert shares.enter("newcomer").counter == 700


def test_a_lift_is_not_undone_by_giving_back_an_older_charge():
    shares = FairShares()
    share = shares.enter("a")
    share.charge(1000, 1.0)
    served(shares, "busy", 5000)
    shares.enter("a")  # nothing queued: it comes back, and is lifted
    assert share.counter == 6000
    share.settle(1000, 10, 1.0)
    assert share.counter == 5010


def test_keys_that_are_gone_for_good_are_forgotten():
    shares = FairShares()
    served(shares, "stays", 1)
    for n in range(10_000):
        share = served(shares, f"key{n}", 100)
        share.running = 0
        shares.leave(share)
    assert len(shares) <= 4097
