"""What a run of widths says: the table of prepare, the summary, why a group moved, and the record."""

from __future__ import annotations

import pytest
import torch
from wide_nets import Events, attached, cnn, mlp, step_on, widths

import realloc
from realloc import methods
from realloc.errors import ConfigError, ReallocWarning


def test_the_table_says_what_moves_what_a_unit_costs_and_what_stays() -> None:
    model = torch.nn.Sequential(*mlp(6, 12, 10, 3), torch.nn.Softmax(1), torch.nn.Linear(3, 2).double())
    table = realloc.prepare(model, methods.narrow(0.5), dry_run=True)
    text = str(table)
    assert table.budget == 6 * 12 + 12 + 12 * 10 + 10 + 10 * 3 and "244 parameters in layers whose widths move" in text
    assert "note: 0: 12 units, 1 to 48, one more costs 17 parameters" in text
    assert "note: 2: 10 units, 1 to 40, one more costs 16 parameters" in text
    assert "122 parameters may be spent at the end; handle.compact() gives the rest back" in text
    assert "4: dense (it is followed by 5, a Softmax, which is not known here)" in text
    assert [type(m) for m in model] == [type(m) for m in model] and not any(
        "realloc" in key for key in model.state_dict()
    )


def test_flops_are_told_as_flops() -> None:
    table = realloc.prepare(mlp(6, 12, 10, 3), methods.width(currency="FLOPs"), dry_run=True)
    assert f"budget {2 * (6 * 12 + 12 * 10 + 10 * 3)} FLOPs a forward of one example" in str(table)
    assert "one more costs 32 FLOPs" in str(table) and "of attention" not in str(table)
    assert "each layer counts for one position: where some see many (tokens) and others one, give method" in str(table)
    pytest.importorskip("torch_pruning")
    method = methods.width(currency="FLOPs").on(example=torch.zeros(1, 6).double())
    told = str(realloc.prepare(mlp(6, 12, 10, 3), method, dry_run=True))
    assert "counts for one position" not in told


def test_units_that_start_anew_explain_why_none_did() -> None:
    model = mlp(6, 12, 10, 3)
    optimizer, handle = attached(methods.continual_backprop(0.04, mature=2), model, gap=1, total=10)
    for number in range(2):
        step_on(model, optimizer, number)
    text = handle.explain("2")
    assert "released by lowest utility, and as many start anew" in text
    assert "step 1: nothing moved: every unit was younger than mature=2 steps" in text
    assert "step 2: nothing moved: a share of its units of 2 steps or more came to less than one (fractions" in text
    model = mlp(6, 12, 3, act=torch.nn.Softplus)
    optimizer, handle = attached(methods.redo(1e-6), model, gap=1, total=10)
    step_on(model, optimizer, 0)
    assert "step 1: nothing moved: no unit was at or below 1e-06, or its layers took no part" in handle.explain("0")


def test_a_run_too_short_for_mature_says_so() -> None:
    model = mlp(6, 12, 10, 3)
    optimizer, handle = attached(methods.width(), model, gap=5, total=15)
    with pytest.warns(ReallocWarning, match="RA003.*none was `mature` steps old .in a short run give fewer"):
        for number in range(15):
            step_on(model, optimizer, number)
    young = "nothing moved: every unit was younger than mature=100 steps; in a short run give fewer"
    assert f"step 5: {young}" in handle.explain("0") and handle.moves == 0
    model = mlp(6, 1, 1, 3)  # nothing may go, however old
    optimizer, handle = attached(methods.width(mature=2), model, gap=3, total=9)
    step_on(model, optimizer, 0)
    step_on(model, optimizer, 1)
    step_on(model, optimizer, 2)
    assert "step 3: nothing moved: no unit of 2 steps or more was cheap enough to go" in handle.explain("0")


