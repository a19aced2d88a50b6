"""Grids of units, packed layers and masked weights, each against the dense matrix."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import realloc
from realloc import methods
from realloc.sites.grid import Grid


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 5), st.integers(1, 5), st.integers(1, 3), st.integers(1, 3), st.data())
def test_a_grid_cuts_the_matrix_without_rest(rows, columns, r, c, data):
    grid = Grid(rows * r, columns * c, r, c)
    assert (grid.rows, grid.columns, grid.units, grid.size) == (rows, columns, rows * columns, r * c)
    places = torch.tensor(sorted(data.draw(st.sets(st.integers(0, grid.units - 1)))), dtype=torch.int64)
    dense = torch.arange(grid.height * grid.width).view(grid.height, grid.width)
    by_hand = [
        dense[p // columns * r : p // columns * r + r, p % columns * c : p % columns * c + c].flatten().tolist()
        for p in places.tolist()
    ]
    assert grid.elements(places).tolist() == by_hand
    assert grid.fold(dense)[places].tolist() == by_hand
    assert int(grid.mask(places).sum()) == len(places) * grid.size
    assert sorted(grid.elements(torch.arange(grid.units)).flatten().tolist()) == dense.flatten().tolist()


@pytest.mark.parametrize("block", [(1, 1), (2, 3)], ids=str)
def test_a_packed_layer_is_its_dense_weight(block):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 6, bias=False)).double()
    twin = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 6, bias=False)).double()
    twin.load_state_dict(model.state_dict())
    method = methods.static(0.5).on("0", block=block)
    realloc.prepare(model, method, seed=3)
    site = model[0].realloc_site
    twin[0].weight.data[~site.mask()] = 0.0
    assert torch.equal(model[0].weight.detach(), twin[0].weight)
    assert isinstance(model[0], nn.Linear) and f"held={site.held}" in repr(model[0])
    x = torch.randn(2, 5, 6, dtype=torch.float64, requires_grad=True)
    y = x.detach().clone().requires_grad_(True)
    model(x).sin().sum().backward()
    twin(y).sin().sum().backward()
    torch.testing.assert_close(x.grad, y.grad)
    torch.testing.assert_close(site.gradient_of_held(), twin[0].weight.grad.view(-1)[site.grid.elements(site.places())])
    torch.testing.assert_close(model[0].bias.grad, twin[0].bias.grad)
    model[0].weight.square().sum().backward()  # read without calling forward: differentiable all the same
    with pytest.raises(RuntimeError, match=r"detach\(\) before resetting"):
        model[0].reset_parameters()
    with pytest.raises(RuntimeError, match="convert one of them"):
        model(torch.randn(2, 6))


def convolutions() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.Flatten(), nn.Linear(16, 3)).double()


@pytest.mark.parametrize("cls", [torch.optim.AdamW, torch.optim.SGD])
@pytest.mark.parametrize("name", ["granet", "rigl", "smet", "snfs"])
def test_masked_convolutions_do_not_care_for_memory_format(name, cls):
    ends = []
    for layout in (torch.contiguous_format, torch.channels_last):
        model = convolutions().to(memory_format=layout)
        optimizer = cls(model.parameters(), lr=0.02)
        handle = realloc.attach(model, optimizer, getattr(methods, name)(0.3), schedule=realloc.every(2, total=20))
        assert [site.storage for site in handle.sites.values()] == ["masked", "masked"]
        for number in range(10):
            x = torch.randn(4, 2, 6, 6, generator=torch.Generator().manual_seed(number), dtype=torch.float64)
            optimizer.zero_grad()
            model(x.to(memory_format=layout)).square().mean().backward()
            optimizer.step()
            assert (
                handle.held + handle.parked
                == handle.budget
                == sum(int(handle.mask(n).sum()) for n in handle.sites) + handle.parked
            )
            for site in handle.sites:
                assert not bool(model.get_parameter(site)[~handle.mask(site)].any())
        assert handle.moves > 2
        ends.append(({n: handle.mask(n) for n in handle.sites}, model[0].weight.detach().contiguous()))
    (masks, weight), (others, other) = ends
    assert all(torch.equal(masks[n], others[n]) for n in masks)
    torch.testing.assert_close(weight, other)


def test_tied_weights_are_one_site_and_stay_tied():
    torch.manual_seed(0)
    one, two = nn.Linear(6, 6), nn.Linear(6, 6)
    two.weight = one.weight
    model = nn.Sequential(one, nn.Tanh(), two, nn.Tanh(), nn.Linear(6, 2)).double()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    handle = realloc.attach(model, optimizer, methods.rigl(0.5), schedule=realloc.every(2, total=20))
    assert [*handle.sites] == ["0.weight"] and handle.budget == 18
    for number in range(8):
        x = torch.randn(4, 6, generator=torch.Generator().manual_seed(number), dtype=torch.float64)
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
    assert handle.moves > 2 and torch.equal(model[0].weight, model[2].weight)
    handle.detach()
    assert model[0].weight is model[2].weight
