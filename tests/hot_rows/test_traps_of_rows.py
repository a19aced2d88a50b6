"""What once went wrong, or goes wrong elsewhere: backwards thrown away, empty batches, copies, sparse state."""

from __future__ import annotations

import copy
import io
from itertools import pairwise
from typing import Any

import pytest
import torch
from nets import DIM, Net, Run, batch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits

import realloc
from realloc import methods
from realloc.errors import ConfigError, ReallocWarning, RecordError, StateError
from realloc.pool.hot_rows import owners_of

SEEN = 4  # its place in the book


def seen(run: Run) -> int:
    return int(run.model.store.book[SEEN])


def attached(layer: nn.Module, optimizer: torch.optim.Optimizer, every: int = 2, **settings: Any) -> Any:
    method = methods.rows(**{"score": "gradient"} | settings)
    return realloc.attach(layer, optimizer, method, schedule=realloc.every(every, total=40))


def known(store: realloc.nn.Rows) -> dict[tuple[int, int], float]:
    """By table and id, what each has gained since the sketch knows it."""
    own = (store.scores - store.inherited).tolist()
    triples = zip(store.tables.tolist(), store.keys.tolist(), own, strict=True)
    return {(table, key): score for table, key, score in triples if key >= 0}


# which backwards count ----------------------------------------------------------------------------------------------


def test_a_step_that_a_scaler_skips_counts_nothing_and_costs_the_next_one_nothing() -> None:
    """A GradScaler leaves the optimizer's hooks out when it skips: what was noted must go with the gradients."""
    run, plain = Run("frequency", every=50, total=50), Run("frequency", every=50, total=50)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for number, factor in ((0, 1.0), (1, float("inf")), (2, 1.0)):
        users, items, target = batch(number)
        run.optimizer.zero_grad()
        scaler.scale(binary_cross_entropy_with_logits(run.model(users, items), target) * factor).backward()
        scaler.step(run.optimizer)
        scaler.update()
    plain.step(0)
    plain.step(2)
    assert run.handle.steps == 2 and known(run.model.store) == known(plain.model.store) and seen(run) == seen(plain)


@pytest.mark.parametrize("to_none", [True, False])
def test_what_zero_grad_threw_away_is_not_noted(to_none: bool) -> None:
    run, plain = Run("frequency", every=50, total=50), Run("frequency", every=50, total=50)
    for number in (0, 1):
        users, items, target = batch(number)
        binary_cross_entropy_with_logits(run.model(users, items), target).backward()
        run.optimizer.zero_grad(set_to_none=to_none)
    users, items, target = batch(2)
    binary_cross_entropy_with_logits(run.model(users, items), target).backward()
    run.optimizer.step()
    plain.step(2)
    assert known(run.model.store) == known(plain.model.store)


def test_gradients_that_are_asked_for_and_not_accumulated_are_nobodys() -> None:
    run, plain = Run("frequency", every=50, total=50), Run("frequency", every=50, total=50)
    target = batch(0)[2]
    loss = binary_cross_entropy_with_logits(run.model(*batch(9)[:2]), target)
    torch.autograd.grad(loss, run.model.store.weight)
    run.step(0)
    plain.step(0)
    assert known(run.model.store) == known(plain.model.store)
    for number in range(400):  # nothing piles up where nobody steps
        loss = binary_cross_entropy_with_logits(run.model(*batch(number)[:2]), target)
        torch.autograd.grad(loss, run.model.store.weight)
    assert len(run.handle._engine.heard[0]) < 200


def test_weights_that_are_lent_to_the_model_are_not_those_that_are_trained() -> None:
    """Functional calls: gradients of other weights, or of a transform, say nothing of the model's own rows."""
    run, plain = Run("frequency", every=50, total=50), Run("frequency", every=50, total=50)
    users, items, target = batch(0)
    mine = dict(run.model.named_parameters())
    lent = {name: nn.Parameter(parameter.detach().clone()) for name, parameter in mine.items()}

    def loss(parameters: dict[str, torch.Tensor]) -> torch.Tensor:
        found = torch.func.functional_call(run.model, parameters, (users, items))
        return binary_cross_entropy_with_logits(found, target)

    gradients = torch.func.grad(loss)(mine)
    loss(lent).backward()
    loss(mine).backward()  # its own: counts
    torch.testing.assert_close(gradients["users.store.weight"], mine["users.store.weight"].grad)
    torch.testing.assert_close(lent["users.store.weight"].grad, mine["users.store.weight"].grad)
    run.optimizer.step()
    plain.step(0)
    assert known(run.model.store) == known(plain.model.store)


