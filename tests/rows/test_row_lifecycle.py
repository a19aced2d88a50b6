"""Resume, load, copy, export, other methods beside it, and what is refused by name."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from words import WIDTH, WORDS, adamw, batch, loss_of, made, net, same, step_on

import realloc
from realloc import methods
from realloc.errors import ConfigError, ReallocWarning, RecordError, StateError
from realloc.record.events import read
from realloc.record.state import pack, unpack

KEYS = ["weight", "realloc_rows", "realloc_slots", "realloc_touched", "realloc_counts", "realloc_stamp"]


def kept(*parts: Any) -> Any:
    """Through a file, as a checkpoint goes."""
    disk = io.BytesIO()
    torch.save([part.state_dict() for part in parts], disk)
    disk.seek(0)
    return torch.load(disk, weights_only=True)


# resume -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [50, 33])  # enough; and so few that rows come and go
@pytest.mark.parametrize("order", ["model first", "optimizer first", "before attach"])
def test_a_resume_is_bit_equal_wherever_it_stops(rows: int, order: str) -> None:
    model, optimizer, handle = made(rows)
    states, losses = [], []
    for number in range(24):
        losses.append(step_on(model, optimizer, number))
        states.append(kept(model, optimizer))
    assert (handle.released_rows > 0) == (rows == 33)
    for stop in (1, 5, 12, 17):
        mine, its = states[stop - 1]
        if order == "before attach":
            again = net()
            realloc.prepare(again, methods.touched_rows(rows))
            other = adamw([p for p in again.parameters() if p.requires_grad])  # without the table
            again.load_state_dict(mine)
            other.load_state_dict(its)
            resumed = realloc.attach(again, other, methods.touched_rows(rows))
        else:
            again, other, resumed = made(rows)
            step_on(again, other, 99)  # whatever was there before goes
            for part, state in [(again, mine), (other, its)][:: 1 if order == "model first" else -1]:
                part.load_state_dict(state)
        for number in range(stop, 24):
            assert step_on(again, other, number) == losses[number], (stop, number)
        assert resumed.state() == handle.state()
        for key, value in kept(model)[0].items():
            assert torch.equal(value, again.state_dict()[key]), key


def test_a_run_folder_resumes_it() -> None:
    model, optimizer, _ = made(33)
    for number in range(10):
        step_on(model, optimizer, number)
    packed = copy.deepcopy(pack(model, optimizer, {"step": 10}))
    again, other, _ = made(33)
    assert unpack(packed.tensors, packed.state, again, other) == {"step": 10}
    for number in range(10, 20):
        assert step_on(again, other, number) == step_on(model, optimizer, number)


def test_one_loaded_without_the_other_is_refused() -> None:
    model, optimizer, handle = made(50)
    early = kept(model, optimizer)
    for number in range(3):
        step_on(model, optimizer, number)
    middle = kept(model, optimizer)
    for number in range(3, 9):
        step_on(model, optimizer, number)
    model.load_state_dict(middle[0])
    for act in (lambda: model(batch(0)[0]), lambda: optimizer.step()):
        with pytest.raises(StateError, match=r"rows of different ids.*restart_moments"):
            act()
    with torch.no_grad():
        model(batch(0)[0])  # looking is no matter of moments
    handle.restart_moments()
    step_on(model, optimizer, 3)
    for part, state in ((optimizer, middle[1]), (optimizer, early[1])):
        part.load_state_dict(state)
        with pytest.raises(StateError, match="rows of different ids"):
            step_on(model, optimizer, 4)
    model.load_state_dict(early[0])
    step_on(model, optimizer, 4)
    twin, its, other = made(50)
    step_on(twin, its, 0)
    twin.load_state_dict(middle[0])
    other.detach()
    assert not its.state[twin[0].weight], "moments of other ids are not given to these"
    model.load_state_dict(kept(model)[0], assign=True)
    with pytest.raises(StateError, match="load without assign"):
        step_on(model, optimizer, 5)


# loading in both directions ---------------------------------------------------------------------------------------


def test_a_plain_model_loads_the_state_of_an_attached_one_and_the_other_way_round() -> None:
    model, optimizer, handle = made(50)
    plain = net()
    for number in range(6):
        step_on(model, optimizer, number)
    state = model.state_dict()
    assert [key for key in state if key.startswith("0.")] == [f"0.{key}" for key in KEYS]
    missing = plain.load_state_dict(state, strict=False)
    assert not missing.missing_keys and missing.unexpected_keys == [f"0.{key}" for key in KEYS[1:]]
    assert same(plain, model)
    # back: the held rows take the plain values and keep their moments, as torch has it
    other = net()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(0.5).add_(0.1)
    held = handle.held
    model.load_state_dict(other.state_dict())
    assert same(model, other) and handle.held == held
    dense = copy.deepcopy(other)
    its = adamw(dense.parameters())
    its.load_state_dict(plain_state(optimizer, model))
    for number in range(6, 12):
        assert step_on(model, optimizer, number) == step_on(dense, its, number)


def plain_state(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Any]:
    """An optimizer's state with that of the rows at their ids: by hand."""
    state = copy.deepcopy(optimizer.state_dict())
    names = [name for name, _ in model.named_parameters() if name != "0.weight"]
    rows, slots = names.index("0.realloc_rows"), model[0].realloc_slots
    numbers = [i for group in state["param_groups"] for i in group["params"]]
    mine = state["state"][numbers[rows]]
    for key in ("exp_avg", "exp_avg_sq"):
        whole = torch.zeros(WORDS, WIDTH, dtype=torch.float64)
        for word in range(WORDS):
            if slots[word] >= 0:
                whole[word] = mine[key][slots[word]]
        mine[key] = whole
    for group in state["param_groups"]:
        group.pop("realloc_rows", None)
    return state


