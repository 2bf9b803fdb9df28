"""The workers' own `llamacpp:` series, passed on with a `model` label.

What a worker prints is hostile: it is read line by line within bounds, what is malformed is left
out, and each family is declared once however many workers have it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from llmd.observe.exposition import Page, label_text

PREFIX = "llamacpp:"
MAX_TEXT_BYTES = 262_144
MAX_LINE_CHARS = 1024
MAX_SAMPLES = 500
MAX_FAMILIES = 200

_META = re.compile(r"# (HELP|TYPE) (llamacpp:[a-zA-Z0-9_:]{1,100})(?: (.*))?", re.ASCII)
_NUMBER = r"[+-]?(?:\d{1,40}(?:\.\d{0,40})?|\.\d{1,40})(?:[eE][+-]?\d{1,3})?|[+-]Inf|NaN"
_SAMPLE = re.compile(
    rf"(llamacpp:[a-zA-Z0-9_:]{{1,100}})(?:\{{(.*)\}})?[ \t]+({_NUMBER})(?:[ \t]+-?\d+)?[ \t]*",
    re.ASCII,
)
_LABEL = re.compile(
    r'[ \t]*([a-zA-Z_][a-zA-Z0-9_]{0,60})="((?:[^"\\]|\\[\\n"]){0,200})"[ \t]*(?:,|$)'
)
_ESCAPED = re.compile(r"\\([\\n\"])")


@dataclass(slots=True)
class _Family:
    kind: str
    help: str
    samples: dict[str, float] = field(default_factory=dict)


def add_worker_series(page: Page, texts: Mapping[str, bytes]) -> None:
    """Add every worker's series to `page`.

    Args:
        page: Gets one family each, with the samples of all models under it.
        texts: What each model's worker answered to `GET /metrics`.
    """
    families: dict[str, _Family] = {}
    for model, text in texts.items():
        _read(model, text, families)
    for name, family in families.items():
        if family.samples:
            page.head(name, _safe_kind(name, family.kind, families), family.help)
            for labels, value in family.samples.items():
                page.sample(name, labels, value)


def _read(model: str, text: bytes, families: dict[str, _Family]) -> None:
    kinds: dict[str, str] = {}
    helps: dict[str, str] = {}
    taken = 0
    # the last line may be cut in two by the bound, and half a number is a wrong number
    whole = text if len(text) <= MAX_TEXT_BYTES else text[: text.rfind(b"\n", 0, MAX_TEXT_BYTES)]
    for line in whole.decode(errors="replace").split("\n"):
        if not line.startswith((PREFIX, "# ")) or len(line) > MAX_LINE_CHARS:
            continue
        line = line.rstrip("\r")  # noqa: PLW2901
        meta = _META.fullmatch(line)
        if meta is not None:
            target = kinds if meta[1] == "TYPE" else helps
            if len(target) < MAX_FAMILIES:
                target.setdefault(meta[2], (meta[3] or "").strip())
            continue
        sample = _SAMPLE.fullmatch(line)
        labels = None if sample is None else _labels(model, sample[2] or "")
        if sample is None or labels is None:
            continue
        name = sample[1]
        family = families.get(name)
        if family is None:
            if len(families) >= MAX_FAMILIES:
                continue
            kind = _kind(name, kinds.get(name, ""))
            families[name] = family = _Family(kind, _printable(helps.get(name, "")))
        if labels not in family.samples:  # a series may be given once only
            family.samples[labels] = float(sample[3])
            taken += 1
            if taken >= MAX_SAMPLES:
                return


def _kind(name: str, said: str) -> str:
    """Return a type that both text formats take for this name."""
    if said == "gauge" or (said == "counter" and name.endswith("_total")):
        return said
    return "untyped"


def _safe_kind(name: str, kind: str, families: Mapping[str, _Family]) -> str:
    """Return `kind`, unless another family has a name that OpenMetrics reserves for a counter."""
    base = name.removesuffix("_total")
    if kind == "counter" and (base in families or f"{base}_created" in families):
        return "untyped"
    return kind


def _labels(model: str, text: str) -> str | None:
    """Read label pairs and put `model` first; None when they are malformed."""
    pairs: dict[str, str] = {}
    at = 0
    while at < len(text):
        pair = _LABEL.match(text, at)
        if pair is None:
            return None
        at = pair.end()
        if pair[1] in pairs or pair[1].startswith("__"):  # Prometheus' own: __name__ and such
            return None
        pairs[pair[1]] = _printable(_ESCAPED.sub(_unescaped, pair[2]))
    pairs.pop("model", None)  # the worker's own word for it gives way to ours
    names = sorted(pairs)  # one order, or the same series could come twice
    return label_text(["model", *names], [model, *(pairs[name] for name in names)])


def _unescaped(match: re.Match[str]) -> str:
    return "\n" if match[1] == "n" else match[1]


def _printable(text: str) -> str:
    return "".join(char for char in text if char.isprintable())
