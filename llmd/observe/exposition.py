"""Counters and histograms for one thread, and the two text formats that Prometheus reads.

The client library's instruments lock and hash on every observation, which costs a request more
than routing it; here an observation is a dictionary update. The text follows Prometheus' format
0.0.4 and OpenMetrics 1.0; tests read it back with the client library's own parsers.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from typing import TypeAlias

LabelValues: TypeAlias = tuple[str, ...]

TEXT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS_TYPE = "application/openmetrics-text; version=1.0.0; charset=utf-8"


class Counter:
    """A family of sums that only grow. `name` ends in `_total`."""

    __slots__ = ("help", "labels", "name", "values")

    def __init__(self, name: str, text: str, labels: Sequence[str] = ()) -> None:
        self.name = name
        self.help = text
        self.labels = tuple(labels)
        self.values: dict[LabelValues, float] = {}

    def add(self, labels: LabelValues, amount: float = 1) -> None:
        """Add `amount` to the sum with these label values, in the order of `labels`."""
        self.values[labels] = self.values.get(labels, 0) + amount


class Histogram:
    """A family of distributions over fixed buckets; `bounds` are upper ends, ascending."""

    __slots__ = ("bounds", "help", "labels", "name", "values")

    def __init__(
        self, name: str, text: str, bounds: Sequence[float], labels: Sequence[str] = ()
    ) -> None:
        self.name = name
        self.help = text
        self.labels = tuple(labels)
        self.bounds = tuple(bounds)
        self.values: dict[LabelValues, list[float]] = {}  # a count per bucket and +Inf, the sum

    def observe(self, labels: LabelValues, value: float) -> None:
        """Count one `value`."""
        held = self.values.get(labels)
        if held is None:
            held = self.values[labels] = [0] * (len(self.bounds) + 2)
        held[bisect_left(self.bounds, value)] += 1
        held[-1] += value


class Page:
    """One exposition being written: add families, then take `bytes()`.

    Args:
        openmetrics: Write OpenMetrics instead of Prometheus' own format.
    """

    def __init__(self, *, openmetrics: bool = False) -> None:
        self._openmetrics = openmetrics
        self._lines: list[str] = []

    def counter(self, family: Counter) -> None:
        """Add a counter; nothing while it has no values."""
        if not family.values:
            return
        self.head(family.name, "counter", family.help)
        for values, amount in family.values.items():
            self.sample(family.name, label_text(family.labels, values), amount)

    def gauge(
        self,
        name: str,
        text: str,
        labels: Sequence[str],
        samples: Iterable[tuple[LabelValues, float]],
    ) -> None:
        """Add a gauge with the values that it has just now; nothing without any."""
        held = list(samples)
        if held:
            self.head(name, "gauge", text)
            for values, value in held:
                self.sample(name, label_text(labels, values), value)

    def histogram(self, family: Histogram) -> None:
        """Add a histogram; nothing while it has no values."""
        if not family.values:
            return
        self.head(family.name, "histogram", family.help)
        ends = [f'le="{float(bound)}"' for bound in family.bounds] + ['le="+Inf"']
        for values, held in family.values.items():
            labels = label_text(family.labels, values)
            prefix = f"{family.name}_bucket{{{labels}{',' if labels else ''}"
            total = 0.0
            for end, count in zip(ends, held, strict=False):  # the sum is the one left over
                total += count
                self._lines.append(f"{prefix}{end}}} {total:.0f}\n")
            self.sample(f"{family.name}_sum", labels, held[-1])
            self.sample(f"{family.name}_count", labels, total)

    def head(self, name: str, kind: str, text: str) -> None:
        """Begin a family; its samples follow, all of them before the next one's head."""
        if self._openmetrics:
            kind = "unknown" if kind == "untyped" else kind
            if kind == "counter":  # there the family goes without the suffix of its samples
                name = name.removesuffix("_total")
        quote = escape if self._openmetrics else _escape_help
        self._lines.append(f"# HELP {name} {quote(text)}\n# TYPE {name} {kind}\n")

    def sample(self, name: str, labels: str, value: float) -> None:
        """Add one sample; `labels` as `label_text` writes them."""
        where = f"{name}{{{labels}}}" if labels else name
        self._lines.append(f"{where} {_number(value)}\n")

    def bytes(self) -> bytes:
        """Return the page."""
        end = "# EOF\n" if self._openmetrics else ""
        return ("".join(self._lines) + end).encode(errors="replace")


def wants_openmetrics(accept: str) -> bool:
    """Tell from a request's Accept header whether the scraper reads OpenMetrics."""
    return any(
        part.partition(";")[0].strip().lower() == "application/openmetrics-text"
        for part in accept.split(",")
    )


def label_text(names: Sequence[str], values: Sequence[str]) -> str:
    """Write label pairs as they stand between the braces."""
    return ",".join(
        [f'{name}="{escape(value)}"' for name, value in zip(names, values, strict=True)]
    )


def escape(text: str) -> str:
    """Escape a label's value."""
    return text.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


def _escape_help(text: str) -> str:
    return text.replace("\\", r"\\").replace("\n", r"\n")


def _number(value: float) -> str:
    if math.isfinite(value):
        return repr(value)
    return "NaN" if math.isnan(value) else "+Inf" if value > 0 else "-Inf"
