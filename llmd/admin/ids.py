"""Which request an operator means who typed only a part of its id, as tables show it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from llmd.errors import InvalidRequest

FEWEST = 4  # characters of a part
_NAMED = 5  # candidates in a refusal
_OURS = "r-"  # how the ids begin that llmd gives out


def whole_ids(said: Sequence[str], ids: Iterable[str]) -> list[str]:
    """Return the whole id for each that was said; what means none of them stays as it was said.

    A part is the end of an id or its beginning, with or without llmd's own `r-`, of at least
    `FEWEST` characters besides that. An id said whole means itself, whatever it is a part of.

    Args:
        said: Ids, whole or in part.
        ids: Those that there are.

    Raises:
        InvalidRequest: A part means several.
    """
    known = list(ids)
    whole = set(known)
    parts = {name: part for name in said if name not in whole and (part := _part(name))}
    found: dict[str, list[str]] = {part: [] for part in parts.values()}
    if found:
        wanted = tuple(found)
        for one in known:
            bare = one.removeprefix(_OURS)
            if one.endswith(wanted) or one.startswith(wanted) or bare.startswith(wanted):
                for part in wanted:
                    if one.endswith(part) or one.startswith(part) or bare.startswith(part):
                        found[part].append(one)
    for name, part in parts.items():
        if len(found[part]) > 1:
            raise InvalidRequest(_several(name, found[part]), param="request")
    return [
        found[parts[name]][0] if name in parts and found[parts[name]] else name for name in said
    ]


def _part(name: str) -> str:
    """Return what an id must begin or end with to be meant; "" when that says too little."""
    part = name.rstrip("…")  # where a narrow table cut it
    return part if len(part.removeprefix(_OURS)) >= FEWEST else ""


def _several(name: str, found: Sequence[str]) -> str:
    more = f" and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
    return f"{name[:200]!r} may be any of {', '.join(found[:_NAMED])}{more}; say more of it"
