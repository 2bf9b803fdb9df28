"""Fair shares between keys: virtual token counters.

Sheng et al., "Fairness in Serving Large Language Models" (OSDI 2024): each key has a counter of
the tokens served to it, divided by its weight, and the least counter goes first. A key that
comes back is lifted to the least of the active ones, so nobody saves up credit by being away.

Here the estimate is charged when a lease is granted and corrected to the real usage when it is
released. Two keys that both keep requests waiting therefore never differ by more than one charge
plus what their running leases are charged. Who comes back is lifted to what was really served to
the others, charges of running leases left out: an estimate is often many times the usage, and a
newcomer lifted to it would pay for tokens that nobody ever got.
"""

from __future__ import annotations

_DORMANT_KEPT = 4096  # debts of keys that left; anonymous addresses must not grow it for ever


class Share:
    """One key's account; `FairShares` owns it.

    Attributes:
        key: Whose.
        counter: Tokens charged, divided by weight: who has least goes first.
        pending: The part of it that is charged for leases not yet released.
        queued: Its requests that wait.
        running: Its leases.
    """

    __slots__ = ("counter", "key", "pending", "queued", "running")

    def __init__(self, key: str) -> None:
        self.key = key
        self.counter = 0.0
        self.pending = 0.0
        self.queued = 0
        self.running = 0

    def __repr__(self) -> str:
        return f"<Share {self.key} {self.counter:g} queued={self.queued} running={self.running}>"

    def charge(self, tokens: int, weight: float) -> None:
        """Charge the estimate of a lease that begins."""
        charged = tokens / weight
        self.counter += charged
        self.pending += charged
        self.running += 1

    def settle(self, tokens: int, used_tokens: int, weight: float) -> None:
        """Correct the charge of a lease that ends, of `tokens`, to its real usage."""
        self.counter += (used_tokens - tokens) / weight
        self.running -= 1
        # exactly 0 when nothing runs: rounding must not pile up
        self.pending = self.pending - tokens / weight if self.running else 0.0


class FairShares:
    """The accounts of all keys. Active is who has something queued or running."""

    __slots__ = ("_dormant", "active")

    def __init__(self) -> None:
        self.active: dict[str, Share] = {}
        self._dormant: dict[str, Share] = {}

    def enter(self, key: str) -> Share:
        """Return the account of a key that asks now, made active, lifted if it had none waiting.

        A key that has something running but nothing queued is lifted like one that was away: else
        one endless small lease would save up credit. The caller counts `queued`, and calls
        `leave` when nothing is queued and nothing runs any more.
        """
        active = self.active
        share = active.get(key)
        if share is None:
            share = self._dormant.pop(key, None) or Share(key)
            active[key] = share
        if share.queued == 0 and len(active) > 1:
            least = min([s.counter - s.pending for s in active.values() if s is not share])
            if share.counter - share.pending < least:
                share.counter = least + share.pending
        return share

    def leave(self, share: Share) -> None:
        """Retire the account of a key that has nothing queued and nothing running any more."""
        active = self.active
        active.pop(share.key, None)
        if not active:
            # nobody competes, so there is neither debt nor credit between anybody
            self._dormant.clear()
            return
        least = min([s.counter - s.pending for s in active.values()])
        if share.counter > least:
            self._dormant[share.key] = share
            if len(self._dormant) > _DORMANT_KEPT:
                self._forget(least)

    def _forget(self, least: float) -> None:
        """Drop debts that the others have caught up with; of too many others, the older half."""
        kept = [share for share in self._dormant.values() if share.counter > least]
        self._dormant = {share.key: share for share in kept[-_DORMANT_KEPT // 2 :]}

    def __len__(self) -> int:
        """Accounts kept, dormant debtors included."""
        return len(self.active) + len(self._dormant)
