"""The ledger and apply: a plan that balances moves slots by one gather, any other touches nothing."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import realloc
from realloc import methods
from realloc.apply import Target, apply
from realloc.errors import StateError
from realloc.kernels.gather import to_slots
from realloc.ledger import check
from realloc.plan import Change, Plan
from realloc.pool.found import find
from realloc.pool.holdings import Holdings
from realloc.sites.grid import Grid


def ints(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int64)


@dataclass
class Account:
    name: str = "fc"
    places: Tensor = field(default_factory=lambda: ints(1, 4, 9))
    grid: Grid = field(default_factory=lambda: Grid(3, 4))


def applied(plan: Plan, holdings: Holdings, target: Target) -> None:
    entries = {}
    for pool in holdings.pools:
        mine = {site.name for site in pool.sites}
        part = Plan(plan.step, tuple(c for c in plan.changes if c.site in mine))
        entries |= check(part, [Account(s.name, s.places(), s.grid) for s in pool.sites], pool.capacity)
    apply(plan, entries, target)


# the gather -------------------------------------------------------------------------------------------------------


@st.composite
def placements(draw: st.DrawFn) -> tuple[list[set[int]], list[set[int]], int]:
    sites = draw(st.integers(1, 4))
    old = [draw(st.sets(st.integers(0, 12), max_size=8)) for _ in range(sites)]
    new = [draw(st.sets(st.integers(0, 12), max_size=8)) for _ in range(sites)]
    most = max(sum(map(len, old)), sum(map(len, new)))
    return old, new, most + draw(st.integers(0, 3))


@settings(max_examples=200, deadline=None)
@given(placements())
def test_an_entry_names_the_old_unit_of_each_survivor(case):
    old, new, capacity = case
    sites = [Account(f"s{i}", ints(*sorted(places)), Grid(1, 13)) for i, places in enumerate(old)]
    changes = [
        Change(site.name, len(a), len(b), ints(*sorted(a - b)), ints(*sorted(b - a)))
        for site, a, b in zip(sites, old, new, strict=True)
    ]
    entries = check(Plan(5, tuple(changes)), sites, capacity)
    where = {(site, place): i for i, (site, place) in enumerate((s, p) for s, ps in enumerate(old) for p in sorted(ps))}
    for number, (site, places) in enumerate(zip(sites, new, strict=True)):
        entry = entries[site.name]
        assert entry.places.tolist() == sorted(places)
        assert entry.source.tolist() == [where.get((number, place), -1) for place in sorted(places)]


@pytest.mark.parametrize("size", [1, 3])
def test_a_unit_brings_all_its_slots(size):
    assert to_slots(ints(1, -1, 0), size).tolist() == [
        -1 if s < 0 else s * size + k for s in (1, -1, 0) for k in range(size)
    ]


# the ledger -------------------------------------------------------------------------------------------------------


def plan_of(*changes: Change) -> Plan:
    return Plan(5, changes)


def change(released: Tensor, acquired: Tensor, before: int = 3, after: int | None = None, site: str = "fc") -> Change:
    return Change(site, before, before - len(released) + len(acquired) if after is None else after, released, acquired)


@pytest.mark.parametrize(
    ("plan", "capacity", "word"),
    [
        (plan_of(change(ints(2), ints(0))), 3, "releases a unit that it does not hold"),
        (plan_of(change(ints(1), ints(4))), 3, "acquires a unit that it already holds"),
        (plan_of(change(ints(1), ints(1))), 3, "acquires a unit that it already holds"),
        (plan_of(change(ints(1), ints(12))), 3, "acquired place lies outside the grid of 12"),
        (plan_of(change(ints(1), ints(-1))), 3, "acquired place lies outside"),
        (plan_of(change(ints(99), ints(0))), 3, "released place lies outside"),
        (plan_of(change(ints(1, 1), ints(0, 2))), 3, "released places are not sorted, or one is named twice"),
        (plan_of(change(ints(1, 4), ints(3, 2))), 3, "acquired places are not sorted"),
        (plan_of(change(ints(1, 4), ints(2, 2))), 3, "acquired places are not sorted, or one is named twice"),
        (plan_of(change(ints(1), ints(0), after=2)), 3, "counts before and after"),
        (plan_of(change(ints(1), ints(0), before=4, after=4)), 3, "counts before and after"),
        (plan_of(change(ints(1), ints(0, 2))), 3, "holds 4 slots, the budget is 3"),
        (plan_of(change(ints(1), ints(0), site="gone")), 3, "'gone', which is no site"),
        (plan_of(change(ints(1), ints(0)), change(ints(4), ints(2))), 3, "names a site twice"),
    ],
)
def test_what_does_not_balance_is_refused(plan, capacity, word):
    with pytest.raises(StateError, match=word):
        check(plan, [Account()], capacity)


@pytest.mark.parametrize(
    "plan",
    [
        plan_of(),
        plan_of(change(ints(), ints())),
        plan_of(change(ints(1, 9), ints(0, 11))),
        plan_of(change(ints(4), ints())),
    ],
)
def test_what_balances_passes(plan):
    check(plan, [Account()], 3)


# apply ------------------------------------------------------------------------------------------------------------


def trained(storage: str) -> tuple[nn.Module, torch.optim.Optimizer, realloc.Handle]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 10), nn.Tanh(), nn.Linear(10, 4)).double()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    method = methods.rigl(0.4).on("*", storage=storage)
    handle = realloc.attach(model, optimizer, method, schedule=realloc.every(100, total=1000), seed=1)
    for number in range(5):
        x = torch.randn(8, 6, generator=torch.Generator().manual_seed(number), dtype=torch.float64)
        optimizer.zero_grad()
        (model(x) - x[:, :4]).square().mean().backward()
        optimizer.step()
    return model, optimizer, handle


def a_plan(handle: realloc.Handle) -> Plan:
    changes = []
    for name, site in handle.sites.items():
        held = site.places()
        free = (~torch.isin(torch.arange(site.grid.units), held)).nonzero().flatten()
        changes.append(Change(name, len(held), len(held), held[::4], free[::3][: len(held[::4])]))
    return Plan(5, tuple(changes))


@pytest.mark.parametrize("storage", ["packed", "masked"])
def test_a_plan_applied_twice_from_one_start_gives_the_same_bits(storage):
    ends = []
    for _ in range(2):
        model, optimizer, handle = trained(storage)
        plan = a_plan(handle)
        holdings = find(model)
        fresh = {p: {} for g in optimizer.param_groups for p in g["params"]}
        applied(plan, holdings, Target(holdings, optimizer, fresh))
        state = [v for s in optimizer.state.values() for v in s.values() if torch.is_tensor(v)]
        ends.append([*model.state_dict().values(), *state])
        assert handle.moves == 1 and handle.units_moved == plan.units_moved
        for change in plan.changes:
            mask = handle.mask(change.site).flatten()
            assert bool(mask[change.acquired].all()) and not bool(mask[change.released].any())
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


@pytest.mark.parametrize("storage", ["packed", "masked"])
def test_growth_at_zero_changes_the_function_only_by_what_was_released(storage):
    model, optimizer, handle = trained(storage)
    plan = a_plan(handle)
    only_released = realloc.export.dense(model)
    for change in plan.changes:
        only_released.get_parameter(change.site).data.view(-1)[change.released] = 0.0
    fresh = {p: {} for g in optimizer.param_groups for p in g["params"]}
    applied(plan, find(model), Target(find(model), optimizer, fresh))
    x = torch.randn(8, 6, dtype=torch.float64)
    torch.testing.assert_close(model(x), only_released(x), rtol=1e-12, atol=1e-12)
    acquired = Plan(6, tuple(Change(c.site, c.after, c.after, ints(), ints()) for c in plan.changes))
    before = copy.deepcopy(model.state_dict())
    applied(acquired, find(model), Target(find(model), optimizer, fresh))
    after = model.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before if k != "realloc_book")


@pytest.mark.parametrize("storage", ["packed", "masked"])
@pytest.mark.parametrize("name", ["rigl", "gse", "sparse_evolution", "snfs"])
def test_a_move_in_training_preserves_the_function_up_to_what_it_released(name, storage):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 10), nn.Tanh(), nn.Linear(10, 4)).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)  # the step itself changes nothing
    method = getattr(methods, name)(0.4).on("*", storage=storage)
    handle = realloc.attach(model, optimizer, method, schedule=realloc.every(1, total=9), seed=1)
    x = torch.randn(8, 6, dtype=torch.float64)
    for _ in range(3):
        before, old = realloc.export.dense(model), {n: handle.mask(n) for n in handle.sites}
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
        for site, mask in old.items():
            before.get_parameter(site).data[mask & ~handle.mask(site)] = 0.0
        torch.testing.assert_close(model(x), before(x), rtol=1e-12, atol=1e-12)
    assert handle.moves >= 2  # at a rate of zero what is zero goes and comes again
