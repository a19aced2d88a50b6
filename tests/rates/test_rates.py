"""Shares of learning rate: exact budgets, a plain reference of the step, untouched groups, resume, teaching errors."""

from __future__ import annotations

import copy
import math
import warnings
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import realloc
from kinds import RATES
from realloc import methods
from realloc.allocate.rate_shares import HOLDS, WHOLE, geometric_shares, mean_shares, movement_shares, shares_among
from realloc.attach_rates import await_rates
from realloc.errors import ConfigError, ReallocWarning, RecordError, StateError
from realloc.methods.rate_method import RateMethod, RatePast
from realloc.methods.rate_score import RateScore
from realloc.rate_handle import RateHandle
from realloc.scores.heavy_tail import power_law_exponent

STEPS = 24


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 3)).double()


def batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(step)
    x = torch.randn(12, 6, generator=draw, dtype=torch.float64)
    return x, (x[:, 0] > 0).long() + (x[:, 1] > 0).long()


STILL = ("llrd", "permuted_rates", "rates")  # by depth, once


def method_of(name: str) -> RateMethod:
    return methods.permuted_rates(methods.llrd()) if name == "permuted_rates" else getattr(methods, name)()


class Run:
    def __init__(self, method: RateMethod | None, *, optimizer: Any = torch.optim.AdamW, every: int = 6) -> None:
        self.model = net()
        self.optimizer = optimizer(self.model.parameters(), lr=1e-2)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda step: 1 - step / STEPS)
        schedule = realloc.every(every, total=STEPS)
        self.handle: RateHandle | None = None
        if method is not None:
            self.handle = realloc.attach(self.model, self.optimizer, method, schedule=schedule, seed=3)
        self.losses: list[float] = []

    def train(self, steps: range) -> Run:
        for step in steps:
            x, y = batch(step)
            loss = cross_entropy(self.model(x), y)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.scheduler.step()
            self.losses.append(float(loss.detach()))
        return self


def run(method: RateMethod | None, **more: Any) -> Run:
    return Run(method, **more).train(range(STEPS))


# the budget -------------------------------------------------------------------------------------------------------


weights = st.lists(st.floats(1e-9, 1e9), min_size=2, max_size=30)


@given(weights, st.floats(1.01, 20))
def test_the_mean_is_held_to_the_millionth(wanted: list[float], most: float) -> None:
    found = mean_shares(wanted, most)
    assert sum(found) == WHOLE * len(wanted)
    assert all(WHOLE / most <= one <= WHOLE * most for one in found)
    assert all((a <= b + 1) for (_, a), (_, b) in zip(*_sorted(wanted, found), strict=True))  # order is kept


@given(weights, st.floats(1.01, 20))
def test_the_geometric_mean_is_held_to_the_millionth(wanted: list[float], most: float) -> None:
    found = geometric_shares(wanted, most)
    assert sum(found) == 0 and max(map(abs, found)) <= WHOLE * math.log(most)
    assert all((a <= b + 1) for (_, a), (_, b) in zip(*_sorted(wanted, found), strict=True))


@given(weights, st.floats(1.01, 20), st.data())
@settings(max_examples=60)
def test_relative_movement_is_never_above_what_it_was(wanted: list[float], most: float, data: Any) -> None:
    count = len(wanted)
    moved = data.draw(st.lists(st.floats(0, 1e6), min_size=count, max_size=count))
    found, hold = movement_shares(wanted, most, moved), HOLDS["movement"]
    spent = hold.spent(found, moved)
    assert 0 <= spent <= hold.budget(count) and all(1 / most <= hold.rate(one) <= most for one in found)
    if sum(moved) > 0 and max(wanted) / min(wanted) < most and max(moved) < 1e3 * min(moved):
        assert hold.budget(count) - spent < 100  # parked: less than a ten-thousandth


@pytest.mark.parametrize("hold", ["mean", "geometric"])
@given(weights, st.floats(1.01, 20), st.data())
@settings(max_examples=60)
def test_groups_that_do_not_train_leave_the_budget_of_the_others_alone(
    hold: str, wanted: list[float], most: float, data: Any
) -> None:
    count = len(wanted)
    trains = data.draw(st.lists(st.booleans(), min_size=count, max_size=count).filter(any))
    found = shares_among(HOLDS[hold], wanted, most, [0.0] * count, trains)
    assert sum(found) == HOLDS[hold].budget(count)
    assert all(one == HOLDS[hold].even for one, on in zip(found, trains, strict=True) if not on)
    among = [one for one, on in zip(wanted, trains, strict=True) if on]
    assert HOLDS[hold].share(among, most, []) == tuple(one for one, on in zip(found, trains, strict=True) if on)


