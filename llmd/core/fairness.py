"""Fair shares between keys: virtual token counters.

Sheng et al., "Fairness in Serving Large Language Models" (OSDI 2024): each key has a counter of
the tokens served to it, divided by its weight, and the least counter goes first. A key that
comes back is lifted to the least counter of the active ones, so nobody saves up credit by being
away. Here the estimate is charged when a lease is granted and corrected to the real usage when
it is released; two keys that both keep requests waiting therefore never differ by more than the
charge of one request, plus what their running leases are over-estimated by.
"""

from __future__ import annotations

import math

_DORMANT_KEPT = 4096  # debts of keys that left; anonymous addresses must not grow it for ever


class Share:
    """One key's account; `FairShares` owns it.

    Attributes:
        key: Whose.
        counter: Tokens charged, divided by weight: who has least goes first.
        queued: Its requests that wait.
        running: Its leases.
        epoch: Grows with each return; a lease charged in an older one is corrected only down
            to `floor`.
        floor: The least counter of the others at the last return plus the charges since: where
            the counter would be had every older charge been given back before the return.
    """

    __slots__ = ("counter", "epoch", "floor", "key", "queued", "running")

    def __init__(self, key: str) -> None:
        self.key = key
        self.counter = 0.0
        self.queued = 0
        self.running = 0
        self.epoch = 0
        self.floor = -math.inf

    def __repr__(self) -> str:
        return f"<Share {self.key} {self.counter:g} queued={self.queued} running={self.running}>"

    def charge(self, tokens: int, weight: float) -> int:
        """Charge the estimate of a lease; return the epoch that `settle` wants back."""
        served = tokens / weight
        self.counter += served
        self.floor += served
        return self.epoch

    def settle(self, difference_tokens: int, weight: float, epoch: int) -> None:
        """Correct a charge of `epoch` by real usage less estimate."""
        served = difference_tokens / weight
        self.counter += served
        if epoch == self.epoch:
            self.floor += served
        elif self.counter < self.floor:
            self.counter = self.floor


class FairShares:
    """The accounts of all keys. Active is who has something queued or running."""

    __slots__ = ("_dormant", "active")

    def __init__(self) -> None:
        self.active: dict[str, Share] = {}
        self._dormant: dict[str, Share] = {}

    def enter(self, key: str) -> Share:
        """Return the account of a key that asks now, made active, lifted if it had none waiting.

        A key that has something running but nothing queued is lifted like one that was away: else
        one endless small lease would save up credit. The caller counts `queued` and `running`
        and calls `leave` when both are back at 0.
        """
        active = self.active
        share = active.get(key)
        if share is None:
            share = self._dormant.pop(key, None) or Share(key)
            active[key] = share
        if share.queued == 0:
            share.epoch += 1
            share.floor = -math.inf
            if len(active) > 1:
                least = min([other.counter for other in active.values() if other is not share])
                share.floor = least
                share.counter = max(share.counter, least)
        return share

    def leave(self, share: Share) -> None:
        """Retire the account of a key that has nothing queued and nothing running any more."""
        active = self.active
        active.pop(share.key, None)
        if not active:
            # nobody competes, so there is neither debt nor credit between anybody
            self._dormant.clear()
            return
        least = min([other.counter for other in active.values()])
        if share.counter > least:
            self._dormant[share.key] = share
            if len(self._dormant) > _DORMANT_KEPT:
                self._forget(least)

    def _forget(self, least: float) -> None:
        """Drop debts that the others have caught up with, and if there are none, the oldest."""
        kept = {key: share for key, share in self._dormant.items() if share.counter > least}
        while len(kept) > _DORMANT_KEPT:
            del kept[next(iter(kept))]
        self._dormant = kept

    def __len__(self) -> int:
        """Accounts kept, dormant debtors included."""
        return len(self.active) + len(self._dormant)