def test_a_gradient_set_by_hand_counts() -> None:
    run, plain = Run("frequency", every=50, total=50), Run("frequency", every=50, total=50)
    users, items, target = batch(0)
    loss = binary_cross_entropy_with_logits(run.model(users, items), target)
    parameters = [*run.model.parameters()]
    for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
        parameter.grad = gradient
    run.optimizer.step()
    plain.step(0)
    assert known(run.model.store) == known(plain.model.store)


def test_many_micro_batches_are_one_batch() -> None:
    run, plain = Run("frequency", every=50, total=50), Run("frequency", every=50, total=50)
    for number in range(90):
        users, items, target = batch(number, 4)
        binary_cross_entropy_with_logits(run.model(users, items), target, reduction="sum").backward()
    run.optimizer.step()
    parts = [batch(number, 4) for number in range(90)]
    users, items, target = (torch.cat(column) for column in zip(*parts, strict=True))
    binary_cross_entropy_with_logits(plain.model(users, items), target, reduction="sum").backward()
    plain.optimizer.step()
    assert len(run.handle._engine.heard[0]) == 0 and known(run.model.store) == known(plain.model.store)


def test_nothing_is_noted_once_the_last_decision_is_made() -> None:
    run = Run("frequency", every=4, total=8).train(range(8))
    assert run.handle.moves == 2 and not seen(run)
    run.train(range(8, 10))
    assert not seen(run)
    run.handle.reschedule(realloc.every(4, total=40))
    run.step(10)
    assert seen(run)


@pytest.mark.parametrize("look", [1, 2, 3, 7])
@pytest.mark.parametrize("gap", [1, 2, 3, 5, 40])
def test_every_decision_knows_something_new_and_no_rhythm_is_met(look: int, gap: int) -> None:
    method = methods.rows(look=look)
    noted = [step for step in range(4000) if method.looks(step, gap, seed=3)]
    assert len(noted) == 4000 // min(look, (gap + 1) // 2)
    assert max(b - a for a, b in pairwise(noted)) <= gap
    for start in range(gap):  # whatever step the first decision is at
        assert all(any(method.looks(step, gap, 3) for step in range(at, at + gap)) for at in range(start, 200, gap))
    if look > 1 and gap == 40:  # batches of two kinds in turn: both are seen
        even = sum(step % 2 == 0 for step in noted)
        assert abs(even - len(noted) / 2) < 4 * len(noted) ** 0.5
    with pytest.raises(ConfigError, match="look is 0"):
        methods.rows(look=0)


def test_all_ranks_and_a_resume_note_the_same_steps() -> None:
    run = Run(methods.rows(look=3), every=40)
    grew, before = [], 0
    for number in range(12):
        run.step(number)
        grew.append(seen(run) > before)
        before = seen(run)
    assert grew == [run.handle._engine.method.looks(step, 40, 3) for step in range(12)] and sum(grew) == 4


# odd batches --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(0,), (3, 0), (0, 4)])
def test_an_empty_look_up_trains(shape: tuple[int, ...]) -> None:
    layer = realloc.nn.Embedding(None, 4, rows=60)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1)
    handle = attached(layer, optimizer)
    for number in range(6):
        optimizer.zero_grad()
        ids = torch.zeros(shape, dtype=torch.int64)
        (layer(ids).sum() + (layer(batch(number)[0]).square().sum() if number % 2 else 0)).backward()
        optimizer.step()
    assert handle.steps == 6 and handle.moves == 3


def test_ids_of_any_layout_and_a_single_one() -> None:
    layer = realloc.nn.Embedding(None, 4, rows=60)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    attached(layer, optimizer, every=40, score="frequency", look=1)
    ids = torch.tensor([[3, 4, 5], [6, 7, 2**40]])
    turned = layer(ids.t())
    assert torch.equal(turned, layer(ids).transpose(0, 1)) and torch.equal(layer(ids[1, 2]), turned[2, 1])
    (turned.sum() + layer(torch.tensor(3)).sum() + layer(ids[:, ::2].int()[:1]).sum()).backward()
    optimizer.step()
    assert known(layer.store) == {(0, 3): 3.0, (0, 4): 1.0, (0, 5): 2.0, (0, 6): 1.0, (0, 7): 1.0, (0, 2**40): 1.0}