def _sorted(wanted: list[float], found: tuple[int, ...]) -> tuple[list[Any], list[Any]]:
    rows = sorted(zip(wanted, found, strict=True))
    return rows[:-1], rows[1:]


@pytest.mark.parametrize("name", RATES)
@pytest.mark.parametrize("hold", ["mean", "geometric", "movement"])
def test_the_budget_holds_after_every_step(name: str, hold: str) -> None:
    if name in STILL:
        if hold == "movement":
            return
        made = methods.rates(hold=hold) if name == "rates" else methods.llrd(hold=hold)
        method = methods.permuted_rates(made) if name == "permuted_rates" else made
    else:
        method = getattr(methods, name)(hold=hold)
    one = Run(method)
    assert one.handle is not None
    for step in range(STEPS):
        one.train(range(step, step + 1))
        rates = list(one.handle.rates.values())
        assert one.handle.held + one.handle.parked == one.handle.budget and one.handle.parked >= 0
        if hold == "mean":
            assert sum(round(rate * WHOLE) for rate in rates) == WHOLE * len(rates) == one.handle.held
        if hold == "geometric":
            assert math.prod(rates) == pytest.approx(1, abs=1e-5) and one.handle.held == 0
    assert one.handle.moves == (0 if name in STILL else pytest.approx(4, abs=3))
    assert len(set(one.handle.rates.values())) > 1


# the step beside a plain reference --------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, torch.optim.SGD, torch.optim.RMSprop])
def test_a_step_is_that_of_groups_with_those_rates(optimizer: Any) -> None:
    shared = run(methods.llrd(0.5), optimizer=optimizer)
    assert shared.handle is not None
    rates = list(shared.handle.rates.values())
    plain = net()
    groups = [
        {"params": plain[place].parameters(), "lr": 1e-2 * rate} for place, rate in zip((0, 2, 4), rates, strict=True)
    ]
    stepper = optimizer(groups, lr=1e-2)
    scheduler = torch.optim.lr_scheduler.LambdaLR(stepper, lambda step: 1 - step / STEPS)
    for step in range(STEPS):
        x, y = batch(step)
        stepper.zero_grad()
        cross_entropy(plain(x), y).backward()
        stepper.step()
        scheduler.step()
    for mine, theirs in zip(shared.model.parameters(), plain.parameters(), strict=True):
        assert torch.allclose(mine, theirs, rtol=0, atol=1e-14)


