import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from realloc.allocate.erdos_renyi import erdos_renyi, erk
from realloc.allocate.globally import globally
from realloc.allocate.momentum_share import momentum_share
from realloc.allocate.room import Room
from realloc.allocate.same_layer import same_layer
from realloc.allocate.uniform import uniform
from realloc.errors import ConfigError, StateError


@st.composite
def rooms_and_budget(draw):
    rooms = []
    for i in range(draw(st.integers(1, 6))):
        grid = draw(st.integers(1, 9)), draw(st.integers(1, 9))
        most = draw(st.integers(0, grid[0] * grid[1]))
        least = draw(st.integers(0, min(most, 3)))
        rooms.append(Room(f"s{i}", grid, least, most, draw(st.floats(0, 5)), draw(st.integers(0, most))))
    low, high = sum(r.least for r in rooms), sum(r.most for r in rooms)
    return rooms, draw(st.integers(low, high))


@settings(max_examples=100, deadline=None)
@given(rooms_and_budget(), st.integers(0, 10**6))
def test_every_allocator_is_exact_within_bounds(case, seed):
    rooms, budget = case
    g = torch.Generator().manual_seed(seed)
    scores = [torch.randint(0, 4, (room.size,), generator=g).float() for room in rooms]
    for allocate in (uniform, erdos_renyi, erk, momentum_share, same_layer, globally(scores)):
        result = allocate(rooms, budget)
        assert sum(result) == budget
        assert all(r.least <= n <= r.most for r, n in zip(rooms, result, strict=True))


def dense_room(name, rows, columns):
    return Room(name, (rows, columns), 1, rows * columns)


def rigl_erk(shapes, density):
    """The published loop, in floats: layers over density 1 become dense and the factor is solved again."""
    dense = set()
    while True:
        ones, divisor, raw = 0.0, 0.0, {}
        for i, shape in enumerate(shapes):
            n = math.prod(shape)
            if i in dense:
                ones -= n * (1 - density)
            else:
                ones += n * density
                raw[i] = sum(shape) / n
                divisor += raw[i] * n
        factor = ones / divisor
        top = max(raw.values())
        if top * factor <= 1:
            return [math.prod(s) * (1.0 if i in dense else factor * raw[i]) for i, s in enumerate(shapes)]
        dense |= {i for i, r in raw.items() if r == top}


@pytest.mark.parametrize("density", [0.02, 0.1, 0.3, 0.6, 0.9])
def test_erdos_renyi_overflow_is_solved_again(density):
    shapes = [(300, 784), (100, 300), (10, 100), (4, 4)]
    rooms = [dense_room(str(i), *shape) for i, shape in enumerate(shapes)]
    budget = round(density * sum(map(math.prod, shapes)))
    result = erdos_renyi(rooms, budget)
    assert sum(result) == budget
    for got, expected in zip(result, rigl_erk(shapes, budget / sum(map(math.prod, shapes))), strict=True):
        assert abs(got - expected) < 1.001


def test_erk_counts_the_kernel():
    shapes = [(64, 3, 3, 3), (128, 64, 3, 3), (10, 128)]
    rooms = [
        Room("a", (64, 27), 1, 64 * 27, shape=shapes[0]),
        Room("b", (128, 576), 1, 128 * 576, shape=shapes[1]),
        dense_room("c", 10, 128),
    ]
    budget = 2_000
    result = erk(rooms, budget)
    expected = rigl_erk(shapes, budget / sum(map(math.prod, shapes)))
    assert sum(result) == budget
    assert all(abs(got - want) < 1.001 for got, want in zip(result, expected, strict=True))
    assert result != erdos_renyi(rooms, budget)


def test_erk_counts_the_grid_where_units_are_blocks_or_no_shape_is_known():
    blocks = [Room("a", (4, 9), 0, 36, shape=(8, 4, 3, 3)), Room("b", (6, 6), 0, 36)]
    assert erk(blocks, 20) == erdos_renyi(blocks, 20)