def test_a_batch_of_one_id_is_counted_as_often_as_it_comes() -> None:
    run = Run("frequency", every=50, total=50)
    run.model(torch.tensor([5, 5, 5]), torch.full((3, 3), 5)).sum().backward()
    run.optimizer.step()
    assert known(run.model.store) == {(0, 5): 3.0, (1, 5): 9.0}


def test_a_padding_id_moves_no_row_of_a_sparse_optimizer() -> None:
    store = realloc.nn.Rows(4, 60, sparse=True)
    layer = realloc.nn.Embedding(None, 4, store, padding_idx=7)
    optimizer = torch.optim.SparseAdam(layer.parameters(), lr=0.1)
    row = int(store.rows_of(0, torch.tensor([7])))
    mate = next(one for one in range(8, 1000) if int(store.rows_of(0, torch.tensor([one]))) == row)
    layer(torch.tensor([mate, 7])).sum().backward()
    optimizer.step()
    before = layer.weight.detach().clone()
    optimizer.zero_grad()
    found = layer(torch.tensor([[7, 7]]))
    assert found.shape == (1, 2, 4) and not found.any()
    found.sum().backward()
    optimizer.step()
    assert torch.equal(layer.weight, before)


# optimizers ---------------------------------------------------------------------------------------------------------