def test_a_state_is_right_while_the_rows_are_frozen_and_the_table_is_left_alone() -> None:
    """What keeps activations above a frozen table watches it for changes."""
    model, optimizer, _ = made(50)
    for number in range(4):
        step_on(model, optimizer, number)
    model[0].requires_grad_(False)
    table = model[0]._parameters["weight"]
    version, values = table._version, table.detach().clone()
    state = model.state_dict()
    assert table._version == version and torch.equal(table, values)
    assert not torch.equal(state["0.weight"], values)
    plain = net()
    plain.load_state_dict(state, strict=False)
    assert torch.equal(plain(batch(3)[0]), model(batch(3)[0]))


def test_states_that_do_not_belong_are_refused_before_anything_is_copied() -> None:
    model, optimizer, _ = made(50)
    for number in range(3):
        step_on(model, optimizer, number)
    good = kept(model)[0]
    before = copy.deepcopy(good)
    two = good["0.realloc_slots"].clone()
    two[two >= 0] = 0
    cases: dict[str, dict[str, Any]] = {
        "realloc_slots is missing": {k: v for k, v in good.items() if "slots" not in k},
        r"realloc_rows: \(40, 6\).*\(50, 6\)": made(40)[0].state_dict(),
        "two ids share a slot": good | {"0.realloc_slots": two},
        "digest": good | {"0.realloc_slots": good["0.realloc_slots"].roll(1)},
        "not of this version": good | {"0.realloc_counts": torch.tensor([2, 0, 0, 0, 0])},
        "realloc_slots: .*int64": good | {"0.realloc_slots": good["0.realloc_slots"].long()},
        "lies outside": good | {"0.realloc_slots": good["0.realloc_slots"] - 2},
    }
    for word, state in cases.items():
        with pytest.raises(RecordError, match=word):
            model.load_state_dict(state)
        assert all(torch.equal(value, model.state_dict()[key]) for key, value in before.items()), word
    plain = adamw(net().parameters())
    step_on(net(), plain, 0)
    its = net()
    dense = adamw(its.parameters())
    step_on(its, dense, 0)
    with pytest.raises(ConfigError, match=r"has shape \(60, 6\).*\(50, 6\)"):
        optimizer.load_state_dict(dense.state_dict())


