"""Numbers as people read them, in few characters: for `llmctl` and `llmtui` alike."""

from __future__ import annotations


def count(number: float) -> str:
    """Return a number in at most five characters: 812, 4.1k, 31k, 2.3M."""
    if number < 1000:
        return f"{number:.0f}"
    for unit in "kMG":
        number /= 1000
        if number < 9.95:
            return f"{number:.1f}{unit}"
        if number < 999.5:
            return f"{number:.0f}{unit}"
    return f"{number:.0f}T"


def size(number: int) -> str:
    """Return bytes in binary units, at most five characters: 640M, 24.1G."""
    value = float(number)
    for unit in "BKM":
        if value < 1023.5:
            return f"{value:.0f}{unit}"
        value /= 1024
    if value < 1000:
        return f"{value:.1f}G" if value < 99.95 else f"{value:.0f}G"
    return f"{value / 1024:.1f}T"


def planned(planned_bytes: int, now_bytes: int) -> str:
    """Return what is planned for a worker, beside what it holds now where that is another size."""
    whole, now = size(planned_bytes), size(now_bytes)
    return f"{whole} planned for ({now} held now)" if now_bytes and now != whole else whole


def span(seconds: float | None) -> str:
    """Return a span of time in at most six characters: 0.4s, 41s, 3m12s, 3h12m, 1d02h."""
    if seconds is None:
        return "-"
    seconds = max(0.0, seconds)
    if seconds < 9.95:
        return f"{seconds:.1f}s"
    whole = round(seconds)
    if whole < 100:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 86400}d{whole % 86400 // 3600:02d}h"
