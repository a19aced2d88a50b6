"""One decision about widths: what is known of the groups in, a frozen plan out. Touches no tensor of the model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from realloc.allocate.room_of_widths import WidthRoom
from realloc.allocate.width_costs import Purse
from realloc.allocate.widths import narrow
from realloc.errors import StateError
from realloc.grow.grown import Grown
from realloc.kernels.finite import all_finite
from realloc.ledger import Entry
from realloc.methods.width_method import WidthMethod
from realloc.plan import Change, Plan, Write
from realloc.release import NotFinite
from realloc.rng import stream
from realloc.scores.neurons import Neurons
from realloc.sites.places import others


def decide_widths(
    groups: Sequence[Neurons], method: WidthMethod, purse: Purse, *, step: int, phase: float, number: int, seed: int
) -> Plan:
    """Decide one move.

    Args:
        groups: what is known of each.
        method: the recipe.
        purse: its budget is what may be spent afterwards.
        step: optimizer steps taken, for the random streams.
        phase: 0 at the schedule's begin, 1 at its end.
        number: which decision of the schedule it is, from 1 on.
        seed: the run's seed.
    """
    try:
        worth = [_worth(group, method, stream(seed, "keep", group.name, step)) for group in groups]
        stays = _stays(groups, method, purse, worth, phase, number)
        after = _after(groups, method, purse, worth, stays, step, seed)
    except NotFinite as error:
        return Plan(step, (), skipped=str(error))
    changes, writes = [], list[Write]()
    for g, group in enumerate(groups):
        gone = others(stays[g], group.width)
        count = after[g] - stays[g].numel()
        come = torch.arange(group.width, group.width + count)
        if not gone.numel() and not count:
            changes.append(Change(group.name, group.width, group.width, gone, come))
            continue
        if method.compensate:
            writes += _compensation(group, gone)
        if count:
            kept = worth[g].clone()
            kept[gone] = -torch.inf
            writes += _growth(group, method, kept, stays[g], count, stream(seed, "grow", group.name, step))
        threshold = float(worth[g][gone].max()) if gone.numel() else None
        changes.append(Change(
            group.name, group.width, after[g], gone, come, keep_threshold=threshold,
            jump=_jump(group, gone) if gone.numel() else None,
        ))  # fmt: skip
    return Plan(step, tuple(changes), writes=tuple(writes))


def _worth(group: Neurons, method: WidthMethod, generator: torch.Generator) -> Tensor:
    """The worth of units; of a group that took no part nothing is known, and nothing of it goes."""
    if not group.active:
        return torch.zeros(group.width, dtype=torch.float64)
    return _finite(method.keep.measure(group, generator), group, method.keep.name, group.width)


def _stays(
    groups: Sequence[Neurons], method: WidthMethod, purse: Purse, worth: Sequence[Tensor], phase: float, number: int
) -> list[Tensor]:
    """Which units stay, ascending."""
    widths = tuple(group.width for group in groups)
    free = [_may_go(group, method, mine) for group, mine in zip(groups, worth, strict=True)]
    if method.threshold is not None:
        level = method.threshold
        gone = [mine[score[mine] <= level] for mine, score in zip(free, worth, strict=True)]
        gone = [mine[: max(0, g.width - g.least)] for mine, g in zip(gone, groups, strict=True)]
    elif method.within:
        share = method.drop(phase)
        owed = [due(share * mine.numel(), number) for mine in free]
        gone = [mine[: min(n, g.width - 1)] for mine, n, g in zip(free, owed, groups, strict=True)]
    else:
        target = purse.budget
        if method.want is not None:
            spent = purse.space.cost(widths, purse.currency)
            target = min(target, spent - int(method.drop(phase) * spent))
        ranked = [score[mine].tolist() for mine, score in zip(free, worth, strict=True)]
        counts = narrow(replace(purse, budget=target), widths, ranked)
        gone = [mine[: width - n] for mine, width, n in zip(free, widths, counts, strict=True)]
    return [others(mine.sort().values, g.width) for mine, g in zip(gone, groups, strict=True)]


def due(rate: float, number: int) -> int:
    """How many units a rate brings at the n-th decision: fractions add up over decisions, and no count is kept.

    >>> [due(0.4, number) for number in range(1, 6)], due(0.29 * 100, 1)
    ([0, 0, 1, 0, 1], 29)
    """
    now, before = (math.floor(rate * n + 1e-9 * max(1.0, rate * n)) for n in (number, number - 1))
    return now - before


def _may_go(group: Neurons, method: WidthMethod, worth: Tensor) -> Tensor:
    """Units that may go, the lowest worth first: none of a group that took no part, none that just came."""
    if not group.active:
        return torch.empty(0, dtype=torch.int64)
    old = torch.ones(group.width, dtype=torch.bool) if group.age is None else group.age.cpu() >= method.mature
    order = worth.argsort(stable=True)
    return order[old[order]]


def _after(
    groups: Sequence[Neurons], method: WidthMethod, purse: Purse, worth: Sequence[Tensor], stays: Sequence[Tensor],
    step: int, seed: int,
) -> tuple[int, ...]:  # fmt: skip
    """The widths of after."""
    left = tuple(stay.numel() for stay in stays)
    if method.within:
        return tuple(group.width for group in groups)
    if method.want is None:
        return left
    gains = []
    for group, score, stay, width in zip(groups, worth, stays, left, strict=True):
        count = group.most - width if group.active else 0
        mine = torch.zeros(0, dtype=torch.float64)
        if count > 0:
            mine = method.want.measure(group, score[stay], count, stream(seed, "want", group.name, step))
        gains.append(_finite(mine, group, method.want.name).tolist())
    after = tuple(method.share(WidthRoom(purse, left, tuple(gains))))
    if len(after) != len(left) or any(now < stay for now, stay in zip(after, left, strict=True)):
        raise StateError(f"share of {method.name} gave {after} units where {left} stay; it may only add")
    return after


def _compensation(group: Neurons, gone: Tensor) -> list[Write]:
    """What the units that go gave on average, for the biases of what reads them."""
    means, found = dict(group.means), []
    for part in group.readers:
        mean = means.get(part.name)
        if mean is None or not gone.numel():
            continue
        block = mean.shape[1]
        inner = part.values[gone].reshape(gone.numel(), -1, block, part.tail).double().sum(3)
        shift = (inner * mean[gone][:, None, :].double()).sum((0, 2))
        found.append(Write(part.name, "gone", None, shift))
    return found


def _growth(
    group: Neurons, method: WidthMethod, kept: Tensor, stays: Tensor, count: int, generator: torch.Generator
) -> list[Write]:
    """Start values of new units, which lie behind those that stay."""
    grown = _sized(method.grow.draw(group, kept, count, generator), group, count, method.grow.name)
    new = torch.arange(stays.numel(), stays.numel() + count)
    place = torch.full((group.width,), -1, dtype=torch.int64)
    place[stays] = torch.arange(stays.numel())
    writes = [Write(name, "rows", new, values) for name, values in grown.incoming.items()]
    writes += [Write(name, "columns", new, values) for name, values in grown.outgoing.items()]
    writes += [Write(name, "columns", place[units], v) for name, (units, v) in grown.rewritten.items()]
    writes += [Write(name, "reader", None, shift) for name, shift in grown.shifts.items()]
    if grown.copied is not None:
        writes.append(Write(group.makers[0].name, "copies", new, grown.copied))
        factors = [part for part in group.norms if part.name.endswith(".weight")]  # the statistics lie at their slots
        writes += [Write(part.name, "running", new, grown.copied) for part in factors]
    return writes


def _sized(grown: Grown, group: Neurons, count: int, name: str) -> Grown:
    """Refuse start values that fit no parameter, before anything is written."""
    entries = {part.name: part.values.shape[1] for part in (*group.makers, *group.norms, *group.readers)}
    for parameter, values in (*grown.incoming.items(), *grown.outgoing.items()):
        if tuple(values.shape) != (count, entries.get(parameter, -1)):
            raise StateError(
                f"{name} gave {tuple(values.shape)} values of {parameter} for {count} new units of {group.name}; give "
                f"({count}, {entries[parameter]})"
                if parameter in entries
                else f"{name} names {parameter!r}, which has no part in {group.name}"
            )
    return grown


def _finite(scores: Tensor, group: Neurons, name: str, count: int | None = None) -> Tensor:
    if count is not None and tuple(scores.shape) != (count,):
        raise StateError(f"{name} gave {tuple(scores.shape)} scores for {count} units of {group.name}")
    if not all_finite(scores):
        raise NotFinite(f"{name} of {group.name} is not finite")
    return scores.cpu().double()


def _jump(group: Neurons, gone: Tensor) -> float:
    """Frobenius norm of the outgoing weights of what goes."""
    return float(torch.stack([part.values[gone].double().square().sum() for part in group.readers]).sum().sqrt())


def check_plan(plan: Plan, groups: Sequence[Neurons], purse: Purse) -> dict[str, Entry]:
    """The ledger's look at a plan: nothing is created, lost or doubled, and the purse pays for what is held after.

    Raises:
        StateError: a defect of the method that made the plan, named by group.
    """
    changes = {change.site: change for change in plan.changes}
    if len(changes) != len(plan.changes) or set(changes) != {group.name for group in groups}:
        raise StateError(f"plan at step {plan.step} does not name each group once")
    entries, after = {}, []
    for group in groups:
        change = changes[group.name]
        gone, come = change.released, change.acquired
        sound = not gone.numel() or (int(gone.min()) >= 0 and int(gone.max()) < group.width)
        if not sound or len(torch.unique(gone)) != len(gone):
            raise StateError(f"{group.name}: releases a unit that it does not hold, or one twice")
        stays = others(gone, group.width)
        width = stays.numel() + come.numel()
        if change.before != group.width or change.after != width or not group.least <= width <= group.most:
            raise StateError(f"{group.name}: {width} units after the plan do not match its counts or bounds")
        entries[group.name] = Entry(torch.arange(width), torch.cat([stays, torch.full_like(come, -1)]))
        after.append(width)
    if not purse.pays(after):
        raise StateError(
            f"plan at step {plan.step} costs {purse.space.cost(after, purse.currency):,} {purse.currency}, the budget "
            f"is {purse.budget:,}, or a pool has no room for it"
        )
    return entries