# copies -----------------------------------------------------------------------------------------------------------


def test_copies_and_pickles_read_alike_and_train_apart() -> None:
    model, optimizer, handle = made(50)
    for number in range(3):
        step_on(model, optimizer, number)
    ids = batch(2)[0]
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(ids), model(ids))
        held = handle.held
        twin(torch.arange(WORDS)[None]).sum().backward()
        assert handle.held == held
        with pytest.raises(StateError, match="not a copy of it"):
            realloc.attach(twin, adamw(twin.parameters()), methods.touched_rows(50))
        exported = realloc.export.dense(twin)
        assert type(exported[0]) is nn.Embedding and torch.equal(exported(ids), model(ids))
    assert handle.held == held


@pytest.mark.parametrize("rows", [50, 33])
def test_a_followed_average_is_that_of_the_dense_table(rows: int) -> None:
    model, optimizer, handle = made(rows)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.8))
    handle.follow(average)
    by_hand: torch.Tensor | None = None
    for number in range(20):
        step_on(model, optimizer, number)
        average.update_parameters(model)
        now = realloc.export.dense(model)[0].weight.detach().clone()
        by_hand = now if by_hand is None else 0.8 * by_hand + 0.2 * now
        assert torch.allclose(realloc.export.dense(average)[0].weight, by_hand, rtol=0, atol=1e-12), number
    assert (handle.released_rows > 0) == (rows == 33)


def test_an_average_that_missed_a_row_is_refused() -> None:
    model, optimizer, handle = made(50)
    average = AveragedModel(model)
    step_on(model, optimizer, 0)
    average.update_parameters(model)
    for act in (lambda: average(batch(0)[0]), average.state_dict, lambda: realloc.export.dense(average)):
        with pytest.raises(StateError, match=r"handle\.follow\(copy\)"):
            act()
    with pytest.raises(StateError, match="missed some"):
        handle.follow(copy.deepcopy(made(50)[0]))
    with pytest.raises(ConfigError, match="same tables"):
        handle.follow(net())
    with pytest.raises(ConfigError, match="cannot follow itself"):
        handle.follow(model)
    with pytest.raises(ConfigError, match="use_buffers"):
        handle.follow(AveragedModel(model, use_buffers=True))


# beside other methods ---------------------------------------------------------------------------------------------