def test_even_shares_change_no_bit() -> None:
    even = RateMethod("even", lambda past: [1.0] * len(past), moves=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ReallocWarning)
        one, plain = run(even), run(None)
    for mine, theirs in zip(one.model.parameters(), plain.model.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_the_users_groups_are_as_they_were_between_steps() -> None:
    one = Run(methods.llrd())
    groups, dicts = one.optimizer.param_groups, list(one.optimizer.param_groups)
    one.train(range(3))
    assert one.optimizer.param_groups is groups and all(a is b for a, b in zip(groups, dicts, strict=True))
    assert one.optimizer.param_groups[0]["lr"] == pytest.approx(1e-2 * (1 - 3 / STEPS))  # the scheduler's
    assert len(one.optimizer.state_dict()["param_groups"]) == 1
    assert one.handle is not None
    one.handle.detach()
    assert not one.optimizer._optimizer_step_pre_hooks and not one.optimizer._optimizer_step_post_hooks
    assert set(one.model.state_dict()) == set(net().state_dict())
    one.train(range(3, 5))


def test_a_step_that_fails_leaves_whole_groups_behind() -> None:
    one = Run(methods.llrd())

    def closure() -> Any:
        raise KeyError("data")

    with pytest.raises(KeyError):
        one.optimizer.step(closure)
    assert len(one.optimizer.state_dict()["param_groups"]) == 1
    one.train(range(2))


def test_a_closure_measures_too() -> None:
    closed, plain = Run(methods.auto_rgn()), run(methods.auto_rgn())
    for step in range(STEPS):
        x, y = batch(step)

        def closure(x: Any = x, y: Any = y) -> Any:
            closed.optimizer.zero_grad()
            loss = cross_entropy(closed.model(x), y)
            loss.backward()
            return loss

        closed.optimizer.step(closure)
        closed.scheduler.step()
    assert closed.handle is not None and plain.handle is not None
    assert closed.handle.rates == plain.handle.rates and closed.handle.moves > 0


def test_a_rate_in_a_tensor_and_several_groups() -> None:
    model = net()
    groups = [{"params": [p for p in model.parameters() if p.dim() > 1]},
              {"params": [p for p in model.parameters() if p.dim() == 1], "weight_decay": 0.0}]  # fmt: skip
    optimizer = torch.optim.AdamW(groups, lr=torch.tensor(1e-2), foreach=False)
    handle = realloc.attach(model, optimizer, methods.llrd(0.5))
    before = [p.detach().clone() for p in model.parameters()]
    cross_entropy(model(batch(0)[0]), batch(0)[1]).backward()
    optimizer.step()
    moved = [float((p.detach() - old).abs().max()) for p, old in zip(model.parameters(), before, strict=True)]
    rates = [rate for rate in handle.rates.values() for _ in range(2)]
    assert moved == pytest.approx([1e-2 * rate for rate in rates], rel=0.1)  # Adam's first step is its rate
    assert [len(group["params"]) for group in optimizer.param_groups] == [3, 3]


# rules beside plain references ------------------------------------------------------------------------------------


def past(**known: Any) -> RatePast:
    count = len(next(iter(known.values())))
    usual: dict[str, Any] = {
        "names": tuple("abcdefgh"[:count]), "sizes": (1,) * count, "gradient": (1.0,) * count,
        "weight": (1.0,) * count, "movement": (1.0,) * count, "gain": (1.0,) * count, "rates": (1.0,) * count,
        "matrices": ((),) * count, "phase": 0.0, "draw": lambda word: torch.Generator().manual_seed(0),
    }  # fmt: skip
    return RatePast(**usual | known)


def test_the_rules() -> None:
    assert methods.llrd(0.5).weigh(past(gain=(0, 0, 0))) == [0.25, 0.5, 1.0]
    assert methods.auto_rgn().weigh(past(gradient=(2.0, 3.0, 1.0), weight=(4.0, 1.0, 0.0))) == [0.5, 3.0, 0.0]
    assert methods.gradnorm(0.5).weigh(past(gradient=(1.0, 4.0, 0.0))) == pytest.approx(
        [(5 / 3) ** 0.5, (5 / 12) ** 0.5, 1]
    )
    low, middle, high = methods.loss_change(1.0).weigh(past(gain=(1.0, 10.0, 100.0)))
    assert [low, middle, high] == pytest.approx([math.exp(-(1.5**0.5)), 1, math.exp(1.5**0.5)])
    assert methods.loss_change().weigh(past(gain=(2.0, 2.0))) == [1.0, 1.0]
    hurt = methods.loss_change().weigh(past(gain=(1.0, -5.0, 100.0)))
    assert hurt[1] == hurt[0] < hurt[2]  # what raises the loss is as bad as the worst that lowers it


def test_tempbalance_beside_a_plain_hill_estimate() -> None:
    draw = torch.Generator().manual_seed(0)
    first, second = torch.randn(20, 30, generator=draw), torch.randn(8, 8, generator=draw) ** 3

    def hill(weight: torch.Tensor) -> float:
        values = sorted(float(v) for v in torch.linalg.eigvalsh((weight @ weight.T).double()))
        k = len(values) // 2
        return 1 + k / sum(math.log(values[-i] / values[-k - 1]) for i in range(1, k + 1))

    assert power_law_exponent(first) == pytest.approx(hill(first), rel=1e-4)
    found = methods.tempbalance().weigh(past(matrices=((first,), (second,), ())))
    a, b = math.sqrt(hill(first)), math.sqrt(hill(second))
    assert found[:2] == pytest.approx([a, b], rel=1e-3)
    assert found[2] == pytest.approx(math.sqrt((a * a + b * b) / 2), rel=1e-3)
    assert power_law_exponent(torch.zeros(4, 4)) is None and power_law_exponent(torch.eye(4)) is None


def test_permuted_rates_leave_out_what_has_no_gradient() -> None:
    plain, one = methods.auto_rgn(), methods.permuted_rates(methods.auto_rgn())
    known = past(gradient=(1.0, 0.0, 3.0, 7.0))
    own, found = plain.weigh(known), one.weigh(known)
    assert known.trains == (True, False, True, True) and past(gradient=(0.0, 0.0)).trains == (True, True)
    assert sorted(own) == sorted(found) and [a == b for a, b in zip(own, found, strict=True)] == [
        False,
        True,
        False,
        False,
    ]


def test_permuted_rates_are_the_same_on_other_layers() -> None:
    plain, permuted = run(methods.llrd(0.5)), run(methods.permuted_rates(methods.llrd(0.5)))
    assert plain.handle is not None and permuted.handle is not None
    assert sorted(plain.handle.rates.values()) == sorted(permuted.handle.rates.values())


def test_what_is_measured_is_what_a_hand_measures() -> None:
    seen: list[RatePast] = []

    def look(past: RatePast) -> list[float]:
        seen.append(past)
        return [1.0, 2.0, 3.0]

    one = Run(RateMethod("look", look, moves=True, window=2), every=4)
    sums = torch.zeros(4, 3, dtype=torch.float64)
    for step in range(4):
        before = [[p.detach().clone() for p in one.model[place].parameters()] for place in (0, 2, 4)]
        one.train(range(step, step + 1))
        if step < 2:
            continue  # the window is the last two steps
        for unit, place in enumerate((0, 2, 4)):
            for p, old in zip(one.model[place].parameters(), before[unit], strict=True):
                assert p.grad is not None
                moved = p.detach() - old
                sums[:, unit] += torch.stack(
                    [-(p.grad * moved).sum(), moved.square().sum(), old.square().sum(), p.grad.square().sum()]
                )
    gain, movement, weight, gradient = (sums / 2).tolist()
    assert list(seen[0].gain) == pytest.approx(gain) and list(seen[0].movement) == pytest.approx(movement)
    assert [w * w for w in seen[0].weight] == pytest.approx(weight)
    assert [g * g for g in seen[0].gradient] == pytest.approx(gradient)


# groups -----------------------------------------------------------------------------------------------------------


def test_groups_of_the_user_and_by_name() -> None:
    model = net()
    optimizer = torch.optim.SGD([{"params": model[0].parameters()}, {"params": model[2:].parameters()}], lr=0.1)
    handle = realloc.attach(model, optimizer, methods.llrd(0.5).on("groups"))
    assert list(handle.rates) == ["group 0", "group 1"]
    handle.detach()
    by_kind = realloc.attach(model, optimizer, methods.llrd(0.5).on(lambda name: name.rsplit(".", 1)[-1]))
    assert list(by_kind.rates) == ["weight", "bias"]


def test_a_model_without_blocks_has_its_modules() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 2)

    model = Two()
    handle = realloc.attach(model, torch.optim.SGD(model.parameters(), lr=0.1), methods.llrd())
    assert list(handle.rates) == ["first", "second"]


