"""Example visits: an exact budget, draws beside plain references, resume in the middle, and errors that teach."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import realloc
from kinds import EXAMPLES
from realloc import methods
from realloc.allocate.visit_plan import full_epochs, visits_in, visits_of
from realloc.errors import ConfigError, ReallocWarning, RecordError, StateError
from realloc.methods.example_method import Draw, ExampleMethod, exact
from realloc.methods.importance import spread
from realloc.observe.ranks import Ranks
from realloc.observe.visited import Past, Visited

N = 60


def data() -> TensorDataset:
    draw = torch.Generator().manual_seed(3)
    x = torch.randn(N, 5, generator=draw, dtype=torch.float64)
    return TensorDataset(x, (x[:, 0] + 0.3 * x[:, 1] > 0).long())


def method_of(name: str, share: float = 0.5) -> ExampleMethod:
    made = {
        "rho": lambda: methods.rho(torch.zeros(N), over=2),
        "importance": lambda: methods.importance(share, gate=1),
        "examples": lambda: methods.examples(share, gate=1),
        "infobatch": lambda: methods.infobatch(0.7),
    }
    return made.get(name, lambda: getattr(methods, name)(share))()


def flat(epochs: list[list[int]]) -> list[int]:
    return [number for epoch in epochs for number in epoch]


class Run:
    """A plain loop; goes on from a state."""

    def __init__(self, method: ExampleMethod, epochs: int = 4, *, workers: int = 0, batch: int = 7) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 2)).double()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-2)
        self.visits = realloc.Visits(N, method, epochs=epochs, seed=5)
        self.loader = DataLoader(
            realloc.indexed(data()), batch_size=batch, sampler=self.visits, num_workers=workers,
            multiprocessing_context="spawn" if workers else None,
        )  # fmt: skip
        self.seen: list[list[int]] = []

    def epoch(self, stop: int | None = None) -> None:
        self.seen.append([])
        for number, (index, (x, y)) in enumerate(self.loader):
            if self.visits.method.over > 1:
                with torch.no_grad():
                    losses = cross_entropy(self.model(x), y, reduction="none")
                places = self.visits.choose(index, losses)
                index, x, y = index[places], x[places], y[places]
            self.step(index, x, y)
            if stop is not None and number + 1 == stop:
                return

    def step(self, index: Tensor, x: Tensor, y: Tensor) -> None:
        out = self.model(x)
        losses = cross_entropy(out, y, reduction="none")
        loss = self.visits.loss(index, losses, score=realloc.logit_gradient(out, y))
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.seen[-1] += index.tolist()

    def state(self) -> dict[str, Any]:
        parts = {"model": self.model, "optimizer": self.optimizer, "visits": self.visits}
        return copy.deepcopy({name: part.state_dict() for name, part in parts.items()})

    def load(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.visits.load_state_dict(state["visits"])


class Streamed(IterableDataset[int]):
    """With a length, but only in order; it inherits a ``__getitem__`` that raises."""

    def __iter__(self) -> Iterator[int]:
        return iter(range(9))

    def __len__(self) -> int:
        return 9


# the budget -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_epoch_costs_what_was_planned_and_all_of_them_the_budget(name: str) -> None:
    run = Run(method_of(name))
    for epoch in range(4):
        assert len(run.visits) == (N if name == "rho" else run.visits.per_epoch[epoch])
        run.epoch()
        assert len(run.seen[-1]) == run.visits.per_epoch[epoch]
        assert run.visits.spent == sum(map(len, run.seen))
    assert run.visits.spent + run.visits.parked == run.visits.budget == visits_in(N, 4, run.visits.method.share)
    with pytest.raises(StateError, match=f"all 4 epochs are drawn and {run.visits.spent} visits spent"):
        run.epoch()


@given(
    st.integers(1, 500), st.integers(1, 40), st.floats(0.01, 1), st.floats(0, 0.99), st.integers(1, 8)
)  # fmt: skip
def test_a_budget_of_visits_is_exact(count: int, epochs: int, share: float, full: float, ranks: int) -> None:
    try:
        found = visits_of(count, epochs, share, full, ranks)
    except ConfigError:
        return
    budget = visits_in(count, epochs, share)
    assert len(found) == epochs and all(0 < visits <= count and visits % ranks == 0 for visits in found)
    assert sum(found) <= budget and (budget - sum(found) < ranks * epochs or max(found) == count // ranks * ranks)
    first = found[: epochs - full_epochs(epochs, full)]
    assert not first or max(first) - min(first) <= ranks


@given(st.integers(2, 60), st.integers(2, 12), st.data())
@settings(max_examples=60)
def test_any_method_gives_exactly_so_many_visits_that_estimate_the_mean(count: int, epochs: int, data: Any) -> None:
    losses = torch.tensor(data.draw(st.lists(st.floats(0, 50), min_size=count, max_size=count)), dtype=torch.float64)
    hidden = torch.tensor(data.draw(st.lists(st.booleans(), min_size=count, max_size=count)))
    past = Past(losses.masked_fill(hidden, torch.nan), losses.masked_fill(hidden, torch.nan), torch.zeros(count).long())
    visits = data.draw(st.integers(1, count))
    for method in (methods.rs2(), methods.rs2(cycle=False), methods.infobatch(), methods.importance(gate=1)):
        drawn = exact(method.draw(past, visits, torch.Generator().manual_seed(epochs)), visits, count, method.name)
        if method.name == "importance":  # unbiased over many draws; no visit speaks for more than 1 / floor
            assert float(drawn.weight.max()) <= 10 * (1 + 1e-9)
        else:
            assert drawn.index.unique().numel() == visits  # nobody twice
            assert float(drawn.weight.sum()) == pytest.approx(visits)


# rules beside plain references ------------------------------------------------------------------------------------


def past_of(losses: list[float]) -> Past:
    known = torch.tensor(losses, dtype=torch.float64)
    return Past(known, known, torch.zeros(len(losses)).long())


def test_rs2_visits_all_before_any_again() -> None:
    run = Run(methods.rs2(0.25), epochs=8)
    for _ in range(4):
        run.epoch()
    assert sorted(flat(run.seen)) == list(range(N))
    loose = Run(methods.rs2(0.25, cycle=False), epochs=8)
    for _ in range(4):
        loose.epoch()
    assert sorted(flat(loose.seen)) != list(range(N)) and all(len(set(seen)) == N // 4 for seen in loose.seen)


def test_infobatch_leaves_out_low_losses_only_and_weighs_the_rest_of_them() -> None:
    losses = [0.1, 0.2, 0.3, 0.4, 5.0, 6.0, 7.0, 8.0]
    left_out: dict[int, int] = dict.fromkeys(range(8), 0)
    for seed in range(400):
        drawn = methods.infobatch().draw(past_of(losses), 6, torch.Generator().manual_seed(seed))
        weight = dict(zip(drawn.index.tolist(), drawn.weight.tolist(), strict=True))
        # plain reference: four lie below the mean, two of them go, so the other two count twice; the mean weight is 1
        expected = {i: (2.0 if i < 4 else 1.0) * 6 / 8 for i in weight}
        assert weight == pytest.approx(expected) and sum(weight.values()) == pytest.approx(6)
        for i in set(range(8)) - set(weight):
            left_out[i] += 1
    assert all(left_out[i] == 0 for i in range(4, 8)) and all(140 < left_out[i] < 260 for i in range(4))


def test_infobatch_is_unbiased_for_what_was_drawn_from() -> None:
    """Over many draws the weighted mean of any quantity is its mean over all examples."""
    losses = [0.1, 0.2, 0.3, 0.4, 0.5, 3.0, 4.0, 9.0, 1.0, 2.0]
    quantity = torch.arange(10, dtype=torch.float64) ** 2
    for method in (methods.infobatch(), methods.importance(gate=1), methods.rs2()):
        total = 0.0
        for seed in range(4000):
            drawn = method.draw(past_of(losses), 7, torch.Generator().manual_seed(seed))
            total += float((drawn.weight * quantity[drawn.index]).mean()) / 4000
        assert total == pytest.approx(float(quantity.mean()), rel=0.02), method.name


@pytest.mark.parametrize("epochs", [30, 100, 160])
def test_the_last_epochs_of_infobatch_see_everything_with_weight_one(epochs: int) -> None:
    """Also where 0.875 of the epochs is no whole number, at which the authors' package keeps old weights."""
    run = Run(methods.infobatch(0.6), epochs=epochs)
    last = epochs // 8
    drawn = []
    for epoch in range(epochs):
        run.visits._next()
        draw = run.visits._epoch.draw
        assert draw is not None
        drawn.append(draw)
        run.visits.loss(draw.index, torch.rand(draw.index.numel(), generator=torch.Generator().manual_seed(epoch)))
    assert all(torch.equal(draw.index.sort().values, torch.arange(N)) for draw in drawn[-last:])
    assert all(bool((draw.weight == 1).all()) for draw in drawn[-last:])
    assert all(draw.index.numel() < N for draw in drawn[:-last])
    assert sum(draw.index.numel() for draw in drawn) == run.visits.budget - run.visits.parked


