"""The most ranks that one layer may hold: a bound at every moment, in whatever way ranks come and go."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from plain import batch, made, net, step_on, trainable

import realloc
from realloc import methods
from realloc.errors import ConfigError

CAPPED: dict[str, Any] = {
    "adalora": lambda **more: methods.adalora(rank=3, **more),
    "adalora, of a budget": lambda **more: methods.adalora(budget=120, **more),
    "para": lambda **more: methods.para(rank=3, **more),
    "random_ranks": lambda **more: methods.random_ranks(rank=3, drop=0.6, **more),
    "rank_gradient": lambda **more: methods.rank_gradient(rank=3, **more),
}


@pytest.mark.filterwarnings("ignore:.RA003")
@pytest.mark.parametrize("name", CAPPED)
def test_no_layer_ever_holds_more(name, tmp_path):
    cap, seen = 4, []
    free = realloc.prepare(net(), CAPPED[name](), dry_run=True)
    model, optimizer, handle = made(
        CAPPED[name](cap=cap), gap=2, total=12, before_move=lambda m: seen.append(m[0].realloc_site.rank)
    )
    assert any(line.capacity > cap * sum(line.shape) for line in free.sites), "without a cap there is more"
    for number in range(12):
        assert all(site.rank <= cap for site in handle.sites.values())
        step_on(model, optimizer, number)
    assert all(0 <= site.rank <= site.cap == cap for site in handle.sites.values()) and max(seen) <= cap
    assert handle.held + handle.parked == handle.budget
    realloc.export.peft(model, tmp_path / "adapter")
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["r"] <= cap


@pytest.mark.parametrize("name", ["adalora", "para"])
def test_what_starts_above_its_budget_starts_within_the_cap_and_ends_as_before(name):
    """Layers (6, 10) and (10, 14): a rank costs 16 and 24."""
    table = realloc.prepare(net(), CAPPED[name](cap=4), dry_run=True)
    assert [line.held for line in table.sites] == [4 * 16, 4 * 24] and table.budget == 160
    wanted = {"adalora": 180, "para": 240}[name]
    assert f"cap 4 leaves room for 160 of the {wanted} parameters of {name}" in table.notes
    model, optimizer, handle = made(CAPPED[name](cap=4), gap=2, total=8)
    for number in range(8):
        step_on(model, optimizer, number)
    assert 3 * 40 - 24 < handle.held <= 3 * 40 and handle.moves and handle.compact() == 160 - handle.held
    roomy = realloc.prepare(net(), CAPPED[name](cap=6), dry_run=True)
    assert not any("cap" in note for note in roomy.notes) or name == "para"


@pytest.mark.parametrize("make", [methods.adalora, methods.para])
@pytest.mark.parametrize("asked", [{"rank": 3}, {"budget": 120}])
def test_a_cap_that_leaves_nothing_to_cut_is_refused(make, asked):
    model = net()
    with pytest.raises(ConfigError, match=rf"cap=3 leaves {make.__name__} nothing to cut: .*raise cap, lower rank"):
        realloc.prepare(model, make(**asked, cap=3))
    assert [*model.state_dict()] == [*net().state_dict()] and len(trainable(model)) == 6
    with pytest.raises(ConfigError, match="cap=2 is below rank=3"):
        make(rank=3, cap=2)
    with pytest.raises(ConfigError, match="cap is 0; it is a number of ranks of a layer"):
        make(**asked, cap=0)


def test_layers_of_several_dtypes_are_capped_alike():
    model = net()
    model[2].float()
    table = realloc.prepare(model, methods.adalora(rank=3, cap=4))
    assert [line.held for line in table.sites] == [4 * 16, 4 * 24]
    assert model[0].realloc_site.cap == model[2].realloc_site.cap == 4


def test_another_cap_than_prepared_is_refused():
    model = net()
    realloc.prepare(model, methods.random_ranks(rank=3, cap=4))
    optimizer = torch.optim.AdamW(trainable(model))
    with pytest.raises(
        ConfigError, match=r"prepared for random_ranks at rank 3, scale 1\.0, cap 4, attach got .*cap 5"
    ):
        realloc.attach(model, optimizer, methods.random_ranks(rank=3, cap=5), schedule=realloc.every(2, total=8))


@pytest.mark.parametrize("make", [methods.eva, methods.gora])
def test_measured_ranks_keep_to_it(make):
    few = [batch(number)[0] for number in range(3)]
    method = realloc.calibrate(net(), few, make(rank=3, cap=3), loss=lambda model, x: model(x).square().mean())
    assert max(rank for _, rank in method.ranks) <= 3
    assert realloc.prepare(net(), method).budget == 120
