"""What a model needs in memory, and what is missing for it beside others."""

from __future__ import annotations

from llmd.core.placement import shortfall
from llmd.core.policy_state import Model, SchedulerState


def missing(
    state: SchedulerState, held: list[Model], newcomer: Model, context_tokens: int = -1
) -> tuple[int, int]:
    """Return the places and bytes that must be freed among `held` before `newcomer` fits.

    It is loaded with `context_tokens`; by default with what was decided, else with what those
    need who wait for it.
    """
    tokens = next_context(state, newcomer) if context_tokens < 0 else context_tokens
    others = (held_bytes(state, m) for m in held if m is not newcomer)
    return shortfall(state.room, others, newcomer.bytes_with(tokens))


def next_context(state: SchedulerState, model: Model) -> int:
    """Return the context that the next load of `model` is to give at least."""
    want = state.wants.get(model.name)
    return model.next_context() if want is None else want.context_tokens


def held_bytes(state: SchedulerState, model: Model) -> int:
    """Return what `model` holds, or will when it has been started as was decided."""
    if model.name in state.wants:
        return model.bytes_with(next_context(state, model))
    return model.memory_bytes