def test_the_summary_lists_every_group_before_and_now() -> None:
    model = cnn(6, 5, 8)
    optimizer, handle = attached(methods.random_widths(drop=0.4, mature=0), model, gap=1, total=10)
    for number in range(6):
        step_on(model, optimizer, number)
    lines, now = handle.summary().splitlines(), widths(handle)
    assert lines[0].startswith(
        f"random_widths: budget {handle.budget:,} = {handle.held:,} held + {handle.parked:,} parked"
    )
    for (name, start), line in zip({"0": 6, "3": 5, "7": 8}.items(), lines[1:4], strict=True):
        gained = now[name] - start
        assert line.split() == f"{name} {now[name]} units, {start} at the start ({gained:+}); 1 to {4 * start}".split()
    assert len(lines) == 4 + len(handle.sites) and handle.state()["widths"] == now
    assert "released for good" not in lines[0]


@pytest.mark.parametrize("currency", ["parameters", "FLOPs"])
def test_what_narrow_released_is_counted_in_its_currency(currency: str) -> None:
    model = mlp(6, 12, 10, 3)
    optimizer, handle = attached(methods.narrow(0.5, currency=currency), model, gap=1, total=4)
    budget = handle.budget
    for number in range(4):
        step_on(model, optimizer, number)
    gone = budget - handle.held
    assert gone > 0 and f"0 units moved and {gone:,} {currency} released for good in 4 steps" in handle.summary()
    handle.compact()
    assert f"and {gone:,} {currency} released for good" in handle.summary()


def test_a_group_explains_its_moves() -> None:
    model, events = mlp(6, 12, 10, 3), Events()
    optimizer, handle = attached(methods.width(drop=0.4, mature=0), model, gap=2, total=10, record=events)
    assert "no move yet; the next one is due at step 2" in handle.explain("2")
    for number in range(6):
        step_on(model, optimizer, number)
    now = widths(handle)
    text = handle.explain("2")
    assert text.startswith(
        f"2: {now['2']} units, 10 at the start, 1 to 40; one more costs {now['0'] + 1 + 3} parameters"
    )
    assert "released by lowest effect of removal, acquired by highest mean worth" in text
    assert len(events) == 3
    for event in events:
        site = event["sites"]["2"]
        counts = (
            f"step {event['step']}: {site['before']} -> {site['after']} units (-{site['released']} +{site['acquired']}"
        )
        if site["released"]:
            assert f"{counts}, effect of removal up to {site['keep_threshold']:.3g} went)" in text
            assert f"the weights behind jumped by {site['jump']:.3g}" in text
        elif site["acquired"]:
            assert counts in text and site["jump"] is None
        else:
            assert f"step {event['step']}: nothing moved" in text
    assert event["held"] + event["parked"] == event["budget"] == handle.budget
    # by parameter: the groups that it follows
    assert handle.explain("2.weight").splitlines()[0].startswith("0: ") and "\n2: " in handle.explain("2.weight")
    assert handle.explain("4") == handle.explain("2")  # the last layer follows the width that it reads
    with pytest.raises(ConfigError, match=r"no hidden dimension and no site '3'; there are '0', '2'"):
        handle.explain("3")


def test_a_coupled_group_is_explained_by_each_of_its_layers() -> None:
    pytest.importorskip("torch_pruning")

    class Two(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.head = (torch.nn.Linear(6, 6).double() for _ in range(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head((self.one(x) + self.two(x)).relu())

    model = Two()
    method = methods.uniform_widths().on(example=torch.zeros(2, 6).double())
    _, handle = attached(method, model)
    for name in ("one", "two", "one+two", "head"):
        assert handle.explain(name).startswith("one+two: 6 units, 6 at the start")
    assert "no move yet; none is due" in handle.explain("one")


def test_the_handle_says_what_it_holds() -> None:
    model = mlp(6, 12, 10, 3)
    optimizer, handle = attached(methods.random_widths(drop=0.4, mature=0), model, gap=1, total=10)
    for number in range(4):
        step_on(model, optimizer, number)
    assert repr(handle).startswith(f"Handle(random_widths, held={handle.held:,}, parked={handle.parked:,}")
    for name, site in handle.sites.items():
        assert handle.mask(name).all() and tuple(handle.mask(name).shape) == site.shape
        assert site.held == site.values().numel() and name in repr(site)
    assert handle._repr_html_().count("<tr>") == 1 + len(handle.sites)
