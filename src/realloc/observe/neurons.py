"""From pools of widths and the backwards of a step to what a decision may know of the units of each group."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod

import torch
from torch import Tensor

from realloc.allocate.width_costs import Member, Space
from realloc.kernels.finite import all_finite
from realloc.pool.widths import WidePool
from realloc.scores.neurons import Need, Neurons, Part
from realloc.sites.wide import WideSite

Reduce = Callable[[Tensor], Tensor]


def by_row(values: Tensor, units: int) -> Tensor:
    """A parameter with its rows as units: ``[units, entries]``, a view."""
    return values.reshape(units, -1)


def by_column(values: Tensor, units: int) -> Tensor:
    """A weight ``[rows, units x block, *tail]`` with its columns as units: ``[units, rows x block x tail]``."""
    rows = values.shape[0]
    return values.reshape(rows, units, -1).transpose(0, 1).reshape(units, -1)


def sites_of(pools: Sequence[WidePool]) -> dict[str, WideSite]:
    """Every site of a space, by parameter name."""
    return {site.name: site for pool in pools for site in pool.sites}


def makers(space_members: Sequence[Member], group: int) -> list[Member]:
    """Weights and biases that compute the units of a group; a bias right after its weight."""
    return [m for m in space_members if m.rows.group == group and not _of_norm(m, space_members)]


def norms(space_members: Sequence[Member], group: int) -> list[Member]:
    """Factors and offsets of norms on them."""
    return [m for m in space_members if m.rows.group == group and _of_norm(m, space_members)]


def readers(space_members: Sequence[Member], group: int) -> list[Member]:
    """Weights that read them."""
    return [m for m in space_members if m.columns is not None and m.columns.group == group]


def _of_norm(member: Member, members: Sequence[Member]) -> bool:
    layer = member.name.rpartition(".")[0]
    return not any(m.columns is not None and m.name.rpartition(".")[0] == layer for m in members)


@torch.no_grad()
def add_effects(pools: Sequence[WidePool]) -> None:
    """Add to the worth of every unit the square of this step's first-order effect of its removal.

    A step whose gradient is missing or not finite adds nothing.
    """
    gradients = [pool.parameter.grad for pool in pools]
    if any(grad is not None and not all_finite(grad) for grad in gradients):
        return
    space, widths, sites = pools[0].space, pools[0].widths, sites_of(pools)
    for group, worth in enumerate(pools[0].units("worth")):
        effect = torch.zeros_like(worth)
        for member in readers(space.members, group):
            site = sites[member.name]
            gradient = site.gradient_of_held()
            if gradient is not None:
                product = site.of(site.pool.parameter.detach()).double() * gradient.double()
                effect += by_column(product, widths[group]).sum(1)
        worth += effect.square()


@torch.no_grad()
def neurons_of(
    pools: Sequence[WidePool],
    active: Mapping[str, bool],
    step: int,
    window: int,
    needs: frozenset[Need],
    reduce: Reduce,
) -> list[Neurons]:
    """What a decision at a step may know of each group.

    Args:
        pools: of one space.
        active: by parameter, whether it took part in the step.
        step: steps taken.
        window: steps whose effects were summed.
        needs: what is wanted of what the step showed.
        reduce: the mean over the ranks of a DDP run.
    """
    space, widths, sites = pools[0].space, pools[0].widths, sites_of(pools)
    worth, born = pools[0].units("worth"), pools[0].units("born")
    found = []
    for group, name in enumerate(space.groups):
        width = widths[group]
        made, read = makers(space.members, group), readers(space.members, group)
        weights = [m.name for m in (*made, *read) if m.columns is not None]
        everyone = all(active[one] for one in weights)
        seen = [_means(sites[m.name], width, reduce) for m in read] if "outputs" in needs and everyone else []
        everyone = everyone and None not in seen
        known = [one for one in seen if one is not None] if everyone else []
        means = tuple((m.name, one[1]) for m, one in zip(read, known, strict=False))
        outputs = torch.stack([one[0] for one in known]).mean(0) if known else None
        products = "products" in needs and everyone and simple(space, group)
        found.append(Neurons(
            name, width, _price(pools, widths, group), space.least[group], space.most[group],
            tuple(_part(sites[m.name], by_row, width) for m in made),
            tuple(_part(sites[m.name], by_column, width) for m in read),
            tuple(_part(sites[m.name], by_row, width) for m in norms(space.members, group)),
            worth[group], step - born[group], outputs, means,
            reduce(_products(sites[made[0].name], sites[read[0].name])) if products else None, float(window), everyone,
            space.levels[group] if space.levels else None,
        ))  # fmt: skip
    return found


def _part(site: WideSite, cut: Callable[[Tensor, int], Tensor], units: int) -> Part:
    member = site.member
    axis = member.rows if cut is by_row else member.columns
    assert axis is not None
    values = cut(site.of(site.pool.parameter.detach()), units)
    return Part(site.name, values, axis.block, prod(member.tail), member.columns is None)


def _price(pools: Sequence[WidePool], widths: Sequence[int], group: int) -> int:
    space, fewer = pools[0].space, list(widths)
    fewer[group] -= 1
    return max(1, space.marginal(fewer, group, pools[0].currency))


def simple(space: Space, group: int) -> bool:
    """Whether one plain linear layer with a bias makes the units and one reads them: GradMax's case."""
    made, read = makers(space.members, group), readers(space.members, group)
    if len(made) != 2 or len(read) != 1 or made[1].columns is not None or norms(space.members, group):
        return False
    blocks = made[0].rows.block, read[0].columns.block if read[0].columns else 0
    return not made[0].tail and not read[0].tail and blocks == (1, 1)


def _rows(x: Tensor, convolution: bool) -> Tensor:
    """``[rows, entries]`` of a layer's input or output gradient; an image may come without its batch."""
    return x.movedim(-3, -1).reshape(-1, x.shape[-3]) if convolution else x.reshape(-1, x.shape[-1])


def _means(site: WideSite, units: int, reduce: Reduce) -> tuple[Tensor, Tensor] | None:
    """Mean absolute and mean input of a reader, ``[units]`` and ``[units, block]``, over all rows of a step.

    None where no rank saw one: its forward ran before the step was known to be looked at.
    """
    columns = site.shape[1]
    sums = torch.zeros(2 * columns + 1, dtype=torch.float64, device=site.pool.parameter.device)
    for x, _ in site.tap.pairs:
        rows = _rows(x.detach(), bool(site.member.tail)).double()
        sums += torch.cat([rows.abs().sum(0), rows.sum(0), rows.new_full((1,), len(rows))])
    sums = reduce(sums)
    if not sums[-1]:
        return None
    size, plain = (sums[:-1] / sums[-1]).view(2, units, -1)
    return size.mean(1), plain


def _products(maker: WideSite, reader: WideSite) -> Tensor:
    """``[reader's rows, maker's columns]``: sum over the batch of output gradient times input.

    Zero where one was called more often than the other: which calls belong together is not known then.
    """
    device = maker.pool.parameter.device
    total = torch.zeros(reader.shape[0], maker.shape[1], dtype=torch.float64, device=device)
    pairs = [(_rows(x, False), _rows(gy, False)) for (x, _), (_, gy) in zip(maker.tap.pairs, reader.tap.pairs)]  # noqa: B905
    if len(maker.tap.pairs) != len(reader.tap.pairs) or any(len(x) != len(gy) for x, gy in pairs):
        return total
    for x, gy in pairs:
        total += gy.double().t() @ x.double()
    return total
