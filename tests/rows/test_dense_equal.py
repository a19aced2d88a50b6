"""Rows in a pool train as the rows of a dense table do, under every optimizer that leaves still rows alone."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from words import WIDTH, WORDS, adamw, batch, loss_of, made, net, same, step_on

import realloc
from kinds import ROWS
from realloc import methods

optim = torch.optim
OPTIMIZERS = {
    "adamw": adamw,
    "adamw, fused": lambda p: optim.AdamW(p, lr=1e-2, weight_decay=0.0, fused=True),
    "adamw, foreach, amsgrad": lambda p: optim.AdamW(p, lr=1e-2, weight_decay=0.0, amsgrad=True, foreach=True),
    "adam": lambda p: optim.Adam(p, lr=1e-2),
    "sgd": lambda p: optim.SGD(p, lr=0.3),
    "momentum": lambda p: optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "rmsprop": lambda p: optim.RMSprop(p, lr=1e-3, momentum=0.5, centered=True),
    "adagrad": lambda p: optim.Adagrad(p, lr=1e-1, initial_accumulator_value=0.1),
    "adamax": lambda p: optim.Adamax(p, lr=1e-2),
    "nadam": lambda p: optim.NAdam(p, lr=1e-2),
    "radam": lambda p: optim.RAdam(p, lr=1e-2),
    "rprop": lambda p: optim.Rprop(p, lr=1e-2),
    "adadelta": lambda p: optim.Adadelta(p, lr=1.0),
}  # fmt: skip


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("padding", [None, 3])
def test_losses_weights_and_state_are_those_of_the_dense_table(name: str, padding: int | None) -> None:
    plain = net(padding=padding)
    its = OPTIMIZERS[name](plain.parameters())
    model, optimizer, handle = made(45, optimizer=OPTIMIZERS[name], model=net(padding=padding))
    for number in range(25):
        assert step_on(model, optimizer, number) == step_on(plain, its, number), number
    touched = torch.cat([batch(n)[0].flatten() for n in range(25)]).unique()
    assert handle.sites["0.weight"].places().tolist() == [i for i in touched.tolist() if i != padding]
    assert same(model, plain)
    handle.detach()
    assert type(model[0]) is nn.Embedding and [*model.state_dict()] == [*plain.state_dict()]
    for mine, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(mine, theirs)
        for key, value in its.state[theirs].items():
            assert not torch.is_tensor(value) or torch.equal(optimizer.state[mine][key], value), key
    for number in range(25, 30):
        assert step_on(model, optimizer, number) == step_on(plain, its, number), number


@pytest.mark.parametrize("name", ROWS)
def test_adam_by_hand(name: str) -> None:
    """The recursion of 1412.6980, algorithm 1, on the rows alone, from the gradients of a dense twin."""
    model, optimizer, handle = made(WORDS - 1)
    twin = net()
    table = twin[0].weight.detach().clone()
    mean, square = torch.zeros_like(table), torch.zeros_like(table)
    for step in range(1, 15):
        twin.load_state_dict(realloc.export.dense(model).state_dict())
        twin.zero_grad()
        loss_of(twin, *batch(step)).backward()
        gradient = twin[0].weight.grad
        mean.lerp_(gradient, 0.1)
        square.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
        table -= 1e-2 * (mean / (1 - 0.9**step)) / ((square / (1 - 0.999**step)).sqrt() + 1e-8)
        step_on(model, optimizer, step)
        assert torch.allclose(model[0].weight.detach(), table, rtol=0, atol=1e-13), step
    assert handle.start.method == name


def test_weight_decay_shrinks_only_rows_that_are_held() -> None:
    plain, start = net(), net()[0].weight.detach()
    its = optim.AdamW(plain.parameters(), lr=1e-2, weight_decay=0.1)
    model, optimizer, handle = made(45, optimizer=lambda p: optim.AdamW(p, lr=1e-2, weight_decay=0.1))
    for _ in range(20):
        step_on(model, optimizer, 0)
        step_on(plain, its, 0)
    held = handle.sites["0.weight"].mask()
    table = model[0].weight.detach()
    assert torch.equal(table[held], plain[0].weight[held]), "touched in the first step, so decayed from the first step"
    assert torch.equal(table[~held], start[~held])
    assert torch.allclose(plain[0].weight[~held], start[~held] * 0.999**20)


class Shapes(TorchDispatchMode):
    """Notes the shapes of all floats that operations make."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[tuple[int, ...]] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        name = func.__name__.split(".")[0]
        new = name not in ("detach", "alias", "view") and not name.endswith("_")
        for tensor in out if isinstance(out, (list, tuple)) else [out]:
            if new and torch.is_tensor(tensor) and tensor.is_floating_point():
                self.seen.add(tuple(tensor.shape))
        return out


