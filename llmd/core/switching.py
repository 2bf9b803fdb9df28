"""What an operator asks for: a switch, an unload, and the plan of a switch before it is done."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from llmd.core.demand import resident
from llmd.core.estimates import expected_load_s
from llmd.core.events import Action, Rule, SwitchRequested, UnloadRequested
from llmd.core.lifecycle import WorkerState
from llmd.core.placement import choose_evictions, shortfall
from llmd.core.policy_state import Leaving, Model, SchedulerState, Want
from llmd.core.queue import Line
from llmd.core.residency import drop_want, resume, send_away
from llmd.core.room import held_bytes, next_context
from llmd.core.settings import ModelInfo


@dataclass(frozen=True, slots=True)
class Plan:
    """What a switch would do now.

    Attributes:
        model: To be loaded.
        loaded: It is in memory, or on its way in, already.
        evict: What goes for it; what drains already for a start that is given up is included.
        add: It was asked to come beside what is loaded.
        fits: It can be loaded; if not, the switch does nothing.
        drains: For each of `evict`, how many requests run there now.
        queued: For each of `evict` and for `model`, how many wait for it.
        load_s: Expected seconds of its load; 0 if it is loaded, or when nothing tells.
        generation: What the plan was made for.
        reason: Why it does not fit; "" if it does.
        not_loaded: Models that were to go and are not there: the switch does nothing.
        going: Models on their way out already, for which the load has to wait, besides `evict`.
    """

    model: str
    loaded: bool
    evict: tuple[str, ...]
    add: bool
    fits: bool
    drains: Mapping[str, int]
    queued: Mapping[str, int]
    load_s: float
    generation: int
    reason: str = ""
    not_loaded: tuple[str, ...] = ()
    going: tuple[str, ...] = ()


@dataclass(slots=True)
class _Draft:
    """A switch thought through: what `plan_switch` shows and `switch` does."""

    model: Model
    loaded: bool
    context_tokens: int  # that it is loaded with at least
    size_bytes: int  # what it holds then
    victims: list[Model] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)  # wants given up for it
    resumed: list[Model] = field(default_factory=list)  # drained for those, and may stay
    inherited: list[Model] = field(default_factory=list)  # drained for those, and go all the same
    not_there: tuple[str, ...] = ()  # who was to go and is not loaded
    fits: bool = True
    reason: str = ""


def _missing(state: SchedulerState, held: list[Model], size_bytes: int) -> tuple[int, int]:
    return shortfall(state.room, (held_bytes(state, m) for m in held), size_bytes)


def _draft(state: SchedulerState, event: SwitchRequested, now: float) -> _Draft:
    """Think the switch through, with the context that is waited for if that fits."""
    known = state.models.get(event.model)
    context = 0 if known is None else next_context(state, known)
    draft = _draft_with(state, event, context, now)
    if context and not draft.fits and not draft.not_there:
        draft = _draft_with(state, event, 0, now)
    return draft


def _draft_with(
    state: SchedulerState, event: SwitchRequested, context_tokens: int, now: float
) -> _Draft:
    model = state.models.get(event.model)
    if model is None:
        info = ModelInfo(event.model)
        model = Model(info, Line(info.name), state.settings.load_s)
    staying = [m for m in state.staying() if m is not model]
    loaded = (
        not model.absent
        and model.state is not WorkerState.STOPPING
        and not (model.leaving and model.leaving.stop_sent)
    )
    size_bytes = model.memory_bytes if loaded else model.bytes_with(context_tokens)
    draft = _Draft(model, loaded, context_tokens, size_bytes)
    draft.not_there = tuple(n for n in event.evict if n != model.name and _is_off(state, n))
    if draft.not_there:
        draft.fits = False
        draft.reason = f"{', '.join(draft.not_there)} cannot make room: not loaded"
        return draft
    draft.victims = [m for m in staying if m.name in event.evict and m.name not in state.wants]
    draft.dropped = [n for n in state.wants if n in event.evict and n != model.name]
    held = [m for m in staying if m not in draft.victims and m.name not in draft.dropped]
    if not (loaded and model.leaving is None):
        held = _drop_in_the_way(state, draft, held, operators=not event.add)
        if any(_missing(state, held, draft.size_bytes)):
            _choose(state, draft, event, held, now)
    if draft.fits:
        _settle_drained(state, draft, held)
    return draft


def _is_off(state: SchedulerState, name: str) -> bool:
    model = state.models.get(name)
    return model is None or (model.absent and name not in state.wants)


def _drop_in_the_way(
    state: SchedulerState, draft: _Draft, held: list[Model], *, operators: bool
) -> list[Model]:
    """Give up starts that are not begun until the model fits: demands first, the newest first."""
    names = [name for name in reversed(state.wants) if name != draft.model.name]
    names = [name for name in names if name not in draft.dropped]
    names.sort(key=lambda name: state.wants[name].rule is Rule.OPERATOR)
    for name in names:
        if not any(_missing(state, held, draft.size_bytes)):
            break
        if state.wants[name].rule is Rule.OPERATOR and not operators:
            break
        draft.dropped.append(name)
        held = [m for m in held if m.name != name]
    return held


def _choose(
    state: SchedulerState, draft: _Draft, event: SwitchRequested, held: list[Model], now: float
) -> None:
    """Find whom to evict, unless the operator named them or wants nobody to go."""
    names = ", ".join(m.name for m in held)
    draft.fits = False
    if event.add:
        draft.reason = f"there is no room beside {names}"
    elif event.evict:
        draft.reason = f"unloading {', '.join(event.evict)} does not make room beside {names}"
    else:
        places, size = _missing(state, held, draft.size_bytes)
        going = [resident(m, now, busy=bool(m.leases or m.line.count)) for m in held]
        chosen = choose_evictions(going, places, size)
        if chosen is not None:
            draft.fits = True
            draft.victims = [state.models[name] for name in chosen]
    if not draft.fits and any(_missing(state, [], draft.size_bytes)):
        draft.reason = (
            f"it needs about {draft.model.memory_bytes >> 20} MiB and models may hold "
            f"{state.settings.memory_bytes >> 20} MiB in all"
        )


def _settle_drained(state: SchedulerState, draft: _Draft, held: list[Model]) -> None:
    """Sort what drains for the starts given up: what still fits stays, the rest goes."""
    sizes = [held_bytes(state, m) for m in held if m not in draft.victims] + [draft.size_bytes]
    for victim in state.present.values():
        leaving = victim.leaving
        if leaving is None or leaving.stop_sent or victim is draft.model:
            continue
        if leaving.for_model not in draft.dropped:
            continue
        asked = leaving.rule is Rule.OPERATOR
        if asked or not victim.leases or any(shortfall(state.room, sizes, victim.memory_bytes)):
            draft.inherited.append(victim)
        else:
            draft.resumed.append(victim)
            sizes.append(victim.memory_bytes)


def plan_switch(state: SchedulerState, event: SwitchRequested, now: float) -> Plan:
    """Return what `decide` would do with `event` now; changes nothing."""
    draft = _draft(state, event, now)
    model = draft.model
    evict = draft.victims + draft.inherited if draft.fits else []
    queued = {m.name: m.line.count for m in [*evict, model]}
    return Plan(
        model=model.name,
        loaded=draft.loaded,
        evict=tuple(m.name for m in evict),
        add=event.add,
        fits=draft.fits,
        drains={m.name: len(m.leases) for m in evict},
        queued=queued,
        load_s=0.0 if draft.loaded else expected_load_s(state, model) or 0.0,
        generation=state.generation,
        reason=draft.reason,
        not_loaded=draft.not_there,
        going=tuple(m.name for m in _going(state, draft)),
    )


def _going(state: SchedulerState, draft: _Draft) -> list[Model]:
    """Return what gives way already and has to be gone before the load can begin."""
    if draft.loaded or not draft.fits:
        return []
    settled = [*draft.victims, *draft.inherited, *draft.resumed]
    going = [
        m
        for m in state.present.values()
        if (m.leaving is not None or m.state is WorkerState.STOPPING) and m not in settled
    ]
    gone = [*draft.victims, *draft.inherited, draft.model]
    held = [m for m in state.present.values() if m not in gone]
    if any(_missing(state, held, draft.size_bytes)):
        return going
    return [m for m in going if m is draft.model]  # whose old process always ends first


def _cancel_at(drain_s: float, now: float, *, force: bool) -> float:
    if force:
        return now
    return now + drain_s if drain_s > 0 else math.inf


def switch(
    state: SchedulerState, event: SwitchRequested, now: float, actions: list[Action]
) -> None:
    """Have `event.model` loaded; what cannot be done is not begun."""
    state.model(event.model)
    draft = _draft(state, event, now)
    if not draft.fits:
        return
    model = draft.model
    cancel_at = _cancel_at(event.drain_s, now, force=event.force)
    going = draft.victims + draft.inherited
    if draft.loaded:
        if not model.serving:
            model.started_by = Rule.OPERATOR  # and so is left alone until it is ready
        if model.leaving is not None:
            resume(state, model, actions)
    if draft.loaded or model.name in state.wants:
        state.wants.pop(model.name, None)  # a reload that was planned, or a weaker wish
    if not draft.loaded:
        state.wants[model.name] = Want(
            Rule.OPERATOR,
            now,
            displaced=tuple(m.name for m in going),
            context_tokens=draft.context_tokens,
        )
    for name in draft.dropped:
        del state.wants[name]
        state.touch(state.models[name])
    for victim in draft.resumed:
        resume(state, victim, actions)
    for victim in draft.inherited:
        assert victim.leaving is not None
        victim.leaving.rule = Rule.OPERATOR
        victim.leaving.for_model = model.name
        victim.leaving.cancel_at = cancel_at
    for victim in draft.victims:
        send_away(state, victim, Leaving(Rule.OPERATOR, now, model.name, cancel_at), actions)
    state.touch(model)


def unload(
    state: SchedulerState, event: UnloadRequested, now: float, actions: list[Action]
) -> None:
    """Have `event.model` go; what waits for it waits on, and may have it loaded again."""
    model = state.model(event.model)
    cancel_at = _cancel_at(event.drain_s, now, force=event.force)
    leaving = model.leaving
    if leaving is not None:
        leaving.rule = Rule.OPERATOR  # from now on it goes whatever becomes of its displacer
        leaving.cancel_at = min(leaving.cancel_at, cancel_at)
    if model.name in state.wants:
        drop_want(state, model.name, actions)
    if leaving is None and not model.absent and model.state is not WorkerState.STOPPING:
        send_away(state, model, Leaving(Rule.OPERATOR, now, cancel_at=cancel_at), actions)