# the record -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RATES)
@pytest.mark.parametrize("cut", [3, 6, 11])
def test_a_run_that_is_cut_ends_bit_equal(name: str, cut: int) -> None:
    """Also in the middle of a window; model and optimizer in either order."""
    straight, first, second = run(method_of(name)), Run(method_of(name)), Run(method_of(name))
    first.train(range(cut))
    state = copy.deepcopy(first.model.state_dict()), copy.deepcopy(first.optimizer.state_dict())
    if cut % 2:
        second.model.load_state_dict(state[0])
    second.optimizer.load_state_dict(state[1])
    if not cut % 2:
        second.model.load_state_dict(state[0])
    second.scheduler.load_state_dict(first.scheduler.state_dict())
    second.train(range(cut, STEPS))
    assert straight.losses == first.losses + second.losses
    assert straight.handle is not None and second.handle is not None
    assert straight.handle.state() == second.handle.state()


def test_every_decision_is_recorded(tmp_path: Any) -> None:
    from realloc.record.events import read

    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    handle = realloc.attach(
        model, optimizer, methods.auto_rgn(), schedule=realloc.every(2, total=4), record=tmp_path / "events.jsonl"
    )
    for step in range(4):
        optimizer.zero_grad()
        cross_entropy(model(batch(step)[0]), batch(step)[1]).backward()
        optimizer.step()
    lines = read(tmp_path / "events.jsonl").lines
    assert [(line["kind"], line["step"]) for line in lines] == [("move", 2), ("move", 4)]
    assert all(line["held"] == line["budget"] == 3 * WHOLE for line in lines)
    assert sum(site["after"] for site in lines[-1]["sites"].values()) == 3 * WHOLE
    assert "step 2: 1.000 -> " in handle.explain("0") and "mean held" in handle.summary()


@pytest.mark.parametrize("damage", ["format", "groups", "sums", "negative", "share", "far"])
def test_a_foreign_or_damaged_state_is_refused_whole(damage: str) -> None:
    one = run(methods.auto_rgn())
    state = copy.deepcopy(one.model.state_dict())
    if damage == "format":
        state["realloc_rates"][0] = 9
    if damage == "groups":
        state["realloc_rates"] = state["realloc_rates"][:-1]
    if damage == "sums":
        del state["realloc_rate_sums"]
    if damage == "share":
        state["realloc_rates"][-1] += 1
    if damage == "far":
        state["realloc_rates"][-3:] = torch.tensor([10**12, 1, 1])
    if damage == "negative":
        state["realloc_rates"][3] = -1
    other = Run(methods.auto_rgn())
    before = copy.deepcopy(other.model.state_dict())
    with pytest.raises(RecordError, match="realloc_rates"):
        other.model.load_state_dict(state)
    assert all(torch.equal(value, before[key]) for key, value in other.model.state_dict().items())


def test_the_state_of_a_plain_model_loads() -> None:
    one = Run(methods.llrd())
    one.model.load_state_dict(net().state_dict())
    assert one.handle is not None and one.handle.held == 3 * WHOLE