SPARSE: dict[str, Any] = {
    "SparseAdam": torch.optim.SparseAdam, "SGD": torch.optim.SGD, "Adagrad": torch.optim.Adagrad,
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")  # torch's own, of Adagrad
@pytest.mark.parametrize("name", SPARSE)
def test_sparse_optimizers_move_rows(name: str) -> None:
    layer = realloc.nn.Embedding(None, 4, realloc.nn.Rows(4, 60, sparse=True), padding_idx=0)
    optimizer = SPARSE[name](layer.parameters(), lr=0.1)
    handle = attached(layer, optimizer)
    for number in range(10):
        optimizer.zero_grad()
        layer(batch(number)[0]).square().sum().backward()
        optimizer.step()
    assert handle.moves == 5 and handle.demoted_rows and 0 not in handle.owners()


def sparse(optimizer: Any, on: bool = True) -> Any:
    layer = realloc.nn.Embedding(None, 4, realloc.nn.Rows(4, 60, sparse=on))
    return attached(layer, optimizer(layer.parameters()))


@pytest.mark.parametrize(
    ("act", "word"),
    [
        (lambda: sparse(torch.optim.AdamW), "AdamW cannot take sparse gradients.*without sparse=True"),
        (lambda: sparse(lambda p: torch.optim.SGD(p, momentum=0.9)), "SGD keeps state that is sparse"),
        (lambda: sparse(torch.optim.SparseAdam, on=False), "dense; build Rows\\(sparse=True\\)"),
        (
            lambda: attached(net := Net(), torch.optim.AdamW(net.parameters(), amsgrad=True)),
            "keeps 3 numbers for each weight, and the budget of users has bytes for 2; .*moments=3",
        ),
        (
            lambda: attached(net := Net(), torch.optim.RMSprop(net.parameters(), momentum=0.9, centered=True)),
            "RMSprop keeps 3",
        ),
    ],
)
def test_an_optimizer_that_does_not_fit_is_refused_before_training(act: Any, word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        act()


@pytest.mark.parametrize("moments", [0, 1, 2, 3])
def test_the_bytes_of_the_budget_are_those_of_the_tensors(moments: int) -> None:
    """Weight, what the optimizer really keeps, sketch and counts: not one byte above the budget."""
    made = [
        lambda p: torch.optim.SGD(p, lr=0.1), lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
        lambda p: torch.optim.AdamW(p, lr=0.1), lambda p: torch.optim.AdamW(p, lr=0.1, amsgrad=True),
    ][moments]  # fmt: skip
    store = realloc.nn.Rows(DIM, 60, moments=moments)
    layer = realloc.nn.Embedding(None, DIM, store)
    optimizer = made(layer.parameters())
    handle = attached(layer, optimizer)
    for number in range(4):
        optimizer.zero_grad()
        layer(batch(number)[0]).square().sum().backward()
        optimizer.step()
    tensors = [store.weight, *(v for v in optimizer.state[store.weight].values() if torch.is_tensor(v) and v.dim())]
    real = sum(t.numel() * t.itemsize for t in [*tensors, *store.buffers()])
    assert len(tensors) == 1 + moments and handle.owned_rows
    assert store.split.held(store.split.own) == real <= handle.budget == 60 * DIM * 4 * (1 + moments)


def test_one_optimizer_serves_one_model_with_rows() -> None:
    one, two = Net(), Net()
    optimizer = torch.optim.AdamW([*one.parameters(), *two.parameters()])
    handle = attached(one, optimizer)
    with pytest.raises(StateError, match="serves an attached model already"):
        attached(two, optimizer)
    handle.detach()
    attached(two, optimizer)
    both = nn.ModuleDict({"one": Net(), "two": Net()})
    assert attached(both, torch.optim.AdamW(both.parameters())).budget == 2 * handle.budget


def test_the_control_starts_rows_as_a_fresh_optimizer_would() -> None:
    run = Run(methods.rows(migrate=False), optimizer=torch.optim.Rprop).train(range(9))
    sizes = run.optimizer.state[run.model.store.weight]["step_size"]
    assert run.handle.demoted_rows and float(sizes.min()) > 0


# who gives way ------------------------------------------------------------------------------------------------------


def ids_of_row(store: realloc.nn.Rows, row: int, count: int) -> list[int]:
    ids = torch.arange(5000)
    return ids[store.hashed(0, ids)[0] == row][:count].tolist()


def test_a_merge_weighs_what_ids_gained_themselves_not_what_they_inherited() -> None:
    """Also: who leaves a shared row in the same move has no say in what becomes of it."""
    torch.manual_seed(0)
    store = realloc.nn.Rows(4, 60)
    layer = realloc.nn.Embedding(None, 4, store)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    handle = attached(layer, optimizer, every=40, look=1)
    pool = handle._engine.pools[0]
    back, leaving, stays = ids_of_row(store, 3, 3)
    optimizer.zero_grad()
    (layer(torch.tensor([back, leaving, leaving, stays])) * torch.ones(4)).sum().backward()
    optimizer.step()
    pool.move([], [(0, torch.tensor([back]))], optimizer)
    with torch.no_grad():
        layer.weight[store.rows_of(0, torch.tensor([back]))] += 8.0
    slot = int(store.places(0, torch.tensor([back])))
    store.scores[slot] += 50.0  # as if it had taken the slot of another
    store.inherited[slot] += 50.0
    shared, own = layer.weight[3].detach().clone(), layer.weight[store.rows_of(0, torch.tensor([back]))].detach()[0]
    expected = (shared + own) / 2  # `back` once, `stays` once; `leaving` twice, but it goes
    jump = pool.move([(0, torch.tensor([back]))], [(0, torch.tensor([leaving]))], optimizer)[0]
    torch.testing.assert_close(layer.weight[3].detach(), expected)
    torch.testing.assert_close(layer(torch.tensor([leaving])).detach()[0], shared)
    assert float(store.shared_scores[3]) == 2.0
    assert jump == pytest.approx(float((expected - shared).norm()), rel=1e-5)  # also what `stays` reads


def test_those_who_read_a_merged_row_are_in_the_jump() -> None:
    torch.manual_seed(0)
    store = realloc.nn.Rows(4, 60)
    layer = realloc.nn.Embedding(None, 4, store)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    pool = attached(layer, optimizer, every=40, look=1)._engine.pools[0]
    back, stays = ids_of_row(store, 3, 2)
    layer(torch.tensor([back, back, back, stays])).sum().backward()
    optimizer.step()
    pool.move([], [(0, torch.tensor([back]))], optimizer)
    with torch.no_grad():
        layer.weight[store.rows_of(0, torch.tensor([back]))] += 4.0
    before = layer(torch.tensor([stays])).detach()
    jump = pool.move([(0, torch.tensor([back]))], [], optimizer)[0]
    assert jump == pytest.approx(float((layer(torch.tensor([stays])).detach() - before).norm()), rel=1e-5)
    assert jump > 5


def test_the_account_of_a_shared_row_is_what_its_ids_gained() -> None:
    """A crowded sketch: ids come and go, and no row is ever owed less than nothing."""
    run = Run("frequency", rows=40, every=3, total=60)
    store, counts, moves = run.model.store, torch.zeros(run.model.store.split.shared, dtype=torch.float64), 0
    for number in range(30):
        users, items, _ = batch(number)
        for table, ids in ((0, users), (1, items[items != 0])):
            rows = store.rows_of(table, ids.flatten())
            counts += rows[rows < store.split.shared].bincount(minlength=store.split.shared)
        held = {(t, k) for t, k, _ in owners_of(store)}
        run.step(number)
        if (number + 1) % 3 == 0:
            now = {(t, k) for t, k, _ in owners_of(store)}
            after = known(store)
            for table, key in now ^ held:
                row = int(store.hashed(table, torch.tensor([key]))[0])
                counts[row] -= after[table, key] / 0.9 * (1 if (table, key) in now else -1)
            counts *= 0.9
            moves += now != held
        assert float(store.shared_scores.min()) >= 0
        torch.testing.assert_close(store.shared_scores.double(), counts, rtol=1e-4, atol=1e-4)
    assert bool(store.inherited.any()) and run.handle.demoted_rows > 5 and moves == run.handle.moves > 2


# copies -------------------------------------------------------------------------------------------------------------


def average(model: nn.Module) -> torch.optim.swa_utils.AveragedModel:
    return torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.5))