def test_importance_draws_in_proportion_and_weighs_by_one_over_n_p() -> None:
    scores = [1.0, 1.0, 2.0, 12.0]
    likely = [0.1 / 4 + 0.9 * score / 16 for score in scores]
    drawn = methods.importance().draw(past_of(scores), 400, torch.Generator().manual_seed(0))
    for i, p in enumerate(likely):
        mine = drawn.index == i
        assert abs(int(mine.sum()) - 400 * p) <= 1
        assert drawn.weight[mine].tolist() == pytest.approx([1 / (4 * p)] * int(mine.sum()))


@pytest.mark.parametrize(("scores", "acts"), [([1, 1, 1, 1.2], False), ([1, 1, 1, 30], True), ([1, 1, 1, 6], False)])
def test_the_gate_does_nothing_where_little_is_to_be_won(scores: list[float], acts: bool) -> None:
    drawn = methods.importance().draw(past_of(scores), 4, torch.Generator().manual_seed(0))
    share = [score / sum(scores) for score in scores]
    assert (math.sqrt(4 * sum(p * p for p in share)) >= 1.5) == acts
    assert bool((drawn.weight == 1).all()) != acts and (acts or sorted(drawn.index.tolist()) == [0, 1, 2, 3])


@given(st.lists(st.floats(1e-3, 10), min_size=1, max_size=40), st.integers(1, 100), st.integers(0, 1000))
def test_everyone_has_its_expected_visits_rounded(weights: list[float], count: int, seed: int) -> None:
    likely = torch.tensor(weights, dtype=torch.float64)
    likely = likely / likely.sum()
    found = torch.bincount(spread(likely, count, torch.Generator().manual_seed(seed)), minlength=likely.numel())
    assert int(found.sum()) == count and bool(((found - count * likely).abs() < 1 + 1e-9).all())