# faults -----------------------------------------------------------------------------------------------------------


def test_what_is_not_finite_moves_nothing() -> None:
    one = Run(methods.auto_rgn())
    one.train(range(5))
    x, y = batch(5)
    one.optimizer.zero_grad()
    (cross_entropy(one.model(x), y) * math.nan).backward()
    with pytest.warns(ReallocWarning, match="RA001.*NaN or Inf"):
        one.optimizer.step()
    assert one.handle is not None and one.handle.moves == 0 and set(one.handle.rates.values()) == {1.0}


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (lambda past: [1.0] * 9, "gave 9 weights for 3 groups; return one for each"),
        (lambda past: [1.0, -2.0, 1.0], "gave -2 as a weight; return finite numbers above 0"),
        (lambda past: [1.0, math.nan, 1.0], "gave nan as a weight"),
    ],
)
def test_weights_that_fit_no_groups_move_nothing_and_are_told_apart(made: Any, words: str) -> None:
    one = Run(methods.rates(RateScore("r", made)))
    with pytest.warns(ReallocWarning, match=f"RA001.*the score of rates {words}"):
        one.train(range(6))
    assert one.handle is not None and one.handle.moves == 0


def test_a_model_that_nobody_trains_is_told() -> None:
    model, other = net(), net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    handle = realloc.attach(model, optimizer, methods.auto_rgn(), schedule=realloc.every(2, total=4))
    with pytest.warns(ReallocWarning) as told:
        for step in range(4):
            cross_entropy(other(batch(step)[0]), batch(step)[1]).backward()
            optimizer.step()
        handle.summary()
    assert {warning.message.code for warning in told} == {"RA001", "RA003"}


def test_a_skipped_step_is_no_step() -> None:
    one = Run(methods.auto_rgn(), optimizer=torch.optim.RMSprop)
    one.optimizer.found_inf = torch.tensor(1.0)
    one.train(range(2))
    del one.optimizer.found_inf
    assert one.handle is not None and one.handle.steps == 0


def test_an_optimizer_that_writes_into_its_groups_is_refused() -> None:
    class Counting(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            for group in self.param_groups:
                group["k"] = group.get("k", 0) + 1
            return super().step(closure)

    model = net()
    optimizer = Counting(model.parameters(), lr=0.1)
    realloc.attach(model, optimizer, methods.llrd())
    cross_entropy(model(batch(0)[0]), batch(0)[1]).backward()
    with pytest.raises(StateError, match="Counting, or a hook of its step, wrote 'k' into its groups"):
        optimizer.step()


def test_weights_in_one_pool_are_refused_by_name() -> None:
    model = net().float()
    realloc.prepare(model, methods.rigl(0.5))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ConfigError, match=r"'0(\.weight)?' and '2(\.weight)?' share one pool"):
        realloc.attach(model, optimizer, methods.llrd())


class NoRate(torch.optim.Optimizer):
    """As an optimizer that makes its own rate."""


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda m, o: realloc.attach(m, o, methods.auto_rgn()), "say when: schedule=realloc.every"),
        (lambda m, o: realloc.prepare(m, methods.llrd()), "replaces nothing"),
        (lambda m, o: realloc.attach(m, torch.optim.LBFGS(m.parameters()), methods.llrd()), "LBFGS takes one group"),
        (lambda m, o: realloc.attach(m, NoRate(m.parameters(), {}), methods.llrd()), "NoRate has no learning rate"),
        (lambda m, o: realloc.attach(m, o, methods.llrd().on(lambda name: 0)), "has 1 group of parameters"),
        (lambda m, o: realloc.attach(m, o, methods.rs2()), "give it to realloc.Visits"),
        (lambda m, o: methods.llrd(0), "decay is 0"),
        (lambda m, o: methods.llrd(hold="sum"), "hold is 'sum'"),
        (lambda m, o: methods.llrd(hold="movement"), "nothing has moved"),
        (lambda m, o: methods.auto_rgn(most=1), "most is 1; it is a number above 1"),
        (lambda m, o: methods.gradnorm(math.nan), "alpha is nan"),
        (lambda m, o: methods.loss_change(0), "kappa is 0"),
        (lambda m, o: methods.auto_rgn(window=0), "window is 0"),
        (lambda m, o: methods.llrd().on("layer"), "by is 'layer'"),
        (lambda m, o: methods.permuted_rates(methods.rs2()), "take one over learning rates"),
    ],
)
def test_bad_input_is_refused_with_the_remedy(make: Any, words: str) -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises((ConfigError, ValueError, TypeError), match=words):
        make(model, optimizer)
    assert not optimizer._optimizer_step_pre_hooks and "realloc_rates" not in model._buffers