class Deep(nn.Module):
    """An embedding, blocks and a head, as models of transformers have them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words, self.head = nn.Embedding(WORDS, WIDTH), nn.Linear(WIDTH, 3)
        self.layers = nn.ModuleList([nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh()) for _ in range(3)])

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.words(ids).mean(1)
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


@pytest.mark.parametrize(
    "method",
    [methods.lisa(1), methods.autofreeze(75, cache=None), methods.random_layers(0.7), methods.rigl(0.5)],
    ids=lambda method: method.name,
)
def test_with_another_method_on_the_rest(method: Any) -> None:
    """The rows change nothing of what it decides and does."""
    runs = []
    for rows in (False, True):
        model = Deep().double()
        optimizer = adamw(model.parameters())
        mine = realloc.attach(model, optimizer, methods.touched_rows(50)) if rows else None
        theirs = realloc.attach(model, optimizer, method, schedule=realloc.every(3, total=18))
        losses = [step_on(model, optimizer, number) for number in range(9)]
        state = kept(model, optimizer)
        losses += [step_on(model, optimizer, number) for number in range(9, 18)]
        model.load_state_dict(state[0])
        optimizer.load_state_dict(state[1])
        assert losses[9:] == [step_on(model, optimizer, number) for number in range(9, 18)]
        theirs.detach()
        if mine is not None:
            assert (mine.held > 0) == (getattr(method, "embeddings", "always") != "never")
            mine.detach()
        losses.append(step_on(model, optimizer, 18))
        runs.append((losses, model.state_dict()))
        assert not optimizer._optimizer_step_pre_hooks and not optimizer._optimizer_step_post_hooks
    assert runs[0][0] == runs[1][0]
    assert [*runs[0][1]] == [*runs[1][1]]
    assert all(torch.equal(value, runs[1][1][key]) for key, value in runs[0][1].items())


# the handle -------------------------------------------------------------------------------------------------------


def test_what_the_handle_says_and_the_record_holds(tmp_path: Path) -> None:
    model, optimizer, handle = made(33, record=tmp_path / "events.jsonl")
    assert "at most 33 rows" in str(handle.start) and "198 parameters instead of 360" in str(handle.start)
    for number in range(12):
        step_on(model, optimizer, number)
    words = handle.summary()
    assert f"{handle.acquired_rows} rows acquired, {handle.released_rows} released in 12 steps" in words
    assert "found no room" in handle.explain("0") and repr(handle).startswith("RowHandle(touched_rows, held=198")
    with pytest.raises(ConfigError, match="no table 'words'"):
        handle.explain("words")
    lines = read(tmp_path / "events.jsonl").lines
    assert sum(line["sites"]["0.weight"]["acquired"] for line in lines) == handle.acquired_rows
    assert sum(line["sites"]["0.weight"]["released"] for line in lines) == handle.released_rows
    assert all(line["held"] + line["parked"] == line["budget"] == 198 for line in lines)
    assert lines[-1]["step"] <= 12
    handle.detach()
    for act in (handle.detach, lambda: handle.held, handle.restart_moments, handle.summary):
        with pytest.raises(StateError, match="detached"):
            act()
    assert repr(handle) == "RowHandle(touched_rows, detached)"
    again = realloc.attach(model, optimizer, methods.touched_rows(40))
    assert again.sites["0.weight"].held_rows == 33, "what it has moments for holds rows at once"


def test_detach_leaves_nothing() -> None:
    model, optimizer, handle = made(50)
    parameter = optimizer.param_groups[0]["params"][0]
    for number in range(3):
        step_on(model, optimizer, number)
    loss_of(model, *batch(3)).backward()
    handle.detach()
    assert model[0].weight is parameter and parameter.shape == parameter.grad.shape == (WORDS, WIDTH)
    plain = net()
    assert [*vars(model[0])] == [*vars(plain[0])] and [*vars(model)] == [*vars(plain)]
    for module in (model, model[0]):
        assert not [kind for kind, hooks in vars(module).items() if kind.endswith("_hooks") and len(hooks)]
    assert set(optimizer.param_groups[0]) == set(adamw(plain.parameters()).param_groups[0])
    assert not optimizer._optimizer_state_dict_pre_hooks and not optimizer._optimizer_load_state_dict_pre_hooks


def test_a_model_that_is_not_trained_is_said_loudly() -> None:
    _, optimizer, handle = made(50)
    other = net()
    with pytest.warns(ReallocWarning, match=r"RA202.*no row of 0\.weight was touched in 10 steps"):
        for number in range(12):
            loss_of(other, *batch(number)).backward()
            optimizer.step()
    assert handle.held == 0


def test_reading_the_weight_shows_the_trained_table_and_takes_no_gradient() -> None:
    model, optimizer, _ = made(50)
    for number in range(3):
        step_on(model, optimizer, number)
    weight = model[0].weight
    assert torch.equal(weight.detach(), realloc.export.dense(model)[0].weight)
    with pytest.raises(StateError, match=r"0\.weight got a gradient for its whole weight.*tied output"):
        (torch.randn(3, WIDTH, dtype=torch.float64) @ weight.T).sum().backward()
    with pytest.raises(RuntimeError, match="detach"):
        model[0].reset_parameters()


# refused ----------------------------------------------------------------------------------------------------------


class Tied(nn.Module):
    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.words, self.bag = nn.Embedding(WORDS, WIDTH, **settings), nn.EmbeddingBag(WORDS, WIDTH)
        self.head = nn.Linear(WIDTH, WORDS, bias=False)
        self.places = nn.Embedding(5, WIDTH)

    def tie(self) -> None:
        self.head.weight = self.words.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.words(ids))


class Odd(nn.Embedding):
    """What libraries make of one."""


def odd(model: Tied) -> None:
    model.words = Odd(WORDS, WIDTH)


@pytest.mark.parametrize(
    ("change", "settings", "word"),
    [
        (Tied.tie, {}, "its weight is tied to 'head', and an output head gives every row"),
        (None, {"max_norm": 1.0}, r"max_norm=1\.0 writes to the rows"), (None, {"sparse": True}, "sparse already"),
        (None, {"scale_grad_by_freq": True}, "scale_grad_by_freq"),
        (lambda m: m.words.requires_grad_(False), {}, "it is frozen"), (odd, {}, "a Odd is no plain nn.Embedding"),
        (lambda m: m.to("meta"), {}, "meta device"),
        (lambda m: m.words.__dict__.update(forward=m.words.forward), {}, "a forward of its own"),
    ],
)  # fmt: skip
def test_tables_that_cannot_are_refused_by_name(
    change: Callable[[Tied], Any] | None, settings: dict[str, Any], word: str
) -> None:
    model = Tied(**settings)
    if change is not None:
        change(model)
    before, method = [*model.state_dict()], methods.touched_rows(20)
    for asked in (method, method.on("words")):
        with pytest.raises(ConfigError, match=word):
            realloc.attach(model, adamw(model.parameters()), asked)
    assert [*model.state_dict()] == before and not isinstance(model.words, realloc.sites.row.RowEmbedding)


def test_other_refusals() -> None:
    model = Tied()
    optimizer = adamw(model.parameters())

    def attach(method: Any, its: Any = optimizer) -> None:
        realloc.attach(model, its, method)

    table = realloc.prepare(model, methods.touched_rows(20), dry_run=True)
    assert [line.name for line in table.sites] == ["words.weight"]
    assert "bag: dense (a EmbeddingBag is no plain" in str(table) and "places: dense (the budget of 20" in str(table)
    rows = methods.touched_rows
    for word, act in {
        "the budget of 60 rows is no less than its 60": lambda: attach(rows(60)),
        "bag cannot train its touched rows": lambda: attach(rows(20).on("bag")),
        "'word' matches no embedding; nearest: 'words'": lambda: attach(rows(20).on("word")),
        "is no string": lambda: attach(rows(20).on(3)),
        "rows is 0": lambda: rows(0), "rows is True": lambda: rows(True), r"rows is 2\.5": lambda: rows(2.5),
        "does not hold 'words.weight'": lambda: attach(rows(20), adamw(model.head.parameters())),
        "Adafactor cannot share a pool.*Train the table in full": lambda: attach(
            rows(20), torch.optim.Adafactor(model.parameters())
        ),
        "there is no nn.Embedding": lambda: realloc.prepare(nn.Linear(2, 2), rows(20)),
    }.items():  # fmt: skip
        with pytest.raises(ConfigError, match=word):
            act()
    model.words.weight.grad = torch.ones(WORDS, WIDTH)
    with pytest.raises(ConfigError, match="60 rows have moments or a gradient already, the budget is 20"):
        attach(rows(20))
    model.words.weight.grad = None
    attach(rows(20))
    with pytest.raises(StateError, match="on pools already"):
        attach(rows(20))
    with pytest.raises(StateError, match="on pools already"):
        realloc.prepare(model, rows(20))
    second = Tied()
    optimizer.add_param_group({"params": [*second.parameters()]})
    with pytest.raises(StateError, match=r"serves the rows of another model.*ModuleDict"):
        realloc.attach(second, optimizer, rows(20))
    other = Tied()
    realloc.prepare(other, rows(20))
    with pytest.raises(StateError, match="prepared for 20 rows, attach got 30"):
        realloc.attach(other, adamw(other.parameters()), rows(30))
