import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from realloc.scores import topology as room
from realloc.scores.seen import Seen
from realloc.scores.topology import topology, topology_ch3


def seen_of(mask):
    rows, columns = mask.shape
    flat = mask.flatten()
    free, held = torch.nonzero(~flat).flatten(), torch.nonzero(flat).flatten()
    return Seen(free, (rows, columns), held, torch.Generator())


def brute_force(mask, weight):
    """Walk every path u - z1 - z2 - v of every missing link, and count the links of its middle nodes one by one."""
    rows, columns = mask.shape
    link = mask.tolist()
    result = []
    for u in range(rows):
        for v in range(columns):
            if link[u][v]:
                continue
            paths = [
                (z1, z2) for z1 in range(columns) for z2 in range(rows) if link[u][z1] and link[z2][z1] and link[z2][v]
            ]
            ones, twos = {z1 for z1, _ in paths}, {z2 for _, z2 in paths}
            score = 0.0
            for z1 in ones:
                inside = sum(link[z][z1] for z in twos)
                outside = sum(link[z][z1] for z in range(rows) if z not in twos and z != u)
                score += weight(inside, outside)
            for z2 in twos:
                inside = sum(link[z2][z] for z in ones)
                outside = sum(link[z2][z] for z in range(columns) if z not in ones and z != v)
                score += weight(inside, outside)
            result.append(score)
    return torch.tensor(result, dtype=torch.float64)


def ch2(inside, outside):
    return (inside + 1) / (outside + 1)


def ch3(inside, outside):
    return 1 / (outside + 1)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 7), st.integers(1, 7), st.floats(0, 1), st.integers(0, 10**6))
def test_equals_a_walk_over_all_paths(rows, columns, density, seed):
    mask = torch.rand(rows, columns, generator=torch.Generator().manual_seed(seed)) < density
    seen = seen_of(mask)
    torch.testing.assert_close(topology(seen), brute_force(mask, ch2), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(topology_ch3(seen), brute_force(mask, ch3), rtol=1e-6, atol=1e-6)


def test_worked_by_hand():
    # u0: v0 v1, u1: v0 v1 v2, u2: v2 v3; the missing link u0-v2 closes over u1
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 0], [0, 0, 1, 1]]).bool()
    scores = dict(zip(seen_of(mask).places.tolist(), topology(seen_of(mask)).tolist(), strict=True))
    # middle: u1 (2 links inside, 0 outside: 3 / 1), v0 and v1 (1 inside, 0 outside: 2 / 1 each)
    assert scores[2] == 3 + 2 + 2
    assert scores[3] == 0.0  # no path of length three from u0 to v3


def test_equals_the_two_dense_products_on_a_larger_grid():
    generator = torch.Generator().manual_seed(1)
    mask = torch.rand(60, 45, generator=generator) < 0.1
    m = mask.double()
    dd, tt = m @ m.T, m.T @ m
    a = torch.where(dd > 0, (dd + 1) / (m.sum(1) - dd).clamp_min(1), 0.0)
    b = torch.where(tt > 0, (tt + 1) / (m.sum(0) - tt).clamp_min(1), 0.0)
    dense = a @ m + (b @ m.T).T
    torch.testing.assert_close(topology(seen_of(mask)), dense[~mask], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("elements", [1, 7, 100, 333])
def test_blocks_of_rows_change_nothing(monkeypatch, elements):
    mask = torch.rand(13, 9, generator=torch.Generator().manual_seed(2)) < 0.3
    whole = topology(seen_of(mask))
    monkeypatch.setattr(room, "_ELEMENTS", elements)
    assert torch.equal(topology(seen_of(mask)), whole)


def test_a_few_candidates_score_as_among_all():
    mask = torch.rand(20, 30, generator=torch.Generator().manual_seed(3)) < 0.2
    seen = seen_of(mask)
    some = torch.arange(0, len(seen.places), 7)
    few = Seen(seen.places[some], seen.grid, seen.held, seen.generator)
    assert torch.equal(topology(few), topology(seen)[some])


def test_an_empty_and_a_full_layer():
    assert topology(seen_of(torch.zeros(3, 4).bool())).tolist() == [0.0] * 12
    assert topology(seen_of(torch.ones(3, 4).bool())).shape == (0,)


@pytest.mark.parametrize("shape", [(80, 60), (1, 50), (50, 1)])
def test_threads_change_nothing(shape):
    mask = torch.rand(*shape, generator=torch.Generator().manual_seed(4)) < 0.3
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = topology(seen_of(mask))
        torch.set_num_threads(2)
        assert torch.equal(topology(seen_of(mask)), one)
    finally:
        torch.set_num_threads(threads)