def test_rho_trains_what_can_still_be_learnt() -> None:
    noise = torch.zeros(N)
    noise[::2] = 100.0  # what no model can learn
    run = Run(methods.rho(noise, over=4))
    run.epoch()
    assert len(run.seen[0]) == N // 4 and sum(i % 2 for i in run.seen[0]) >= N // 4 - 4
    assert run.visits.cost == 3 * (N // 4) + N
    plain = Run(methods.rs2(0.25))
    plain.epoch()
    assert plain.visits.cost == 3 * (N // 4)


def test_the_bound_is_the_gradient_at_the_logits() -> None:
    logits = torch.randn(6, 4, requires_grad=True, generator=torch.Generator().manual_seed(1))
    labels = torch.tensor([0, 1, 2, 3, 0, 1])
    (gradient,) = torch.autograd.grad(cross_entropy(logits, labels, reduction="sum"), logits)
    assert torch.allclose(realloc.logit_gradient(logits, labels), gradient.norm(dim=1))


# the record -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EXAMPLES)
@pytest.mark.parametrize("stop", [1, 3, None])
def test_a_run_that_is_cut_ends_bit_equal(name: str, stop: int | None) -> None:
    straight = Run(method_of(name))
    for _ in range(4):
        straight.epoch()
    cut = Run(method_of(name))
    cut.epoch()
    cut.epoch(stop)
    other = Run(method_of(name))
    other.load(cut.state())
    if stop is not None:
        assert len(other.visits) == other.visits.plan.share(1) - 7 * stop
        other.epoch()  # what is left of it
    for _ in range(2):
        other.epoch()
    assert flat(cut.seen) + flat(other.seen) == flat(straight.seen)
    for mine, theirs in zip(other.model.parameters(), straight.model.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    assert other.visits.spent == straight.visits.spent


def test_workers_that_run_ahead_change_nothing() -> None:
    straight, ahead = Run(methods.infobatch(0.6)), Run(methods.infobatch(0.6), workers=2)
    for _ in range(2):
        straight.epoch()
    ahead.epoch()
    ahead.epoch(2)
    other = Run(methods.infobatch(0.6))
    other.load(ahead.state())
    other.epoch()
    assert flat(ahead.seen) + flat(other.seen) == flat(straight.seen)


def test_a_look_into_the_loader_spends_nothing() -> None:
    run, looked = Run(methods.rs2()), Run(methods.rs2())
    next(iter(looked.loader))
    run.epoch(), looked.epoch()
    assert run.seen == looked.seen and looked.visits.epoch == 0


def test_a_loop_that_reports_nothing_has_its_epochs_all_the_same() -> None:
    visits = realloc.Visits(10, methods.rs2(0.5), epochs=2)
    first, second = list(visits), list(visits)
    assert sorted(first + second) == list(range(10))
    with pytest.raises(StateError, match="all 2 epochs"):
        list(visits)


def test_a_state_taken_between_epochs_of_a_loop_that_reports_nothing() -> None:
    visits, other = (realloc.Visits(10, methods.rs2(0.5, cycle=False), epochs=3) for _ in range(2))
    list(visits)
    other.load_state_dict(visits.state_dict())
    assert list(visits) == list(other)


# faults -----------------------------------------------------------------------------------------------------------


def test_losses_that_are_not_finite_are_not_kept() -> None:
    run = Run(methods.infobatch(0.6))
    run.epoch()
    run.visits._next()
    known = run.visits._seen.past.loss.clone()
    index = run.visits._epoch.mine(0, 5).index
    run.visits.loss(index, torch.tensor([1.0, torch.nan, torch.inf, 2.0, 3.0]))
    with pytest.warns(ReallocWarning) as told:
        run.visits._next()
    assert [warning.message.code for warning in told] == ["RA401", "RA402"]
    assert "2 reports of epoch 1 are NaN or Inf" in str(told[0].message)
    after = run.visits._seen.past.loss
    assert after[index[0]] == 1.0 and (torch.equal(after[index[1]], known[index[1]]) or known[index[1]].isnan())


def test_what_a_method_needs_and_nobody_reported_is_said() -> None:
    for method, word in ((methods.infobatch(0.5), r"visits.loss\(index"), (methods.importance(), "score=score")):
        visits = realloc.Visits(20, method, epochs=3)
        first = list(visits)
        with pytest.warns(ReallocWarning, match="RA402.*nothing of epoch 0 was reported, so it comes again"):
            assert list(visits) == first
        with pytest.raises(StateError, match=word):
            list(visits)


def test_batches_out_of_turn_are_refused() -> None:
    run = Run(methods.rs2())
    batches = list(run.loader)
    with pytest.raises(StateError, match="not the examples whose turn it is in epoch 0; does your loop give every"):
        run.visits.loss(batches[1][0], torch.ones(7))
    run.visits.loss(batches[0][0], torch.ones(7))
    with pytest.raises(StateError, match="not the examples"):  # given twice
        run.visits.loss(batches[0][0], torch.ones(7))
    with pytest.raises(StateError, match="no epoch has begun"):
        realloc.Visits(5, methods.rs2(), epochs=1).loss(torch.arange(2), torch.ones(2))


def test_rho_wants_its_choice_and_others_have_none() -> None:
    run = Run(methods.rho(torch.zeros(N), over=2))
    index, _ = next(iter(run.loader))
    with pytest.raises(StateError, match="trains what choose"):
        run.visits.loss(index, torch.ones(7))
    with pytest.raises(ConfigError, match="rs2 trains every visit"):
        Run(methods.rs2()).visits.choose(torch.arange(2), torch.ones(2))


@pytest.mark.parametrize(
    ("losses", "index", "words"),
    [
        (torch.tensor(1.0), torch.arange(1), r"reduction='none'"),
        (torch.ones(2, 3), torch.arange(2), r"reduction='none'"),
        (torch.ones(2), torch.arange(3), "realloc.indexed"),
        (torch.ones(2), torch.ones(2), "realloc.indexed"),
    ],
)
def test_losses_that_were_reduced_are_refused(losses: Tensor, index: Tensor, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        realloc.Visits(5, methods.rs2(), epochs=1).loss(index, losses)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: methods.rs2(0), "share is 0; it is a share"),
        (lambda: methods.rs2(1.5), "share is 1.5"),
        (lambda: methods.rs2(True), "share is True"),
        (lambda: methods.rs2(0.5, cycle=1), "cycle is 1"),
        (lambda: methods.infobatch(drop=0), "drop is 0"),
        (lambda: methods.infobatch(drop=1), "never come again"),
        (lambda: methods.infobatch(full=1), "full is 1"),
        (lambda: methods.importance(by="norm"), "by is 'norm'"),
        (lambda: methods.importance(gate=0.5), "gate is 0.5"),
        (lambda: methods.importance(floor=0), "floor is 0"),
        (lambda: methods.rho(torch.tensor([1.0, torch.nan])), "finite losses"),
        (lambda: methods.rho(torch.ones(3), over=1), "over is 1"),
        (lambda: realloc.Visits(0, methods.rs2(), epochs=1), "count is 0"),
        (lambda: realloc.Visits(9, methods.rs2(), epochs=True), "epochs is True"),
        (lambda: realloc.Visits(9, methods.rigl(0.5), epochs=1), "^'rigl' is no method of examples; take one, such as"),
        (lambda: realloc.Visits(9, "rs2", epochs=1), "^'rs2' is no method of examples"),
        (lambda: realloc.Visits(9, methods.rs2(), epochs=1, seed=0.5), "seed is 0.5"),
        (lambda: realloc.Visits(9, methods.rs2(0.01), epochs=2), "raise share"),
        (lambda: realloc.Visits(80, methods.infobatch(0.1), epochs=16), "raise share or lower full"),
        (lambda: list(realloc.Visits(9, methods.rho(torch.zeros(8), over=2), epochs=1)), "8 losses and the data set 9"),
        (lambda: realloc.indexed(iter([])), "without length"),
        (lambda: realloc.indexed(Streamed()), "Streamed without length"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_with_the_remedy(make: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        make()


def test_a_method_whose_draw_is_not_exact_is_refused() -> None:
    few = Draw(torch.arange(3), torch.ones(3, dtype=torch.float64))
    short = ExampleMethod("short", lambda past, count, random: few, share=0.5)
    with pytest.raises(StateError, match=r"short: a draw of \(3,\) visits where exactly 5 of 10 are due"):
        list(realloc.Visits(10, short, epochs=1))


@pytest.mark.parametrize("change", ["epochs", "seed", "count", "share", "place", "epoch", "weight", "index", "nothing"])
def test_a_foreign_or_damaged_state_is_refused_whole(change: str) -> None:
    run = Run(methods.rs2())
    run.epoch(2)
    state = run.visits.state_dict()
    made = {"epochs": 5, "seed": 5, "count": N, "share": 0.5} | {"epochs": 4}
    made |= {"epochs": {"epochs": 5}, "seed": {"seed": 6}, "count": {"count": N + 1}, "share": {"share": 0.4}}.get(
        change, {}
    )
    if change == "place":
        state["numbers"][7] = 99
    if change == "epoch":
        state["numbers"][6] = 7
    if change == "weight":
        state["weight"][0] = -1
    if change == "index":
        state["index"][0] = N
    if change == "nothing":
        state = {}
    visits = realloc.Visits(made["count"], methods.rs2(made["share"]), epochs=made["epochs"], seed=made["seed"])
    before = visits.state_dict()
    with pytest.raises(RecordError):
        visits.load_state_dict(state)
    after = visits.state_dict()
    assert all(torch.equal(before[name], after[name]) or before[name].isnan().all() for name in before)


@pytest.mark.slow
def test_examples_beyond_two_to_the_24_keep_their_number() -> None:
    """A float32 index would hand 16,777,217's loss to its neighbour."""
    number = 2**24 + 1
    seen = Visited(number + 1)
    seen.report(torch.tensor([number]), torch.tensor([3.0]), None)
    seen.settle(Ranks())
    assert seen.past.loss[number] == 3.0 and seen.past.loss[number - 1].isnan()
    likely = torch.zeros(number + 1, dtype=torch.float64)
    likely[number] = 1
    assert spread(likely, 3, torch.Generator().manual_seed(0)).tolist() == [number] * 3


def test_all_weights_one_is_the_mean() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        visits = realloc.Visits(4, methods.rs2(1.0), epochs=1)
        index = torch.tensor(list(visits))
        losses = torch.rand(4)
        assert torch.equal(visits.loss(index, losses), losses.mean())


# what a reviewer broke -------------------------------------------------------------------------------------------


def test_a_short_epoch_whose_workers_ran_to_its_end_is_not_lost() -> None:
    """All batches of it are prefetched before the first is reported."""
    straight, cut = Run(methods.rs2(0.25), workers=2, batch=8), Run(methods.rs2(0.25), workers=2, batch=8)
    for _ in range(4):
        straight.epoch()
    cut.epoch()
    loader = iter(cut.loader)
    next(loader)  # a peek, and the workers hold the rest
    other = Run(methods.rs2(0.25), batch=8)
    other.load(cut.state())
    for _ in range(3):
        other.epoch()
    assert flat(cut.seen) + flat(other.seen) == flat(straight.seen) and other.visits.spent == 60


def test_what_was_drawn_and_never_trained_is_told_and_not_counted() -> None:
    run = Run(methods.rs2(0.5))
    run.epoch(2)
    with pytest.warns(ReallocWarning, match=r"RA402.*16 of the 30 visits of epoch 0"):
        run.epoch()
    assert run.visits.spent == 14 + 30


def test_a_peek_after_a_resume_loses_nothing() -> None:
    run, other = Run(methods.rs2()), Run(methods.rs2())
    run.epoch(2)
    other.load(run.state())
    next(iter(other.loader))
    other.epoch()
    assert len(other.seen[-1]) == 30 - 14 and other.visits.epoch == 0


def test_a_gate_that_closes_again_draws_from_all_alike() -> None:
    scores = torch.tensor([1.0] * 15 + [1.1] * 5, dtype=torch.float64)
    seldom = Past(scores, scores, torch.tensor([0] * 15 + [9] * 5))  # the hard ones were visited often
    hits = sum(
        int((methods.importance().draw(seldom, 8, torch.Generator().manual_seed(s)).index >= 15).sum())
        for s in range(300)
    )
    assert 0.2 < hits / (300 * 8) < 0.3


def test_importance_at_every_visit_still_draws() -> None:
    run = Run(methods.importance(1.0, gate=1))
    run.epoch()
    run.epoch()
    assert len(run.seen[1]) == N and len(set(run.seen[1])) < N


def test_losses_below_zero_are_refused_where_they_would_be_probabilities() -> None:
    with pytest.raises(StateError, match="below 0"):
        methods.importance(by="loss").draw(past_of([-0.1, 5.0]), 1, torch.Generator())


@pytest.mark.parametrize("batch", [4, 7, 60])
@pytest.mark.parametrize("over", [3, 10, 49])
def test_rho_trains_its_budget_whatever_the_batches(over: int, batch: int) -> None:
    run = Run(methods.rho(torch.zeros(N), over=over), batch=batch)
    for _ in range(4):
        run.epoch()
    assert sum(map(len, run.seen)) == run.visits.spent == 4 * (N // over)
    assert run.visits.spent + run.visits.parked == run.visits.budget == 4 * N // over
    assert run.visits.cost == 3 * run.visits.spent + 4 * N


def test_a_budget_counts_as_it_is_written() -> None:
    assert [visits_in(100, 1, share) for share in (0.57, 0.29, 0.7, 1.0)] == [57, 29, 70, 100]


def test_a_run_of_few_epochs_has_its_full_one_too() -> None:
    assert realloc.Visits(100, methods.infobatch(0.7), epochs=5).per_epoch[-1] == 100


def test_the_first_epoch_of_infobatch_weighs_all_alike() -> None:
    unknown = Visited(10).past
    assert methods.infobatch().draw(unknown, 7, torch.Generator()).weight.tolist() == [1.0] * 7


def test_other_ranks_than_at_the_start_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    visits = realloc.Visits(20, methods.rs2(), epochs=2)
    monkeypatch.setattr(Ranks, "count", property(lambda self: 2 if self.group is None else 1))
    visits._ranks = Ranks("one")
    with pytest.raises(StateError, match="there are 2 ranks and these visits were made for 1"):
        iter(visits)


def test_the_state_of_another_method_is_refused() -> None:
    state = realloc.Visits(20, methods.rs2(0.5), epochs=2).state_dict()
    with pytest.raises(RecordError, match="other visits"):
        realloc.Visits(20, methods.importance(0.5), epochs=2).load_state_dict(state)


def test_reports_that_are_no_numbers_are_told_of_scores_too() -> None:
    visits = realloc.Visits(10, methods.importance(), epochs=2)
    index = torch.tensor(list(visits))
    visits.loss(index, torch.ones(5), score=torch.tensor([1.0, torch.nan, 1, 1, 1]))
    with pytest.warns(ReallocWarning, match=r"RA401.*1 reports"):
        list(visits)


def ten(visits: realloc.Visits, batch: int = 4, *, drop: bool = True, workers: int = 0) -> DataLoader[Any]:
    """Ten examples; a worker has one batch ahead, and lives on from epoch to epoch."""
    many = workers > 0
    return DataLoader(
        realloc.indexed(list(range(10))), batch_size=batch, sampler=visits, drop_last=drop, num_workers=workers,
        multiprocessing_context="spawn" if many else None, prefetch_factor=1 if many else None, persistent_workers=many,
    )  # fmt: skip


def trained(visits: realloc.Visits, loader: DataLoader[Any], stop: int | None = None) -> list[int]:
    seen: list[int] = []
    for number, (index, _) in enumerate(loader):
        visits.loss(index, torch.rand(len(index)))
        seen += index.tolist()
        if number + 1 == stop:
            break
    return seen


@pytest.mark.parametrize(("done", "workers"), [(1, 0), (1, 1), (2, 0), (3, 0)])
@pytest.mark.filterwarnings("ignore::realloc.errors.ReallocWarning")
def test_a_resume_between_epochs_whose_rest_is_dropped_trains_what_the_straight_run_trains(
    done: int, workers: int
) -> None:
    straight, cut, other = (realloc.Visits(10, methods.rs2(0.9), epochs=4) for _ in range(3))
    expected = [trained(straight, ten(straight, 2)) for _ in range(4)]
    loader = ten(cut, 2, workers=workers)
    found = [trained(cut, loader) for _ in range(done)]
    other.load_state_dict(cut.state_dict())
    other.load_state_dict(other.state_dict())
    assert len(other) == 9
    assert found + [trained(other, ten(other, 2)) for _ in range(done, 4)] == expected
    assert other.spent == straight.spent == 32


@pytest.mark.parametrize(("share", "workers"), [(1.0, 0), (1.0, 1), (0.55, 0), (0.55, 1)])
def test_a_short_last_batch_that_is_held_by_the_loop_comes_after_a_resume(workers: int, share: float) -> None:
    """Without ``drop_last``: the state is of just before the loss of the last batch."""
    cut, other = (realloc.Visits(10, methods.rs2(share), epochs=4) for _ in range(2))
    batch = 4 if share == 1 else 6  # of 5 visits in the third epoch, all in one short batch
    loader = ten(cut, batch, drop=False, workers=workers)
    for _ in range(2):
        trained(cut, loader)
    for index, _ in loader:
        state = cut.state_dict()
        if len(index) < batch:
            break
        cut.loss(index, torch.rand(len(index)))
    other.load_state_dict(state)
    assert trained(other, ten(other, batch, drop=False)) == index.tolist() and other.epoch == 2


def test_batches_cut_from_a_list_go_on_after_a_resume() -> None:
    """A list is at its end before the first batch: that says nothing of what is dropped."""
    visits, other = (realloc.Visits(10, methods.rs2(1.0), epochs=2) for _ in range(2))
    order = torch.tensor(list(visits))
    for index in order.split(4)[:2]:
        visits.loss(index, torch.rand(4))
    other.load_state_dict(visits.state_dict())
    assert trained(other, ten(other, drop=False)) == order[8:].tolist() and other.spent == 10


def test_an_empty_loop_after_a_load_is_told_at_once_and_comes_once() -> None:
    """The state is of right after the last whole batch: nobody knows yet that the rest is dropped."""
    straight, cut, other = (realloc.Visits(10, methods.rs2(1.0), epochs=3) for _ in range(3))
    trained(straight, ten(straight)), trained(cut, ten(cut), 2)
    other.load_state_dict(cut.state_dict())
    with pytest.warns(ReallocWarning, match="RA402.*after the load, 2 of the 10 visits of epoch 0.*is of epoch 1"):
        assert trained(other, ten(other)) == []
    cut.load_state_dict(other.state_dict())  # of after the empty loop
    with pytest.warns(ReallocWarning, match="RA402.*2 of the 10 visits of epoch 0"):
        expected = trained(straight, ten(straight))
    assert trained(other, ten(other)) == expected  # told already
    with pytest.warns(ReallocWarning, match="RA402.*2 of the 10 visits of epoch 0"):
        assert trained(cut, ten(cut)) == expected
    assert other.spent == straight.spent == cut.spent == 16


@pytest.mark.parametrize("name", ["rs2", "infobatch"])
def test_epochs_smaller_than_a_batch_are_not_empty_for_ever(name: str) -> None:
    method, batch = (methods.rs2(0.55), 6) if name == "rs2" else (methods.infobatch(0.5), 4)
    visits = realloc.Visits(10, method, epochs=4)
    expected = [share // batch for share in visits.per_epoch]
    assert 0 in expected[1:]
    with pytest.warns(ReallocWarning) as told:
        found = [len(trained(visits, ten(visits, batch))) // batch for _ in range(4)]
    assert found == expected and visits.epoch == 3 and visits.spent == batch * sum(expected)
    lost = [epoch for epoch, share in enumerate(visits.per_epoch) if share % batch]
    for epoch, one in zip(lost, told, strict=True):  # the last one too
        left = visits.per_epoch[epoch] % batch
        assert f"{left} of the {visits.per_epoch[epoch]} visits of epoch {epoch}" in str(one.message)


@pytest.mark.filterwarnings("ignore::realloc.errors.ReallocWarning")
def test_a_resume_behind_an_empty_epoch_is_of_the_next_one() -> None:
    cut, other = (realloc.Visits(10, methods.rs2(0.55), epochs=4) for _ in range(2))
    found = [trained(cut, ten(cut, 6)) for _ in range(3)]
    other.load_state_dict(cut.state_dict())
    assert found[2] == [] == trained(other, ten(other, 6)) and other.epoch == 3


def test_what_is_dropped_of_the_last_epoch_is_told_when_it_ends() -> None:
    visits = realloc.Visits(10, methods.rs2(1.0), epochs=1)
    with pytest.warns(
        ReallocWarning, match="RA402.*took 2 of the 10 visits of epoch 0, less.*the last. Leave drop_last"
    ):
        trained(visits, ten(visits))
    assert (visits.spent, visits.budget) == (8, 10)
    whole = realloc.Visits(10, methods.rs2(1.0), epochs=2)
    for _ in range(2):  # nothing is told where nothing is dropped
        trained(whole, ten(whole, drop=False))
    assert whole.spent == whole.budget


def test_a_look_after_a_resume_that_reaches_the_end_loses_nothing() -> None:
    """Workers that run ahead hand all of the rest out; it is more than a batch, so no ``drop_last`` took it."""
    run, other = Run(methods.rs2()), Run(methods.rs2())
    run.epoch(2)
    other.load(run.state())
    list(other.visits)
    other.epoch()
    assert len(other.seen[-1]) == 30 - 14 and other.visits.epoch == 0


def test_what_is_written_over_a_report_later_changes_nothing() -> None:
    visits = realloc.Visits(4, methods.importance(1.0), epochs=2)
    index = torch.tensor(list(visits))
    known, losses, score = index.clone(), torch.rand(4), torch.rand(4)
    kept = losses.clone(), score.clone()
    visits.loss(index, losses, score=score)
    index.zero_(), losses.zero_(), score.zero_()
    list(visits)
    past = visits._seen.past
    assert torch.equal(past.loss[known].float(), kept[0]) and torch.equal(past.score[known].float(), kept[1])


def test_a_report_of_a_column_does_not_keep_the_whole_matrix() -> None:
    visits = realloc.Visits(4, methods.infobatch(1.0, full=0), epochs=2)
    index = torch.tensor(list(visits))
    visits.loss(index, torch.rand(4, 1000)[:, 0])
    assert all(values.untyped_storage().nbytes() == 4 * 4 for _, _, values in visits._seen._waiting)


def test_a_first_look_that_reaches_the_end_of_an_epoch_is_told_and_not_counted_as_trained() -> None:
    visits = realloc.Visits(20, methods.rs2(0.5), epochs=2)
    loader = DataLoader(realloc.indexed(list(range(20))), batch_size=16, sampler=visits)
    next(iter(loader))
    with pytest.warns(ReallocWarning, match="RA402.*10 visits before epoch 1 were handed out"):
        for index, _ in loader:
            visits.loss(index, torch.rand(len(index)))
    assert (visits.epoch, visits.spent) == (1, 10) and int(visits._seen.past.visits.sum()) == 0


def test_a_first_look_by_a_method_that_needs_reports_costs_no_epoch() -> None:
    visits = realloc.Visits(20, methods.infobatch(0.5, full=0), epochs=1)
    loader = DataLoader(realloc.indexed(list(range(20))), batch_size=16, sampler=visits)
    looked, _ = next(iter(loader))
    with pytest.warns(ReallocWarning, match="RA402.*comes again"):
        ((index, _),) = loader
    visits.loss(index, torch.rand(len(index)))
    assert torch.equal(looked, index) and (visits.epoch, visits.spent) == (0, 10)


def test_rho_chooses_the_best_of_each_batch() -> None:
    draw = torch.Generator().manual_seed(1)
    irreducible = torch.rand(N, generator=draw, dtype=torch.float64)
    visits = realloc.Visits(N, methods.rho(irreducible, over=10), epochs=1)
    for (index,) in DataLoader(TensorDataset(torch.arange(N)), batch_size=4, sampler=visits):
        losses = torch.rand(4, generator=draw, dtype=torch.float64)
        places = visits.choose(index, losses)
        assert places.numel() <= 1 and (not places.numel() or places[0] == (losses - irreducible[index]).argmax())
        visits.loss(index[places], losses[places])
    assert visits.spent == N // 10