def test_nothing_as_large_as_the_table_is_ever_made() -> None:
    words = 5000
    model, optimizer, handle = made(40, model=net(words))
    plain = net(words)
    its = adamw(plain.parameters())
    seen = []
    for one, other in ((plain, its), (model, optimizer)):
        with Shapes() as shapes:
            for number in range(4):
                step_on(one, other, number)
        seen.append({shape for shape in shapes.seen if shape and shape[0] == words})
    assert seen[0] and not seen[1], "dense gradients are seen; those of the pool are not so large"
    rows = dict(model.named_parameters())["0.realloc_rows"]
    assert rows.grad is not None and rows.grad.numel() == rows.numel() == 40 * WIDTH == handle.budget
    state = optimizer.state[rows]
    assert [state[key].numel() for key in ("exp_avg", "exp_avg_sq")] == [40 * WIDTH] * 2
    assert handle.moments_bytes == 2 * 40 * WIDTH * 8 + 4
    dense = its.state[plain[0].weight]["exp_avg"].numel()
    assert handle.moments_bytes < 2 * dense * 8 / 100


# a full pool ------------------------------------------------------------------------------------------------------


@given(
    rows=st.integers(1, 12),
    steps=st.lists(st.lists(st.integers(0, 19), min_size=1, max_size=8), min_size=1, max_size=12),
    padding=st.sampled_from([None, 4]),
)
@settings(max_examples=60, deadline=None)
@pytest.mark.filterwarnings("ignore:.RA201")
def test_the_budget_is_exact_and_the_row_touched_longest_ago_goes(
    rows: int, steps: list[list[int]], padding: int | None
) -> None:
    """Beside a table, Adam and a list of rows by hand."""
    model, optimizer, handle = made(rows, model=net(20, padding))
    table = model[0].weight.detach().clone()
    held: dict[int, tuple[int, int]] = {}  # id: step it was touched in last, slot
    moments: dict[int, list[torch.Tensor]] = {}
    site = handle.sites["0.weight"]
    for number, ids in enumerate(steps, 1):
        wanted = [i for i in dict.fromkeys(ids) if i != padding]
        for i in set(wanted) & set(held):
            held[i] = number, held[i][1]
        new = sorted(set(wanted) - set(held), key=lambda i: (-ids.count(i), i))
        idle = sorted((i for i in held if held[i][0] < number), key=lambda i: held[i])
        gone = idle[: max(0, len(new) - (rows - len(held)))]
        for i in gone:
            del held[i], moments[i]
        free = [slot for slot in range(rows) if slot not in {s for _, s in held.values()}]
        for i in sorted(new[: len(free)]):
            held[i] = number, free.pop(0)
            moments[i] = [torch.zeros(WIDTH, dtype=torch.float64)] * 2
        twin = net(20, padding)
        plain = realloc.export.dense(model).state_dict()
        twin.load_state_dict(plain)
        loss_of(twin, torch.tensor([ids]), torch.tensor([number % 3])).backward()
        optimizer.zero_grad()
        loss_of(model, torch.tensor([ids]), torch.tensor([number % 3])).backward()
        optimizer.step()
        for i in held:
            gradient = twin[0].weight.grad[i]
            mean, square = moments[i]
            moments[i] = [0.9 * mean + 0.1 * gradient, 0.999 * square + 0.001 * gradient**2]
            mean, square = moments[i]
            table[i] -= 1e-2 * (mean / (1 - 0.9**number)) / ((square / (1 - 0.999**number)).sqrt() + 1e-8)
        assert site.places().tolist() == sorted(held)
        assert handle.held + handle.parked == handle.budget == rows * WIDTH
        assert handle.held == len(held) * WIDTH == site.held_rows * WIDTH
        assert handle.acquired_rows - handle.released_rows == len(held)
        assert torch.allclose(model[0].weight.detach(), table, rtol=0, atol=1e-12)
        slots = model[0].realloc_slots
        assert {i: int(slots[i]) for i in held} == {i: slot for i, (_, slot) in held.items()}