def test_attached_twice_and_after_detach() -> None:
    one = Run(methods.llrd())
    assert one.handle is not None
    with pytest.raises(StateError, match="shared already"):
        realloc.attach(one.model, one.optimizer, methods.llrd())
    with pytest.raises(StateError, match="serves an attached model"):
        realloc.attach(net(), one.optimizer, methods.llrd())
    with pytest.raises(ConfigError, match="no group '9'"):
        one.handle.explain("9")
    one.handle.detach()
    with pytest.raises(StateError, match="detached"):
        _ = one.handle.rates
    assert "detached" in repr(one.handle)


def test_a_copy_of_the_model_is_a_plain_one() -> None:
    one = Run(methods.llrd())
    twin = copy.deepcopy(one.model)
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.1)
    cross_entropy(twin(batch(0)[0]), batch(0)[1]).backward()
    optimizer.step()
    assert one.handle is not None and one.handle.steps == 0


# what a reviewer broke --------------------------------------------------------------------------------------------


def test_where_nothing_moved_nothing_is_shared() -> None:
    one = Run(methods.loss_change(), every=10)
    one.scheduler = torch.optim.lr_scheduler.LambdaLR(one.optimizer, lambda step: 0.0)
    with pytest.warns(ReallocWarning, match=r"RA001.*nothing moved"):
        one.train(range(10))
    assert one.handle is not None and set(one.handle.rates.values()) == {1.0}
    with pytest.raises(ConfigError, match="nothing has moved when mine"):
        RateMethod("mine", lambda past: [1.0] * len(past), hold=HOLDS["movement"])
    assert movement_shares([1.0, 1.0, 30.0], 3.0, [1.0, 1.0, 0.0]) == (WHOLE, WHOLE, WHOLE)


def test_the_state_of_another_method_hold_or_grouping_is_refused() -> None:
    state = Run(methods.llrd(0.5)).model.state_dict()
    for other in (methods.llrd(0.5, hold="geometric"), methods.auto_rgn(), methods.llrd(0.5, most=3.0)):
        with pytest.raises(RecordError, match="attach the method that the state was saved under"):
            Run(other).model.load_state_dict(state)


def test_a_copy_under_other_terms_begins_anew() -> None:
    one = Run(methods.llrd(0.5))
    assert one.handle is not None
    twin = copy.deepcopy(one.model)
    finer = realloc.attach(twin, torch.optim.SGD(twin.parameters(), lr=0.1), methods.llrd(0.9).on(lambda name: name))
    assert len(finer.rates) == 6 and finer.held == 6 * WHOLE
    same = copy.deepcopy(one.model)
    handle = realloc.attach(same, torch.optim.SGD(same.parameters(), lr=0.1), methods.llrd(0.5))
    assert handle.rates == one.handle.rates


def test_a_model_in_another_dtype_keeps_its_sums() -> None:
    one, other = Run(methods.auto_rgn()), Run(methods.auto_rgn())
    one.train(range(4))
    sums = one.model.get_buffer("realloc_rate_sums").clone()
    one.model.float()
    assert torch.equal(one.model.get_buffer("realloc_rate_sums"), sums)
    other.model.load_state_dict(one.model.state_dict())


@pytest.mark.parametrize("make", [torch.optim.Rprop, lambda p: torch.optim.Adafactor(p, lr=0.9)])
def test_an_optimizer_that_does_not_follow_its_rate_is_refused(make: Any) -> None:
    model = net()
    with pytest.raises(ConfigError, match="does not move twice as far"):
        realloc.attach(model, make(model.parameters()), methods.llrd())


@pytest.mark.parametrize(
    "name", ["SGD", "Adam", "AdamW", "NAdam", "RAdam", "Adamax", "Adadelta", "Adagrad", "RMSprop", "ASGD"]
)
def test_optimizers_that_follow_their_rate_are_taken(name: str) -> None:
    model = net()
    realloc.attach(model, getattr(torch.optim, name)(model.parameters(), lr=1e-2), methods.llrd())


def test_a_closure_sees_the_users_groups_and_may_fail() -> None:
    one, seen = Run(methods.llrd()), []

    def closure() -> Any:
        seen.append(len(one.optimizer.param_groups))
        one.optimizer.state_dict()
        raise KeyError("data")

    with pytest.raises(KeyError):
        one.optimizer.step(closure)
    assert seen == [1] and len(one.optimizer.param_groups) == 1
    one.scheduler.step()


def test_a_hook_that_sets_a_rate_within_the_step_is_told() -> None:
    one = Run(methods.llrd())
    one.optimizer.register_step_pre_hook(lambda o, *_: [g.update(lr=0.01) for g in o.param_groups] and None)
    with pytest.raises(StateError, match="wrote 'lr'"):
        one.train(range(1))
    assert len(one.optimizer.param_groups) == 1