@pytest.mark.parametrize("synced", [True, False])
def test_an_averaged_copy_that_follows_is_the_average_of_the_same_ids(synced: bool) -> None:
    """Rows by id: the copy's are the mean of what each id read, moves or not. By hand, with a table of all ids."""
    run = Run(every=3, total=30)
    copied = average(run.model)
    run.handle.follow(copied)
    ids = torch.arange(200)

    def table(model: nn.Module) -> torch.Tensor:
        return model.users(ids).detach().double()

    by_hand, moved = table(run.model), 0
    for number in range(9):
        before = copied.module.users(ids).detach()
        run.step(number)
        after = copied.module.users(ids).detach()
        gone = run.handle.demoted_rows > moved
        moved = run.handle.demoted_rows
        if not gone:
            assert torch.equal(before, after), "a promotion changed what the copy says"
            by_hand = table(run.model) if synced and not number else by_hand / 2 + table(run.model) / 2  # torch's first
        if synced:
            copied.update_parameters(run.model)
        else:
            for mine, theirs in zip(copied.module.parameters(), run.model.parameters(), strict=True):
                mine.data.mul_(0.5).add_(theirs.data, alpha=0.5)
        if gone:
            by_hand = table(copied.module)
        torch.testing.assert_close(table(copied.module), by_hand, rtol=1e-4, atol=1e-5)
        assert owners_of(copied.module.store) == owners_of(run.model.store)
    assert run.handle.moves == 3 and moved


def test_a_copy_that_does_not_fit_is_refused() -> None:
    run = Run().train(range(5))
    for bad, word in ((3, "is a int"), (Net(rows=50), "same tables"), (run.model, "follow itself")):
        with pytest.raises(ConfigError, match=word):
            run.handle.follow(bad)
    with pytest.raises(ConfigError, match="use_buffers"):
        run.handle.follow(torch.optim.swa_utils.AveragedModel(run.model, use_buffers=True))
    late = copy.deepcopy(run.model)
    run.train(range(5, 9))
    with pytest.raises(StateError, match="rows of other ids"):
        run.handle.follow(late)
    run.handle.follow(average(run.model))
    run.train(range(9, 13))


def test_a_copy_and_a_pickle_of_an_attached_model_stand_alone() -> None:
    run = Run().train(range(9))
    disk = io.BytesIO()
    torch.save(run.model, disk)
    disk.seek(0)
    for other in (copy.deepcopy(run.model), torch.load(disk, weights_only=False)):
        assert torch.equal(other(*batch(3)[:2]), run.model(*batch(3)[:2])) and other.store.hear is None
        other.load_state_dict(run.model.state_dict())
        other(*batch(3)[:2]).sum().backward()
        assert not run.handle._engine.pairing.unchecked and not len(run.handle._engine.heard[0])
        handle = attached(other, torch.optim.AdamW(other.parameters()))
        assert handle.owned_rows == run.handle.owned_rows


# loading ------------------------------------------------------------------------------------------------------------


