"""The workers' own `llamacpp:` series, passed on with a `model` label.

What a worker prints is hostile: it is read line by line within bounds, what is malformed is left
out, and each family is declared once however many workers have it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from llmd.observe.exposition import encodable

if TYPE_CHECKING:
    from prometheus_client.core import Metric, Sample

PREFIX = "llamacpp:"
MAX_TEXT_BYTES = 65_536
MAX_LINE_CHARS = 512
MAX_SAMPLES = 500
MAX_FAMILIES = 200

_NAME = re.compile(r"llamacpp:[a-zA-Z0-9_:]{1,100}")
_LABEL = re.compile(r"(?!__)[a-zA-Z_][a-zA-Z0-9_]{0,60}")  # __ is Prometheus' own


@dataclass(slots=True)
class _Family:
    kind: str
    help: str
    samples: dict[tuple[tuple[str, str], ...], Sample] = field(default_factory=dict)


class WorkerSeries:
    """A collector of what the workers printed: one family a name, all models' samples in it.

    Args:
        texts: What each model's worker answered to `GET /metrics`.
    """

    def __init__(self, texts: Mapping[str, bytes]) -> None:
        self._texts = texts

    def collect(self) -> Iterator[Metric]:
        """Yield the families."""
        from prometheus_client.core import Metric

        families: dict[str, _Family] = {}
        for model, text in self._texts.items():
            _read(model, text, families)
        for name, family in families.items():
            kind = _kind(name, family, families)
            own = name.removesuffix("_total") if kind == "counter" else name
            metric = Metric(own, family.help, kind)
            metric.samples.extend(family.samples.values())
            yield metric


def _read(model: str, text: bytes, families: dict[str, _Family]) -> None:
    said: dict[tuple[str, str], str] = {}
    tried = 0
    for line in _lines(text):
        if line.startswith("#"):
            parts = line.split(None, 3)
            if len(parts) == 4:
                said.setdefault((parts[1], parts[2]), parts[3].strip())
            continue
        tried += 1
        if tried > MAX_SAMPLES:
            return
        sample = _sample(model, line)
        if sample is None:
            continue
        name = sample.name
        family = families.get(name)
        if family is None:
            if len(families) >= MAX_FAMILIES:
                continue
            about = _printable(said.get(("HELP", name), ""))
            families[name] = family = _Family(said.get(("TYPE", name), ""), about)
        labels = tuple(sorted(sample.labels.items()))
        if labels not in family.samples:  # a series may be given once only
            family.samples[labels] = sample


def _lines(text: bytes) -> Iterator[str]:
    # the last line may be cut in two by the bound, and half a number is a wrong number
    whole = text if len(text) <= MAX_TEXT_BYTES else text[: text.rfind(b"\n", 0, MAX_TEXT_BYTES)]
    for line in whole.decode(errors="replace").split("\n"):
        if len(line) <= MAX_LINE_CHARS and line.startswith((PREFIX, "# ")):
            yield line


def _sample(model: str, line: str) -> Sample | None:
    """Read a sample and put `model` to it; None when it is malformed."""
    from prometheus_client.parser import text_string_to_metric_families

    try:
        ((sample,),) = (family.samples for family in text_string_to_metric_families(line))
        value = float(sample.value)
    except (ValueError, LookupError, OverflowError):  # all that the parser is known to trip into
        return None
    if not _NAME.fullmatch(sample.name) or not all(map(_LABEL.fullmatch, sample.labels)):
        return None
    labels = {label: _printable(text) for label, text in sample.labels.items()}
    labels["model"] = encodable(model)  # the worker's own word for it gives way to ours
    return sample._replace(labels=labels, value=value, timestamp=None)


def _kind(name: str, family: _Family, families: Mapping[str, _Family]) -> str:
    """Return the type that the family was said to be of, if both formats allow it to be."""
    base = name.removesuffix("_total")
    if family.kind == "counter" and base != name:
        # OpenMetrics knows a counter by its base, which nobody else may have then
        alone = base not in families and f"{base}_created" not in families
        counts = all(sample.value >= 0 for sample in family.samples.values())
        return "counter" if alone and counts else "unknown"
    return "gauge" if family.kind == "gauge" else "unknown"


def _printable(text: str) -> str:
    return "".join(char for char in text if char.isprintable())
