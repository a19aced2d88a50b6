"""Rows that move while a model trains: exact bytes, the function kept, moments by hand, resume, refusals."""

from __future__ import annotations

import copy
import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import DIM, Net, Run, batch
from torch import nn

import realloc
from realloc import methods
from realloc.errors import ConfigError, ReallocWarning, StateError
from realloc.methods.rows import SCORES

OPTIMIZERS: dict[str, Any] = {
    "AdamW": torch.optim.AdamW, "Adam amsgrad": lambda p, lr: torch.optim.Adam(p, lr=lr, amsgrad=True),
    "SGD": torch.optim.SGD, "momentum": lambda p, lr: torch.optim.SGD(p, lr=lr, momentum=0.9),
    "RMSprop": lambda p, lr: torch.optim.RMSprop(p, lr=lr, momentum=0.5, centered=True),
    "Adagrad": torch.optim.Adagrad, "Adamax": torch.optim.Adamax, "NAdam": torch.optim.NAdam,
}  # fmt: skip


def outputs(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(*batch(999, 200)[:2])


def parked(run: Run) -> torch.Tensor:
    store = run.model.store
    free = torch.ones(store.split.rows, dtype=torch.bool)
    free[: store.split.shared] = False
    free[store.owned[store.owned >= 0].long()] = False
    return free


# the budget -------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=12)
@given(st.sampled_from(sorted(SCORES)), st.integers(30, 200), st.sampled_from([0.2, 0.5, 0.8]), st.integers(2, 5))
def test_bytes_are_exact_after_every_step(score: str, rows: int, own: float, every: int) -> None:
    run = Run(score, rows=rows, own=own, every=every)
    store, handle = run.model.store, run.handle
    for number in range(14):
        run.step(number)
        owned = handle.owned_rows
        assert handle.held == store.split.fixed + owned * store.split.costs.row <= handle.budget == rows * DIM * 12
        assert handle.held + handle.parked == handle.budget and owned <= store.split.own
        taken = store.owned[store.owned >= 0]
        assert taken.unique().numel() == owned == len(handle.owners("users")) + len(handle.owners("items"))
        assert not owned or store.split.shared <= int(taken.min()) <= int(taken.max()) < store.split.rows
        free = parked(run)
        assert not store.weight[free].any()
        assert not any(run.optimizer.state[store.weight][key][free].any() for key in ("exp_avg", "exp_avg_sq"))
    assert 0 not in handle.owners("items")  # padding never trains
    assert handle.moves > 0 and handle.promoted_rows - handle.demoted_rows == handle.owned_rows


# what a move does -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_promotion_keeps_the_function_and_the_scale(name: str) -> None:
    run = Run(optimizer=OPTIMIZERS[name], every=39, moments=3).train(range(9))
    store, pool = run.model.store, run.handle._engine.pools[0]
    before, state = outputs(run.model), copy.deepcopy(run.optimizer.state.get(store.weight, {}))
    cold = store.keys[(store.keys >= 0) & (store.owned < 0) & (store.tables == 0)][:7].sort().values
    shared = store.rows_of(0, cold)
    assert len(cold) == 7 and pool.move([(0, cold[:0])], [(0, cold)], run.optimizer) == {0: 0.0}
    own = store.rows_of(0, cold)
    assert torch.equal(outputs(run.model), before) and int(own.min()) >= store.split.shared
    for key, old in state.items():
        now = run.optimizer.state[store.weight][key]
        if torch.is_tensor(old) and old.dim():
            assert torch.equal(now[: store.split.shared], old[: store.split.shared])
            first = key in ("exp_avg", "momentum_buffer", "grad_avg")
            assert not now[own].any() if first else torch.equal(now[own], old[shared])


def test_a_demotion_is_a_mean_by_score_and_its_jump_is_bounded() -> None:
    run = Run(every=5).train(range(9))
    store, pool = run.model.store, run.handle._engine.pools[0]
    ids = run.handle.owners("users")[:4]
    slots, rows = store.places(0, ids), store.rows_of(0, ids)
    shared = store.hashed(0, ids)[0]
    weight, scores = store.weight.detach().double().clone(), (store.scores - store.inherited).double()
    standing = store.shared_scores.double().clone()
    second = run.optimizer.state[store.weight]["exp_avg_sq"].double().clone()
    first = run.optimizer.state[store.weight]["exp_avg"].clone()
    jump = pool.move([(0, ids)], [], run.optimizer)[0]
    largest = 0.0
    for target in shared.unique().tolist():
        mine = [i for i in range(4) if int(shared[i]) == target]
        total = standing[target] + sum(scores[slots[i]] for i in mine)
        for then, now in ((weight, store.weight), (second, run.optimizer.state[store.weight]["exp_avg_sq"])):
            expected = standing[target] * then[target] + sum(scores[slots[i]] * then[rows[i]] for i in mine)
            torch.testing.assert_close(now[target].double(), expected / total, rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(store.shared_scores[target].double(), total, rtol=1e-5, atol=1e-5)
        meeting = torch.stack([weight[target], *(weight[rows[i]] for i in mine)])
        for row in [target, *(rows[i] for i in mine)]:  # those who came back, and those who were there
            change = float((store.weight.detach()[target].double() - weight[row]).norm())
            assert change <= float(torch.cdist(meeting, meeting).max()) + 1e-6
            largest = max(largest, change)
    assert jump == pytest.approx(largest, rel=1e-5) and jump > 0
    assert torch.equal(run.optimizer.state[store.weight]["exp_avg"][: store.split.shared], first[: store.split.shared])
    assert not store.weight[rows].any() and not run.optimizer.state[store.weight]["exp_avg_sq"][rows].any()
    assert torch.equal(store.rows_of(0, ids), shared)


def test_a_reset_jumps_where_a_migration_does_not() -> None:
    jumps = {}
    for migrate in (True, False):
        run = Run(every=39).train(range(9))
        store, pool = run.model.store, run.handle._engine.pools[0]
        cold = store.keys[(store.keys >= 0) & (store.tables == 0)][:5].sort().values
        before = outputs(run.model)
        jumps[migrate] = pool.move([(0, cold[:0])], [(0, cold)], run.optimizer, migrate)[0]
        assert torch.equal(outputs(run.model), before) == migrate
        assert run.optimizer.state[store.weight]["exp_avg_sq"][store.rows_of(0, cold)].any() == migrate
    assert jumps[True] == 0.0 and jumps[False] > 0.5
    reset = Run(methods.rows(migrate=False)).train(range(20))
    assert reset.handle.demoted_rows and reset.handle.held + reset.handle.parked == reset.handle.budget


def test_ids_that_never_move_train_as_under_adam_by_hand() -> None:
    """A promoted row's next step, beside Adam written out: second moment of its shared row, first moment zero."""
    torch.manual_seed(0)
    layer = realloc.nn.Embedding(None, 3, rows=60)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.1, betas=(0.9, 0.99), eps=1e-8)
    handle = realloc.attach(layer, optimizer, methods.rows("frequency", look=1), schedule=realloc.every(3, total=3))
    pull = torch.tensor([1.0, -2.0, 0.5])
    shared = int(layer.store.rows_of(0, torch.tensor([7])))
    for _ in range(4):
        if handle.owned_rows:
            value = layer.weight.detach()[int(layer.store.rows_of(0, torch.tensor([7])))].clone()
        optimizer.zero_grad()
        (layer(torch.tensor([7])) * pull).sum().backward()
        optimizer.step()
    row = int(layer.store.rows_of(0, torch.tensor([7])))
    assert row != shared and handle.owners().tolist() == [7]
    second = (1 - 0.99**3) * pull**2  # three steps in the shared row
    second = 0.99 * second + 0.01 * pull**2
    first = 0.1 * pull
    expected = value - 0.1 * (first / (1 - 0.9**4)) / ((second / (1 - 0.99**4)).sqrt() + 1e-8)
    torch.testing.assert_close(layer.weight.detach()[row], expected)
    torch.testing.assert_close(optimizer.state[layer.weight]["exp_avg"][row], first)


def test_gradients_of_moved_rows_are_cleared_and_sparse_ones_work() -> None:
    store = realloc.nn.Rows(4, 60, sparse=True)
    layer = realloc.nn.Embedding(None, 4, store)
    optimizer = torch.optim.SparseAdam(layer.parameters(), lr=0.01)
    handle = realloc.attach(layer, optimizer, methods.rows(), schedule=realloc.every(2, total=8))
    for number in range(8):
        optimizer.zero_grad()
        layer(batch(number)[0]).square().sum().backward()
        optimizer.step()
    assert handle.moves and layer.weight.grad.is_sparse
    run = Run(every=4).train(range(4))
    own = run.model.store.owned[run.model.store.owned >= 0].long()
    assert len(own) and not run.model.store.weight.grad[own].any()


# what is measured -------------------------------------------------------------------------------------------------


def test_the_sketch_holds_what_a_dictionary_holds() -> None:
    """Room for all: scores are exact, by id and by shared row, over micro-batches and both tables."""
    store = realloc.nn.Rows(DIM, 3000, candidates=16)
    model = Net()
    model.users, model.items = realloc.nn.Embedding(None, DIM, store), realloc.nn.EmbeddingBag(None, DIM, store)
    run = Run("frequency", model=model, every=100, total=100)
    counts: dict[tuple[int, int], int] = {}
    for number in range(4):
        run.optimizer.zero_grad()
        for part in range(2):
            users, items, _ = batch(2 * number + part)
            model(users, items).sum().backward()
            for table, ids in ((0, users), (1, items)):
                for one in ids.flatten().tolist():
                    counts[table, one] = counts.get((table, one), 0) + 1
        run.optimizer.step()
    found = {
        (int(t), int(k)): float(s)
        for k, t, s in zip(store.keys, store.tables, store.scores, strict=True)
        if int(k) >= 0
    }
    assert found == counts
    shared = torch.zeros(store.split.shared)
    for (table, one), count in counts.items():
        shared[int(store.hashed(table, torch.tensor([one]))[0])] += count
    assert torch.equal(shared, store.shared_scores)


def test_gradients_are_those_of_each_occurrence() -> None:
    layer = realloc.nn.EmbeddingBag(None, 3, realloc.nn.Rows(3, 300, candidates=16, directions=3), mode="mean")
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    realloc.attach(layer, optimizer, methods.rows("conflict", look=1), schedule=realloc.every(9, total=9))
    pull = torch.tensor([[3.0, 0.0, 4.0], [0.0, 1.0, 0.0]])
    (layer(torch.tensor([[5, 6], [6, 6]])) * pull).sum().backward()
    optimizer.step()
    store = layer.store
    five, six = (int(store.places(0, torch.tensor([one]))) for one in (5, 6))
    scale = 4 / (2.5 + 2.5 + 0.5 + 0.5)
    torch.testing.assert_close(store.scores[[five, six]], torch.tensor([2.5, 3.5]) * scale)
    torch.testing.assert_close(store.sums[five], torch.tensor([1.5, 0.0, 2.0]) * scale)
    torch.testing.assert_close(store.sums[six], torch.tensor([1.5, 1.0, 2.0]) * scale)


def test_evaluation_and_thrown_away_scaler_steps_count_nothing() -> None:
    run = Run(every=2, optimizer=torch.optim.RMSprop)
    with torch.no_grad():
        run.model(*batch(0)[:2])
    assert not run.model.store.book[4]
    run.optimizer.found_inf = torch.ones(1)
    run.step(0)
    assert run.handle.steps == 0 and not run.model.store.book[4]
    del run.optimizer.found_inf
    run.step(0)
    assert run.handle.steps == 1 and int(run.model.store.book[4]) > 0


# a run that goes on -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("score", sorted(SCORES))
@pytest.mark.parametrize("cut", [6, 8])
def test_a_resume_is_bit_equal(score: str, cut: int, tmp_path: Path) -> None:
    whole = Run(score).train(range(20))
    half = Run(score).train(range(cut))
    torch.save({"model": half.model.state_dict(), "optimizer": half.optimizer.state_dict()}, tmp_path / "x.pt")
    saved = torch.load(tmp_path / "x.pt", weights_only=True)
    rest = Run(score)
    rest.train(range(3))
    rest.model.load_state_dict(saved["model"])
    rest.optimizer.load_state_dict(saved["optimizer"])
    rest.train(range(cut, 20))
    for mine, theirs in zip(rest.model.state_dict().values(), whole.model.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs)
    assert rest.handle.state() == whole.handle.state()
    assert whole.handle.demoted_rows > 0


def test_a_model_without_its_optimizer_is_refused() -> None:
    run, other = Run().train(range(9)), Run().train(range(5))
    other.model.load_state_dict(run.model.state_dict())
    with pytest.raises(StateError, match="restart_moments"):
        other.step(9)
    other.handle.restart_moments()
    other.train(range(9, 20))
    both = Run()
    both.optimizer.load_state_dict(run.optimizer.state_dict())
    with pytest.raises(StateError, match="Load both"):
        both.step(9)


def test_static_hashing_is_the_same_layer_without_attach_and_a_copy_trains_alone() -> None:
    still = Run(attach=False).train(range(12))
    assert still.model.store.owners == 0
    run = Run().train(range(12))
    other = copy.deepcopy(run.model)
    assert torch.equal(outputs(other), outputs(run.model))
    before = run.model.store.state_dict()["book"].clone()
    other(*batch(3)[:2]).sum().backward()
    assert torch.equal(run.model.store.book, before)


def test_detach_keeps_the_rows_and_counts_start_anew() -> None:
    run = Run().train(range(12))
    before, owners = outputs(run.model), run.model.store.owners
    run.handle.detach()
    run.handle.detach()
    assert torch.equal(outputs(run.model), before) and run.model.store.owners == owners
    assert "detached" in repr(run.handle) and "realloc_hot_rows" not in run.optimizer.param_groups[0]
    with pytest.raises(StateError, match="attach"):
        _ = run.handle.held
    run.step(12)
    again = realloc.attach(run.model, run.optimizer, methods.rows(), schedule=realloc.every(2, total=4))
    assert again.steps == 0 and again.owned_rows == owners


# words ------------------------------------------------------------------------------------------------------------


def test_the_handle_and_the_record_tell_what_happened(tmp_path: Path) -> None:
    run = Run(record=tmp_path / "events.jsonl").train(range(20))
    handle = run.handle
    assert "bytes" in handle.summary() and "users" in handle.summary() and "moves=" in repr(handle)
    hot = int(handle.owners("users")[0])
    assert "owns row" in handle.explain(hot, "users") and "got a row" in handle.explain(hot, "users")
    assert "reads the shared row" in handle.explain(10**9, "users")
    assert "due at step" in handle.explain(hot, "users")
    handle.reschedule(realloc.every(7, total=40))
    events = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert [event["step"] for event in events] == [4, 8, 12, 16, 20]
    assert all(event["held"] + event["parked"] == event["budget"] == handle.budget for event in events)
    acquired = sum(site["acquired"] for event in events for site in event["sites"].values())
    released = sum(site["released"] for event in events for site in event["sites"].values())
    assert (acquired, released) == (handle.promoted_rows, handle.demoted_rows)
    jumps = [s["jump"] for event in events for s in event["sites"].values() if "jump" in s and s["released"]]
    assert jumps and all(jump > 0 for jump in jumps)
    for bad in (-1, 2**63, "x"):
        with pytest.raises(ConfigError, match="id is"):
            handle.explain(bad, "users")
    with pytest.raises(ConfigError, match="nearest: 'users'"):
        handle.explain(1, "user")
    with pytest.raises(ConfigError, match="the tables are users, items"):
        handle.owners()


def test_nothing_measured_is_said_by_code() -> None:
    run = Run(every=2)
    run.model.store.weight.requires_grad_(False)
    with pytest.warns(ReallocWarning, match="RA203.*users, items") as caught:
        run.train(range(4))
    assert len(caught) == 1 and run.handle.moves == 0
    torch.manual_seed(0)
    layer = realloc.nn.Embedding(None, 4, rows=60)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    handle = realloc.attach(layer, optimizer, methods.rows(), schedule=realloc.every(2, total=4))
    for _ in range(4):
        (layer(torch.tensor([1])) * 0).sum().backward()
        optimizer.step()
    with pytest.warns(ReallocWarning, match="RA003"):
        handle.summary()


def test_a_gradient_that_is_no_number_is_not_noted() -> None:
    run = Run(every=4)
    with pytest.warns(ReallocWarning, match="RA001"):
        run.model(*batch(0)[:2]).mul(float("inf")).sum().backward()
        run.optimizer.step()
    assert not (run.model.store.keys >= 0).any()


def refusals() -> dict[str, tuple[Any, str]]:
    adam, schedule = torch.optim.AdamW, realloc.every(2, total=4)

    def attach(model: nn.Module, optimizer: Any = None, score: str = "gradient", schedule: Any = schedule) -> Any:
        optimizer = adam(model.parameters()) if optimizer is None else optimizer
        return realloc.attach(model, optimizer, methods.rows(score), schedule=schedule)

    return {
        "no layer": (lambda: attach(nn.Linear(2, 2)), "has no realloc.nn.Embedding"),
        "hashing": (lambda: attach(Net(own=0.0)), "own=0"),
        "no directions": (lambda: attach(Net(), score="conflict"), "directions=8"),
        "no schedule": (lambda: attach(Net(), schedule=None), "realloc.every"),
        "optimizer of another": (lambda: attach(Net(), adam(nn.Linear(2, 2).parameters())), "does not have the rows"),
        "Adafactor": (lambda: attach(net := Net(), torch.optim.Adafactor(net.parameters())), "Adafactor"),
        "prepare": (lambda: realloc.prepare(Net(), methods.rows()), "replaces nothing"),
    }


@pytest.mark.parametrize("name", refusals())
def test_what_cannot_be_attached_is_refused_by_name(name: str) -> None:
    act, word = refusals()[name]
    with warnings.catch_warnings(), pytest.raises(ConfigError, match=word):
        act()


def test_attached_twice_is_refused() -> None:
    run = Run()
    with pytest.raises(StateError, match="moved already"):
        realloc.attach(run.model, run.optimizer, methods.rows(), schedule=realloc.every(2, total=4))
