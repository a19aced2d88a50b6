"""What widths cost, beside plain models and hand counts, and what an allocator makes of it, beside brute force."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from wide_nets import IMAGE, cnn, mlp, moved_parameters

from realloc import methods
from realloc.allocate.room_of_widths import WidthRoom, by_gain, in_proportion
from realloc.allocate.width_costs import Axis, Member, Purse, Space, Tally
from realloc.allocate.widths import narrow, scaled, widen
from realloc.choose_widths import choose_widths
from realloc.errors import ConfigError

HIDDEN = st.integers(1, 7)


# costs ------------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 5), st.lists(HIDDEN, min_size=1, max_size=3), st.lists(HIDDEN, min_size=3, max_size=3),
       st.booleans(), st.booleans())  # fmt: skip
def test_the_cost_is_that_of_a_model_built_at_those_widths(
    inputs: int, sizes: list[int], others: list[int], norm: bool, bias: bool
) -> None:
    chosen = choose_widths(mlp(inputs, *sizes, 2, norm=norm, bias=bias), methods.width())
    space, other = chosen.space, others[: len(sizes)]
    assert chosen.widths == tuple(sizes)
    names = [member.name for member in space.members]
    for now in (sizes, other):
        model = mlp(inputs, *now, 2, norm=norm, bias=bias)
        assert space.cost(now) == moved_parameters(model, names)
        assert all(m.shape(now) == tuple(model.get_parameter(m.name).shape) for m in space.members)
        everything = sum(p.numel() for p in model.parameters())
        assert space.cost(now) == everything - (2 if bias else 0)  # all but the bias of the output
        pairs = itertools.pairwise([inputs, *now, 2])
        assert space.cost(now, "FLOPs") == sum(2 * a * b for a, b in pairs)


@settings(deadline=None, max_examples=6)
@given(HIDDEN, HIDDEN, HIDDEN, HIDDEN, HIDDEN, HIDDEN, st.booleans())
def test_costs_of_convolutions(a: int, b: int, c: int, d: int, e: int, f: int, bias: bool) -> None:
    method = methods.width(currency="FLOPs").on(example=torch.zeros(1, *IMAGE, dtype=torch.float64))
    space = choose_widths(cnn(a, b, c, bias=bias), method).space
    names = [member.name for member in space.members]
    for one, two, hidden in ((a, b, c), (d, e, f)):
        model = cnn(one, two, hidden, bias=bias)
        assert space.cost((one, two, hidden)) == moved_parameters(model, names)
        by_hand = 2 * (36 * 9 * 2 * one + 4 * 9 * one * two + 4 * two * hidden + hidden * 3)
        assert space.cost((one, two, hidden), "FLOPs") == by_hand


def test_flops_of_tokens_are_counted_for_each() -> None:
    model = mlp(4, 6, 3)
    method = methods.width(currency="FLOPs").on(example=torch.zeros(1, 5, 4, dtype=torch.float64))
    assert choose_widths(model, method).space.cost([6], "FLOPs") == 5 * 2 * (4 * 6 + 6 * 3)


class Reached(nn.Module):
    """A layer of a known transformer that the example does not reach, beside an MLP."""

    def __init__(self) -> None:
        super().__init__()
        self.block, self.net, self.tokens = nn.TransformerEncoderLayer(4, 2, 6, batch_first=True), mlp(4, 6, 3), False
        self.to(torch.float64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net((self.block(x) if self.tokens else x)[:, 0])


def test_flops_of_a_layer_that_the_example_does_not_reach_are_not_known() -> None:
    pytest.importorskip("torch_pruning")
    model, example = Reached(), torch.zeros(1, 5, 4, dtype=torch.float64)
    method = methods.width(currency="FLOPs")
    with pytest.raises(ConfigError, match=r"block\.linear1 does not run on the example.*exclude=\('block\.linear1'"):
        choose_widths(model, method.on(example=example))
    left = choose_widths(model, method.on(exclude=("block.linear1",), example=example)).space
    assert left.groups == ("net.0",) and left.cost([6], "FLOPs") == 2 * (4 * 6 + 6 * 3)
    assert "block.linear1" in choose_widths(model, methods.width().on(example=example)).space.groups
    model.tokens = True
    both = choose_widths(model, method.on(example=example)).space
    assert dict(zip(both.groups, (both.marginal([6, 6], g, "FLOPs") for g in range(2)), strict=True)) == {
        "net.0": 2 * (4 + 3), "block.linear1": 5 * 2 * (4 + 4)
    }  # fmt: skip


# a tally counts what the whole formula counts -----------------------------------------------------------------------


@st.composite
def spaces(draw: st.DrawFn) -> Space:
    groups = draw(st.integers(1, 3))
    axis = st.builds(Axis, st.one_of(st.none(), st.integers(0, groups - 1)), st.integers(1, 3))
    member = st.builds(
        Member, st.just("m"), axis, st.one_of(st.none(), axis), st.sampled_from([(), (3, 3)]), st.integers(1, 4)
    )
    members = draw(st.lists(member, min_size=1, max_size=5))
    members += [Member("all", Axis(g, 1)) for g in range(groups)]  # every group costs something
    least = tuple(draw(st.integers(1, 2)) for _ in range(groups))
    return Space(tuple("abc"[:groups]), least, (4,) * groups, tuple(members))


@st.composite
def purses(draw: st.DrawFn) -> tuple[Purse, tuple[int, ...]]:
    """A purse, and widths that it need not pay for."""
    space = draw(spaces())
    currency = draw(st.sampled_from(["parameters", "FLOPs"]))
    widths = tuple(draw(st.integers(least, 4)) for least in space.least)
    cost = space.cost(widths, currency)
    numbers = range(len(space.members))
    rooms = tuple(
        (tuple(mine), draw(st.integers(0, 20)) + sum(space.members[m].parameters(widths) for m in mine))
        for mine in (list(numbers[::2]), list(numbers[1::2]))
    )
    return Purse(space, draw(st.integers(0, 2 * cost + 5)), currency, rooms), widths


@settings(deadline=None, max_examples=60)
@given(purses(), st.lists(st.tuples(st.integers(0, 2), st.sampled_from([-1, 1])), max_size=8))
def test_a_tally_counts_as_the_whole_formula(pair: tuple[Purse, tuple[int, ...]], steps: list[tuple[int, int]]) -> None:
    purse, widths = pair
    tally, now = Tally(purse, widths), list(widths)
    for group, step in steps:
        if group >= len(now) or now[group] + step < 1:
            continue
        for g in range(len(now)):
            more, fewer = list(now), list(now)
            more[g], fewer[g] = now[g] + 1, now[g] - 1
            cost = [purse.space.cost(w, purse.currency) for w in (fewer, now, more)]
            assert tally.price(g) == max(1, cost[2] - cost[1]) and tally.price(g, -1) == max(1, cost[1] - cost[0])
            assert purse.space.marginal(now, g, purse.currency) == cost[2] - cost[1]
            assert tally.affords(g) == purse.pays(more)
        tally.add(group, step)
        now[group] += step
        assert tally.widths == now and tally.pays == purse.pays(now)


# allocators, by brute force ---------------------------------------------------------------------------------------


def greedy_out(purse: Purse, widths: Sequence[int], worth: Sequence[Sequence[float]]) -> tuple[int, ...]:
    """Release one unit after the other, each time the lowest worth per cost, costs counted whole."""
    now, gone = list(widths), [0] * len(widths)
    while not purse.pays(now):
        best = None
        for g, mine in enumerate(worth):
            if gone[g] == len(mine) or now[g] == purse.space.least[g]:
                continue
            fewer = [n - (h == g) for h, n in enumerate(now)]
            saved = purse.space.cost(now, purse.currency) - purse.space.cost(fewer, purse.currency)
            ratio = mine[gone[g]] / max(1, saved)
            best = min(best, (ratio, g)) if best else (ratio, g)
        if best is None:
            break
        now[best[1]] -= 1
        gone[best[1]] += 1
    return tuple(now)


def greedy_in(purse: Purse, widths: Sequence[int], gains: Sequence[Sequence[float]]) -> tuple[int, ...]:
    now, come = list(widths), [0] * len(widths)
    while True:
        options = []
        for g, mine in enumerate(gains):
            more = [n + (h == g) for h, n in enumerate(now)]
            if come[g] < len(mine) and more[g] <= purse.space.most[g] and purse.pays(more):
                price = purse.space.cost(more, purse.currency) - purse.space.cost(now, purse.currency)
                options.append((-mine[come[g]] / max(1, price), g))
        if not options:
            return tuple(now)
        now[min(options)[1]] += 1
        come[min(options)[1]] += 1


SCORES = st.lists(st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0, 7.0]), max_size=4), min_size=3, max_size=3)


@settings(deadline=None, max_examples=80)
@given(purses(), SCORES)
def test_narrow_and_widen_are_the_greedy_choice(pair: tuple[Purse, tuple[int, ...]], scores: list[list[float]]) -> None:
    purse, widths = pair
    mine = [sorted(one)[:width] for one, width in zip(scores, widths, strict=False)]
    less = narrow(purse, widths, mine)
    assert less == greedy_out(purse, widths, mine)
    assert all(a - len(one) <= n <= a for n, a, one in zip(less, widths, mine, strict=True))
    assert all(n >= least for n, least in zip(less, purse.space.least, strict=True))
    gains = [sorted(one, reverse=True) for one in scores[: len(widths)]]
    more = widen(purse, less, gains)
    assert more == greedy_in(purse, less, gains)
    if purse.pays(less):
        assert purse.pays(more)
        rest = [max(one) for one in itertools.zip_longest(more, less)]
        for g, one in enumerate(gains):
            further = [n + (h == g) for h, n in enumerate(rest)]
            left = more[g] - less[g] < len(one) and further[g] <= purse.space.most[g]
            assert not (left and purse.pays(further)), "the purse paid for one unit more"
    else:
        assert more == less


@settings(deadline=None, max_examples=60)
@given(purses(), st.lists(st.integers(1, 6), min_size=3, max_size=3))
def test_scaled_is_the_widest_factor_of_all(pair: tuple[Purse, tuple[int, ...]], parts: list[int]) -> None:
    purse, widths = pair
    shape = parts[: len(widths)]
    found = scaled(purse, widths, shape)
    if not purse.pays(widths):
        assert found == widths
        return
    assert purse.pays(found) and all(w <= n <= most for w, n, most in zip(widths, found, purse.space.most, strict=True))

    def at(factor: float) -> list[int]:
        return [max(w, min(4, int(factor * part))) for w, part in zip(widths, shape, strict=True)]

    # every factor at which an integer changes, tried one by one
    steps = sorted({0.0, *(n / part for part in shape for n in range(1, 5))})
    best = max((f for f in steps if purse.pays(at(f * (1 + 1e-12)))), default=0.0)
    assert all(n >= low for n, low in zip(found, at(best * (1 + 1e-12)), strict=True))
    for g in range(len(found)):
        more = [n + (h == g) for h, n in enumerate(found)]
        assert more[g] > 4 or not purse.pays(more), "a unit more was to be had"


@pytest.mark.parametrize("allot", [by_gain, in_proportion])
def test_groups_without_gains_stay(allot: object) -> None:
    space = Space(("a", "b"), (1, 1), (9, 9), (Member("a", Axis(0, 2)), Member("b", Axis(1, 2))))
    room = WidthRoom(Purse(space, 20), (2, 3), ((), (1.0, 1.0, 1.0)))
    assert allot(room) == (2, 6)


def test_a_large_model_is_allocated_in_a_moment() -> None:
    """Twelve layers of heads and units, thousands of units to hand out: only what a unit touches is counted anew."""
    calls, members = 0, []
    for g in range(0, 24, 2):
        members += [Member(f"qkv{g}", Axis(g, 192), Axis(None, 768)), Member(f"o{g}", Axis(None, 768), Axis(g, 64))]
        members += [
            Member(f"in{g}", Axis(g + 1, 1), Axis(None, 768)),
            Member(f"out{g}", Axis(None, 768), Axis(g + 1, 1)),
        ]
    start = (12, 3072) * 12
    space = Space(tuple(map(str, range(24))), (1,) * 24, tuple(4 * n for n in start), tuple(members))
    tally = Tally(Purse(space, space.cost(start)), start)
    plain = Member.parameters

    def counted(self: Member, widths: Sequence[int]) -> int:
        nonlocal calls
        calls += 1
        return plain(self, widths)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Member, "parameters", counted)
        for _ in range(100):
            assert tally.price(1) == 2 * 768 and tally.affords(3) is False
            tally.add(1, -1)
            tally.add(1, 1)
    assert calls <= 100 * 2 * 8