def test_what_found_no_room_is_said_once_and_stays_as_the_table_has_it() -> None:
    model, optimizer, handle = made(3)
    before = model[0].weight.detach().clone()
    ids = torch.tensor([[1, 2, 3, 4, 5, 5]])
    with pytest.warns(realloc.errors.ReallocWarning, match=r"RA201.*0\.weight.*more than its 3 rows; 2 of them"):
        loss_of(model, ids, torch.tensor([0])).backward()
    optimizer.step()
    assert handle.sites["0.weight"].places().tolist() == [1, 2, 5] and handle.left_rows == 2
    moved = (model[0].weight.detach() != before).any(1).nonzero().flatten()
    assert moved.tolist() == [1, 2, 5]
    loss_of(model, torch.tensor([[6, 7, 8, 9]]), torch.tensor([0])).backward()
    assert handle.sites["0.weight"].places().tolist() == [6, 7, 8] and handle.released_rows == 3


def test_a_row_whose_gradient_waits_for_the_update_is_never_released() -> None:
    model, optimizer, handle = made(4)
    site = handle.sites["0.weight"]
    loss_of(model, torch.tensor([[1, 2]]), torch.tensor([0])).backward()
    loss_of(model, torch.tensor([[3, 4]]), torch.tensor([1])).backward()
    with pytest.warns(realloc.errors.ReallocWarning, match="RA201"):
        loss_of(model, torch.tensor([[5]]), torch.tensor([2])).backward()
    assert site.places().tolist() == [1, 2, 3, 4]
    optimizer.step()
    loss_of(model, torch.tensor([[2, 5]]), torch.tensor([2])).backward()  # before zero_grad, as some loops have it
    assert site.places().tolist() == [2, 3, 4, 5]


# the loop ---------------------------------------------------------------------------------------------------------


def test_accumulated_gradients_and_a_list_captured_before_attach_for_clipping() -> None:
    plain, model = net(), net()
    its, optimizer = adamw(plain.parameters()), adamw(model.parameters())
    captured = [[*plain.parameters()], [*model.parameters()]]
    realloc.attach(model, optimizer, methods.touched_rows(50))
    norms = []
    for number in range(0, 24, 3):
        for one, other, parameters in ((plain, its, captured[0]), (model, optimizer, captured[1])):
            other.zero_grad()
            for part in range(3):
                loss_of(one, *batch(number + part)).backward()
            norms.append(nn.utils.clip_grad_norm_(parameters, 0.05))
            other.step()
        assert float(norms[-1]) == pytest.approx(float(norms[-2]), rel=1e-12) and float(norms[-1]) > 0.05
    mine, theirs = realloc.export.dense(model).state_dict(), plain.state_dict()
    assert all(torch.allclose(mine[key], theirs[key], rtol=0, atol=1e-12) for key in theirs)


def test_steps_that_a_scaler_skips() -> None:
    plain, model = net(dtype=torch.float32), net(dtype=torch.float32)
    its, optimizer = adamw(plain.parameters()), adamw(model.parameters())
    handle = realloc.attach(model, optimizer, methods.touched_rows(50))
    for one, other in ((plain, its), (model, optimizer)):
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**4, growth_interval=3)
        for number in range(12):
            other.zero_grad()
            with torch.autocast("cpu", torch.bfloat16):
                loss = loss_of(one, *batch(number))
            if number % 4 == 1:
                loss = loss * float("inf")
            scaler.scale(loss).backward()
            scaler.step(other)
            scaler.update()
    assert handle.steps == 9 and same(model, plain)