def test_an_optimizer_that_borrows_the_list_of_groups_steps_split_ones() -> None:
    class Around(torch.optim.SGD):
        def __init__(self, params: Any, lr: float) -> None:
            super().__init__(params, lr)
            self.base = torch.optim.SGD(self.param_groups, lr)
            self.base.param_groups = self.param_groups

        def step(self, closure: Any = None) -> Any:
            return self.base.step()

    around, plain = Run(methods.llrd(0.5), optimizer=Around), Run(methods.llrd(0.5), optimizer=torch.optim.SGD)
    around.train(range(3))
    plain.train(range(3))
    assert around.losses == plain.losses


@pytest.mark.parametrize("count", [2, 3, 4])
def test_permuted_rates_leave_no_layer_its_own(count: int) -> None:
    own = methods.llrd(0.5).weigh(past(gain=(0.0,) * count))
    for seed in range(30):
        draw = torch.Generator().manual_seed(seed)
        found = methods.permuted_rates(methods.llrd(0.5)).weigh(past(gain=(0.0,) * count, draw=lambda _, d=draw: d))
        assert sorted(found) == sorted(own) and all(a != b for a, b in zip(found, own, strict=True))


def test_groups_of_one_name_are_told_apart() -> None:
    model = net()
    groups = [{"params": model[0].parameters(), "name": "a"}, {"params": model[2:].parameters(), "name": "a"}]
    handle = realloc.attach(model, torch.optim.SGD(groups, lr=0.1), methods.llrd().on("groups"))
    assert list(handle.rates) == ["a (0)", "a (1)"]


def test_a_layer_that_thaws_outside_every_group_is_told() -> None:
    one = net()
    one[0].requires_grad_(False)
    optimizer = torch.optim.SGD(one.parameters(), lr=0.1)
    realloc.attach(one, optimizer, methods.llrd())
    one[0].requires_grad_(True)
    cross_entropy(one(batch(0)[0]), batch(0)[1]).backward()
    with pytest.warns(ReallocWarning, match="RA403"):
        optimizer.step()


def test_a_parameter_of_another_optimizer_is_nobodys_concern_and_one_that_is_added_is_told() -> None:
    one = net()
    first = torch.optim.SGD(one[:3].parameters(), lr=0.1)
    second = torch.optim.SGD(one[4].parameters(), lr=0.1)
    realloc.attach(one, first, methods.llrd().on(lambda name: name))
    for step in range(2):
        cross_entropy(one(batch(step)[0]), batch(step)[1]).backward()
        first.step(), second.step()
    first.add_param_group({"params": list(one[4].parameters())})
    with pytest.warns(ReallocWarning, match="RA403.*came into this optimizer after rates were attached"):
        first.step()


@pytest.mark.parametrize("hold", ["mean", "geometric", "movement"])
@pytest.mark.parametrize("name", ["auto_rgn", "gradnorm", "tempbalance", "loss_change"])
def test_a_group_without_a_gradient_keeps_its_rate_and_hands_nothing_on(name: str, hold: str) -> None:
    one = Run(getattr(methods, name)(hold=hold))
    one.model[0].requires_grad_(False)
    one.train(range(12))
    assert one.handle is not None and one.handle.moves
    still, *rates = one.handle.rates.values()
    assert still == 1.0 and one.handle.held + one.handle.parked == one.handle.budget
    if hold == "mean":
        assert sum(rates) == pytest.approx(2, abs=1e-9)
    if hold == "geometric":
        assert math.prod(rates) == pytest.approx(1, abs=1e-5)
    if hold == "movement":
        assert min(rates) < 1 < max(rates)