def test_values_never_travel_without_their_places() -> None:
    run = Run().train(range(9))
    weights = {key: value for key, value in run.model.state_dict().items() if "weight" in key}
    with pytest.raises(RecordError, match="not in the state, and ids own rows here"):
        Run().train(range(9)).model.load_state_dict(weights, strict=False)


@pytest.mark.parametrize("part", ["weight", "sketch"])
def test_a_fresh_model_takes_no_part_of_the_state_of_one_whose_ids_own_rows(part: str) -> None:
    """Parameters only, as an average by names of parameters is: what ids had learnt would be lost without a word."""
    run, fresh = Run().train(range(9)), Net()
    some = {k: v for k, v in run.model.state_dict().items() if ("weight" in k or "bias" in k) == (part == "weight")}
    before = copy.deepcopy(fresh.state_dict())
    words = r"ids may own rows in it, since weight\[\d+:\] is not zero" if part == "weight" else "ids own rows in it"
    with pytest.raises(RecordError, match=f"not in the state, and {words}"):
        fresh.load_state_dict(some, strict=False)
    assert all(torch.equal(value, before[key]) for key, value in fresh.state_dict().items() if "store" in key)
    unmoved = {k: v for k, v in Net().state_dict().items() if "weight" in k}
    fresh.load_state_dict(unmoved, strict=False)
    fresh.load_state_dict(run.model.state_dict())
    ids = run.handle.owners("users")
    assert torch.equal(fresh.users(ids), run.model.users(ids))


def test_rows_that_an_initialisation_filled_are_not_said_to_be_owned() -> None:
    store, fresh = (realloc.nn.Rows(4, 60, own=0.5) for _ in range(2))
    nn.init.xavier_uniform_(store.weight)
    state = store.state_dict()
    fresh.load_state_dict({"weight": state["weight"], "owned": state["owned"]}, strict=False)  # the slots say: none
    shared = store.split.shared
    with pytest.raises(RecordError, match=rf"ids may own rows in it, since weight\[{shared}:\] is not zero \(if none"):
        fresh.load_state_dict({"weight": state["weight"]}, strict=False)
    with torch.no_grad():
        store.weight[shared:].zero_()  # as the words say
    fresh.load_state_dict({"weight": store.weight}, strict=False)
    assert torch.equal(fresh.weight, store.weight)


def test_another_width_changes_nothing_before_it_is_refused() -> None:
    wide, narrow = (realloc.nn.Rows(dim, 60, own=0.0) for dim in (5, 4))
    wide.shared_scores, narrow.shared_scores = torch.ones(8), torch.zeros(8)
    with pytest.raises(RecordError, match="weight is"):
        narrow.load_state_dict(wide.state_dict())
    assert not narrow.shared_scores.any()


def test_replaced_rows_are_refused() -> None:
    run = Run().train(range(6))
    run.model.load_state_dict({k: v.clone() for k, v in run.model.state_dict().items()}, assign=True)
    run.optimizer.load_state_dict(run.optimizer.state_dict())
    with pytest.raises(StateError, match="load without assign"):
        run.step(6)


@pytest.mark.parametrize("model_first", [True, False])
def test_model_and_optimizer_load_in_either_order(model_first: bool) -> None:
    whole = Run().train(range(15))
    half = Run().train(range(7))
    saved = copy.deepcopy({"model": half.model.state_dict(), "optimizer": half.optimizer.state_dict()})
    rest = Run().train(range(5))
    for part in ("model", "optimizer") if model_first else ("optimizer", "model"):
        getattr(rest, part).load_state_dict(saved[part])
    rest.train(range(7, 15))
    for mine, theirs in zip(rest.model.state_dict().values(), whole.model.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs)


def test_a_resume_is_bit_equal_at_every_step_of_an_interval() -> None:
    whole = Run("conflict", every=4).train(range(13))
    for cut in range(4, 9):
        half = Run("conflict", every=4).train(range(cut))
        saved = copy.deepcopy({"model": half.model.state_dict(), "optimizer": half.optimizer.state_dict()})
        rest = Run("conflict", every=4)
        rest.model.load_state_dict(saved["model"])
        rest.optimizer.load_state_dict(saved["optimizer"])
        rest.train(range(cut, 13))
        for mine, theirs in zip(rest.model.state_dict().values(), whole.model.state_dict().values(), strict=True):
            assert torch.equal(mine, theirs)