def test_a_closure_frozen_tables_and_steps_without_a_batch() -> None:
    plain, (model, optimizer, handle) = net(), made(50)
    its = adamw(plain.parameters())
    for number in range(12):
        for one, other in ((plain, its), (model, optimizer)):

            def closure(
                one: nn.Module = one, other: torch.optim.Optimizer = other, number: int = number
            ) -> torch.Tensor:
                other.zero_grad()
                loss = loss_of(one, *batch(number))
                loss.backward()
                return loss

            if number == 3:  # no gradient is not zero gradient: momentum rests
                other.zero_grad()
                other.step()
            if number == 5:
                one[0].requires_grad_(False)
            if number == 8:
                one[0].requires_grad_(True)
            other.step(closure)
    assert handle.steps == 10 and same(model, plain)


def test_empty_batches_and_ids_outside_the_table() -> None:
    plain, (model, _, _) = net(), made(50)
    for ids in (torch.tensor([[WORDS]]), torch.tensor([[-1]]), torch.tensor([[1, WORDS + 5]])):
        for one in (plain, model):
            with pytest.raises(IndexError):
                one(ids)
            with torch.no_grad(), pytest.raises(IndexError):
                one(ids)
    empty = torch.zeros(3, 0, dtype=torch.int64)
    assert model[0](empty).shape == (3, 0, WIDTH)
    model[0](empty).sum().backward()
    assert not dict(model.named_parameters())["0.realloc_rows"].grad.any()
    for dtype in (torch.int32, torch.int64):
        assert torch.equal(model[0](torch.tensor([3, 59], dtype=dtype)), plain[0](torch.tensor([3, 59])))


def test_looking_without_training_gives_nobody_a_row() -> None:
    model, optimizer, handle = made(50)
    step_on(model, optimizer, 0)
    held = handle.held
    ids = torch.arange(WORDS)[None]
    with torch.no_grad():
        out = model(ids)
    with torch.inference_mode():
        assert torch.equal(model.eval()(ids), out)
    assert handle.held == held
    assert torch.equal(realloc.export.dense(model)(ids), out)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # the tracer's own
def test_under_a_compiler() -> None:
    plain, (model, optimizer, handle) = net(), made(50)
    its = adamw(plain.parameters())
    compiled = torch.compile(model, backend="eager")
    for number in range(8):
        assert step_on(compiled, optimizer, number) == pytest.approx(step_on(plain, its, number), rel=1e-12)
    assert handle.acquired_rows > 20


def test_an_optimizer_that_trained_the_table_before_keeps_what_it_knows() -> None:
    for prepared in (False, True):
        plain, model = net(), net()
        its, optimizer = adamw(plain.parameters()), adamw(model.parameters())
        for number in range(4):
            step_on(plain, its, number)
            step_on(model, optimizer, number)
        method = methods.touched_rows(45)
        if prepared:
            realloc.prepare(model, method)
        else:
            loss_of(model, *batch(9)).backward()  # a gradient under way is carried, too
            loss_of(plain, *batch(9)).backward()
        handle = realloc.attach(model, optimizer, method)
        assert handle.sites["0.weight"].held_rows > 30
        for number in range(4, 12):
            optimizer.step() if number == 4 and not prepared else None
            its.step() if number == 4 and not prepared else None
            assert step_on(model, optimizer, number) == step_on(plain, its, number), number
        assert same(model, plain)


def test_several_tables_each_with_its_rows() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.users, self.items = nn.Embedding(100, 5), nn.Embedding(80, 7)
            self.out = nn.Linear(12, 3)

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return self.out(torch.cat([self.users(ids[:, 0]), self.items(ids[:, 1])], -1))

    plain, model = Two(), Two()
    groups = [[{"params": m.users.parameters(), "lr": 1e-2}, {"params": [*m.items.parameters(), *m.out.parameters()]}]
              for m in (plain, model)]  # fmt: skip
    its, optimizer = (optim.Adam(group, lr=1e-3) for group in groups)
    handle = realloc.attach(model, optimizer, methods.touched_rows(60))
    assert [len(g["params"]) for g in optimizer.param_groups] == [1, 3] and handle.budget == 60 * 12
    scheduler = optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    for number in range(12):
        assert step_on(model, optimizer, number) == step_on(plain, its, number)
        scheduler.step()
    assert same(model, plain) and set(handle.sites) == {"users.weight", "items.weight"}