def test_uniform_gives_one_density():
    assert uniform([dense_room("a", 10, 10), dense_room("b", 20, 20)], 50) == (10, 40)


def test_momentum_share_by_hand():
    rooms = [Room("a", (10, 10), 0, 40, 3.0), Room("b", (10, 10), 0, 2, 6.0), Room("c", (10, 10), 0, 90, 1.0)]
    # b takes its 2, a and c share 36 as 3 : 1
    assert momentum_share(rooms, 38) == (27, 2, 9)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 30), min_size=1, max_size=6))
def test_same_layer_gives_back_exactly(released):
    rooms = [Room(str(i), (6, 6), 0, 36, released=n) for i, n in enumerate(released)]
    assert same_layer(rooms, sum(released)) == tuple(released)


def test_same_layer_with_a_falling_density_shares_in_proportion():
    rooms = [Room("a", (6, 6), 0, 36, released=8), Room("b", (6, 6), 0, 36, released=4)]
    assert same_layer(rooms, 6) == (4, 2)


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 5), st.integers(0, 10**6), st.booleans())
def test_globally_counts_a_plain_sort(count, seed, ties):
    g = torch.Generator().manual_seed(seed)
    rooms, scores = [], []
    for i in range(count):
        size = int(torch.randint(1, 12, (), generator=g))
        most = int(torch.randint(0, size + 1, (), generator=g))
        least = min(most, int(torch.randint(0, 3, (), generator=g)))
        rooms.append(Room(str(i), (1, size), least, most))
        drawn = torch.randn(size, generator=g, dtype=torch.float64)
        scores.append(drawn.round() if ties else drawn)
    low, high = sum(r.least for r in rooms), sum(r.most for r in rooms)
    budget = low + seed % (high - low + 1)
    # plain reference: sort every unit; take each site's best `least`, then the best others that still fit
    ranked = [sorted(((-x, j) for j, x in enumerate(s.tolist()))) for s in scores]
    held = [r.least for r in rooms]
    rest = sorted((x, i, rank) for i, site in enumerate(ranked) for rank, (x, _) in enumerate(site))
    for _, i, rank in rest:
        if sum(held) < budget and rooms[i].least <= rank < rooms[i].most:
            held[i] += 1
    assert globally(scores)(rooms, budget) == tuple(held)


def test_globally_refuses():
    room = Room("a", (1, 3), 1, 3)
    with pytest.raises(StateError, match=r"'a'.*NaN"):
        globally([torch.tensor([1.0, math.nan, 0.0])])([room], 2)
    with pytest.raises(ConfigError, match="0 scores for least=1"):
        globally([torch.zeros(0)])([room], 2)
    with pytest.raises(ConfigError, match=r"budget=4.*pass 1 to 3"):
        globally([torch.zeros(3)])([room], 4)
    with pytest.raises(ConfigError, match="1 score tensors for 2 sites"):
        globally([torch.zeros(3)])([room, room], 4)


@pytest.mark.parametrize("allocate", [uniform, erdos_renyi, momentum_share, same_layer])
def test_infeasible_budgets_say_what_fits(allocate):
    rooms = [Room("fc1", (2, 2), 1, 4), Room("fc2", (2, 2), 2, 4)]
    with pytest.raises(ConfigError, match=r"budget=2 .*the 3 that 2 sites need.*'fc2': 2.*raise the density"):
        allocate(rooms, 2)
    with pytest.raises(ConfigError, match=r"budget=9 .*the 8 that 2 sites can hold.*lower the density"):
        allocate(rooms, 9)


@pytest.mark.parametrize(("least", "most"), [(-1, 3), (3, 2), (0, 5)])
def test_room_refuses_bounds_that_do_not_fit(least, most):
    with pytest.raises(ConfigError, match=f"least={least} and most={most} do not fit 4 units"):
        Room("fc1", (2, 2), least, most)