# several tables, compiled graphs --------------------------------------------------------------------------------------


def test_a_table_outside_the_attached_module_takes_part_by_number() -> None:
    """Tables share rows: one that `attach` cannot see among the modules still competes, and the ledger knows it."""
    net, plain = Net(), Run(every=2, total=40)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
    handle = realloc.attach(net.users, optimizer, methods.rows("gradient"), schedule=realloc.every(2, total=40), seed=3)
    for number in range(14):
        users, items, target = batch(number)
        optimizer.zero_grad()
        binary_cross_entropy_with_logits(net(users, items), target).backward()
        optimizer.step()
        plain.step(number)
        assert handle.held + handle.parked == handle.budget
        assert owners_of(net.store) == owners_of(plain.model.store)
    assert torch.equal(handle.owners(".store[1]"), plain.handle.owners("items")) and len(handle.owners(".store[1]"))


def test_a_compiled_model_needs_no_break_and_moves_as_a_plain_one() -> None:
    class Towers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            store = realloc.nn.Rows(DIM, 60)
            self.users, self.items = (realloc.nn.Embedding(None, DIM, store, padding_idx=p) for p in (None, 0))

        def forward(self, users: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
            return (self.users(users) * self.items(items).mean(1)).sum(1)

    def run(compiled: bool) -> tuple[nn.Module, Any]:
        model = Towers()
        asked = torch.compile(model, backend="aot_eager", fullgraph=True) if compiled else model
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        with torch.no_grad():
            asked(*batch(0)[:2])  # without a method first
        handle = attached(model, optimizer, every=3)
        for number in range(7):
            users, items, target = batch(number, 24 if number < 5 else 20)
            optimizer.zero_grad()
            binary_cross_entropy_with_logits(asked(users, items), target).backward()
            optimizer.step()
        if compiled:
            with pytest.raises(ConfigError, match="an id is -3"):
                asked(users - 3 - users.min(), items)
        return model, handle

    (plain, first), (compiled, second) = run(False), run(True)
    assert first.moves == second.moves == 2 and first.owned_rows
    for name, mine in compiled.state_dict().items():
        torch.testing.assert_close(mine, plain.state_dict()[name], rtol=1e-5, atol=1e-6)


# scales -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("score", ["gradient", "product", "conflict"])
def test_a_scaled_loss_moves_the_same_rows(score: str) -> None:
    runs = [Run(score, optimizer=lambda p, lr: torch.optim.AdamW(p, lr=lr, eps=0.0 + 1e-30)) for _ in range(2)]
    for number in range(9):
        users, items, target = batch(number)
        for run, factor in zip(runs, (1.0, 1024.0), strict=True):
            run.optimizer.zero_grad()
            (factor * binary_cross_entropy_with_logits(run.model(users, items), target)).backward()
            run.optimizer.step()
    assert runs[0].handle.moves and owners_of(runs[0].model.store) == owners_of(runs[1].model.store)


def test_a_million_ids_stay_within_the_bytes() -> None:
    layer = realloc.nn.Embedding(None, 4, rows=2000)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.01)
    handle, draw = attached(layer, optimizer, every=3), torch.Generator().manual_seed(0)
    distinct = 0
    for _ in range(6):
        ids = torch.cat([torch.randint(0, 2**62, (200_000,), generator=draw), torch.arange(700).repeat(3)])
        distinct += 200_000
        optimizer.zero_grad()
        layer(ids).square().mean().backward()
        optimizer.step()
        assert handle.held + handle.parked == handle.budget
    hot = handle.owners()
    assert distinct > 10**6 and handle.moves == 2 and int((hot < 700).sum()) > 0.9 * len(hot)


def test_a_nan_stops_nothing_but_its_own_step() -> None:
    run, plain = Run("frequency", every=50, total=50), Run("frequency", every=50, total=50)
    with pytest.warns(ReallocWarning, match="RA001"):
        (run.model(*batch(0)[:2]) * torch.tensor(float("nan"))).sum().backward()
        run.model.head.zero_grad()
        run.optimizer.step()
    with torch.no_grad():
        for mine, theirs in zip(run.model.parameters(), plain.model.parameters(), strict=True):
            mine.copy_(theirs)
    run.step(1)
    plain.step(1)
    assert known(run.model.store) == known(plain.model.store)