class Twice(torch.optim.SGD):
    """Runs its closure twice in a step, the second time elsewhere, as optimizers that look at sharpness do."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        with torch.enable_grad():
            closure()
        for parameter in parameters:
            parameter.add_(0.5)
        with torch.enable_grad():
            loss = closure()
        for parameter in parameters:
            parameter.sub_(0.5)
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.add_(parameter.grad, alpha=-group["lr"])
        return loss


def test_a_closure_that_runs_twice_splits_the_groups_once() -> None:
    shared, plain = net(), net()
    optimizer = Twice(shared.parameters(), lr=0.1)
    handle = realloc.attach(shared, optimizer, methods.llrd(0.5))
    rates = handle.rates.values()
    groups = [{"params": plain[at].parameters(), "lr": 0.1 * rate} for at, rate in zip((0, 2, 4), rates, strict=True)]
    for model, stepper in ((shared, optimizer), (plain, Twice(groups, lr=0.1))):
        for step in range(3):
            x, y = batch(step)

            def closure(model: Any = model, stepper: Any = stepper, x: Any = x, y: Any = y) -> Any:
                stepper.zero_grad()
                loss = cross_entropy(model(x), y)
                loss.backward()
                return loss

            stepper.step(closure)
    assert [len(group["params"]) for group in optimizer.param_groups] == [6]
    for mine, theirs in zip(shared.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-12)


def test_what_a_step_moved_is_measured_from_before_its_first_closure() -> None:
    seen: list[RatePast] = []

    def look(past: RatePast) -> list[float]:
        seen.append(past)
        return [1.0, 2.0, 3.0]

    model = net()
    optimizer = Twice(model.parameters(), lr=0.1)
    realloc.attach(model, optimizer, RateMethod("look", look, moves=True, window=1), schedule=realloc.every(1, total=1))
    before = [p.detach().clone() for p in model.parameters()]
    x, y = batch(0)

    def closure() -> None:
        optimizer.zero_grad()
        cross_entropy(model(x), y).backward()

    optimizer.step(closure)
    moved = sum(float((p.detach() - old).square().sum()) for p, old in zip(model.parameters(), before, strict=True))
    assert sum(seen[0].movement) == pytest.approx(moved, rel=1e-6)


class Dropped(nn.Module):
    """Residual blocks, of which a step leaves one out, as stochastic depth does."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(4))
        self.head, self.out = nn.Linear(4, 2), 0

    def forward(self, x: Tensor) -> Tensor:
        for number, block in enumerate(self.blocks):
            x = x if number == self.out else x + block(x)
        return self.head(x)


@pytest.mark.parametrize("resumed", [False, True])
def test_a_layer_that_is_left_out_of_the_deciding_step_keeps_its_share_of_a_spectrum(resumed: bool) -> None:
    model = Dropped()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-9)  # weights stay, so shares have no reason to change
    handle = realloc.attach(model, optimizer, methods.tempbalance(), schedule=realloc.every(8, total=32))
    seen = []
    for step in range(32):
        model.out = step % 4 if step % 8 != 7 else (step // 8) % 4
        optimizer.zero_grad()
        model(torch.randn(8, 4, generator=torch.Generator().manual_seed(step))).sum().backward()
        optimizer.step()
        if step % 8 == 7:
            seen.append(dict(handle.rates))
        if resumed and step % 8 == 6:  # what was heard before is in the state
            again = Dropped()
            other = torch.optim.SGD(again.parameters(), lr=1e-9)
            after = realloc.attach(again, other, methods.tempbalance(), schedule=realloc.every(8, total=32))
            again.load_state_dict(model.state_dict())
            other.load_state_dict(optimizer.state_dict())
            model, optimizer, handle = again, other, after
    assert all(one == pytest.approx(seen[0], rel=1e-5) for one in seen) and len(set(seen[0].values())) > 2


# before an optimizer exists -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrap", [lambda model: model, lambda model: torch.compile(model, backend="eager")])
def test_what_a_checkpoint_says_waits_for_the_optimizer(wrap: Any) -> None:
    first = Run(methods.auto_rgn(window=2)).train(range(8))
    state = first.model.state_dict()
    for strict in (True, False):
        again = net()
        wrapped = wrap(again)
        await_rates(wrapped)
        again.load_state_dict(state, strict=strict)
        again.load_state_dict({"0.weight": state["0.weight"]}, strict=False)  # says nothing of shares
        optimizer = torch.optim.AdamW(again.parameters(), lr=1e-2)
        handle = realloc.attach(wrapped, optimizer, methods.auto_rgn(window=2), schedule=realloc.every(6, total=STEPS))
        assert first.handle is not None
        assert dict(handle.rates) == dict(first.handle.rates) and handle.steps == 8 and handle.moves == 1


def test_a_copy_of_an_attached_model_waits_too_and_parts_of_shares_are_refused() -> None:
    first = Run(methods.auto_rgn(window=2)).train(range(8))
    state = first.model.state_dict()
    twin = copy.deepcopy(first.model)
    await_rates(twin)
    twin.load_state_dict(state)
    optimizer = torch.optim.AdamW(twin.parameters(), lr=1e-2)
    handle = realloc.attach(twin, optimizer, methods.auto_rgn(window=2), schedule=realloc.every(6, total=STEPS))
    assert first.handle is not None and dict(handle.rates) == dict(first.handle.rates)
    with pytest.raises(RecordError, match="belong together, and one of them is missing"):
        twin.load_state_dict({key: value for key, value in state.items() if key != "realloc_rates"}, strict=False)
    waiting = net()
    await_rates(waiting)
    waiting.load_state_dict(state)
    other = torch.optim.AdamW(waiting.parameters(), lr=1e-2)
    with pytest.raises(RecordError, match="attach the method that the state was saved under"):
        realloc.attach(waiting, other, methods.gradnorm(), schedule=realloc.every(6, total=STEPS))
