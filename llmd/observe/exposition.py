"""What is counted between scrapes, and the page that Prometheus' client library makes of it.

On the request path an observation is one dictionary update: the library's own instruments look up,
lock and check at each, ten times slower, and a request makes eight. At a scrape the sums become
the library's families, and all that is written is written by it.

The library is imported at the first scrape: that takes longer than the rest of a start may.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from prometheus_client.core import (
        CounterMetricFamily,
        GaugeMetricFamily,
        HistogramMetricFamily,
    )
    from prometheus_client.registry import Collector

LabelValues: TypeAlias = tuple[str, ...]

# A scraper's own header is not handed on: the library fails on a version that is no number. All
# names here are of the old alphabet, so this way of escaping changes none, unlike the library's
# default, which writes the colon of `llamacpp:` as `_` in samples and leaves it in their family.
_ACCEPT_OPENMETRICS = "application/openmetrics-text; version=1.0.0; escaping=allow-utf-8"
_ACCEPT_TEXT = "text/plain; version=0.0.4"


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

    def family(self) -> CounterMetricFamily:
        """Return the sums as they are now."""
        from prometheus_client.core import CounterMetricFamily

        family = CounterMetricFamily(self.name, self.help, labels=self.labels)
        for values, amount in self.values.items():
            family.add_metric([*map(encodable, values)], amount)
        return family


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

    def family(self) -> HistogramMetricFamily:
        """Return the distributions as they are now."""
        from prometheus_client.core import HistogramMetricFamily
        from prometheus_client.utils import floatToGoString

        ends = [*map(floatToGoString, self.bounds), "+Inf"]
        family = HistogramMetricFamily(self.name, self.help, labels=self.labels)
        for values, held in self.values.items():
            total, buckets = 0.0, []
            for end, count in zip(ends, held, strict=False):  # the sum is the one left over
                total += count
                buckets.append((end, total))
            family.add_metric([*map(encodable, values)], buckets, held[-1])
        return family


def gauge(
    name: str, text: str, labels: Sequence[str], samples: Iterable[tuple[LabelValues, float]]
) -> GaugeMetricFamily:
    """Return a family of the values that it has just now."""
    from prometheus_client.core import GaugeMetricFamily

    family = GaugeMetricFamily(name, text, labels=labels)
    for values, value in samples:
        family.add_metric([*map(encodable, values)], value)
    return family


def encode(source: Collector, *, openmetrics: bool) -> tuple[bytes, str]:
    """Return the page of all that `source` collects, and its Content-Type.

    Args:
        source: A registry, or anything else that collects.
        openmetrics: Write OpenMetrics instead of Prometheus' own format.
    """
    from prometheus_client.exposition import choose_encoder

    encoder, content_type = choose_encoder(_ACCEPT_OPENMETRICS if openmetrics else _ACCEPT_TEXT)
    return encoder(source), content_type


def wants_openmetrics(accept: str) -> bool:
    """Tell from a request's Accept header whether the scraper reads OpenMetrics."""
    return any(
        part.partition(";")[0].strip().lower() == "application/openmetrics-text"
        for part in accept.split(",")
    )


def encodable(text: str) -> str:
    """Return `text` as UTF-8 can hold it; a file's name, and so a model's, need not be."""
    return text.encode(errors="backslashreplace").decode()
