"""A frozen prefix that is read: the same training, in an untouched loop, on every architecture; and what it refuses."""

from __future__ import annotations

import copy
import pickle
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from zoo import LAYERS, ZOO, batch, bert, fresh, stack, texts, train

import realloc
import realloc.cache.passage as passage
from realloc import Cache, methods
from realloc.errors import ConfigError, ReallocWarning, RecordError, StateError
from realloc.methods.layers import LayerMethod

EXACT = Cache(dtype="float32")


def attached(make: Any = bert, method: LayerMethod | None = None) -> tuple[nn.Module, Any, realloc.LayerHandle]:
    model, optimizer = fresh(make)
    return model, optimizer, realloc.attach(model, optimizer, method or methods.topk(2, cache=EXACT))


# the same training ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ZOO)
def test_cached_and_uncached_training_agree(name: str) -> None:
    """100 steps, ragged, shuffled, thirty epochs."""
    model, optimizer, handle = attached(ZOO[name])
    losses = train(model, optimizer, 100)
    plain, other, _ = attached(ZOO[name], methods.topk(2, cache=None))
    assert losses == pytest.approx(train(plain, other, 100), abs=1e-4)
    assert losses[-1] < losses[0]
    assert handle.hits == pytest.approx(1 - 24 / 800)
    for (key, mine), theirs in zip(model.state_dict().items(), plain.state_dict().values(), strict=True):
        if not key.startswith("realloc") and not key.endswith("bias"):  # softmax does not see the keys' bias: noise
            assert torch.allclose(mine, theirs, atol=1e-4), key


@pytest.mark.parametrize("name", ZOO)
def test_below_the_end_nothing_trains_and_above_it_everything(name: str) -> None:
    model, optimizer, handle = attached(ZOO[name])
    before = copy.deepcopy(model.state_dict())
    train(model, optimizer, 3)
    moved = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    held = {id(p) for p in model.parameters() if p.requires_grad}
    expected = {key for key, p in model.named_parameters() if id(p) in held and p.grad is not None}
    # a bias of the keys gets no gradient to speak of: softmax does not see it
    assert moved - {"realloc_layers"} <= expected
    blocks = [name for name, on in handle.layers.items() if on]
    assert len(blocks) == 2
    assert all(any(key.startswith(block + ".") for key in moved) for block in blocks)
    assert not any(key.startswith(block + ".") for key in moved for block in set(handle.layers) - set(blocks))
    assert not any("embed" in key or "wte" in key or "wpe" in key or "rel_" in key for key in moved)
    assert any("classifier" in key or "score" in key for key in moved)


def test_the_cached_blocks_do_not_run() -> None:
    runs: list[str] = []

    def hooked() -> nn.Module:
        model = bert()
        for name, module in model.named_modules():
            if name.endswith(".attention"):
                layer = name.removesuffix(".attention")
                module.register_forward_hook(lambda *_, layer=layer: runs.append(layer))
        return model

    model, optimizer, handle = attached(hooked)
    train(model, optimizer, 3)
    assert set(runs) == set(handle.layers)
    runs.clear()
    train(model, optimizer, 6, first=3)
    assert set(runs) == {name for name, on in handle.layers.items() if on}


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_a_miss_trains_on_the_rounded_value_too(dtype: str) -> None:
    """The first visit, the second, and one that found no room, give the same bits."""
    seen = []
    for limit in ("1MB", 32 * 4):
        model, _, _ = attached(method=methods.topk(1, cache=Cache(dtype=dtype, limit=limit)))
        rows, _ = texts()
        for _ in range(2):
            seen.append(model(**batch(rows, [0, 1, 2])).logits)
    assert all(torch.equal(seen[0], one) for one in seen[1:])


def test_the_head_alone_and_all_layers() -> None:
    for k, trains in ((0, 0), (LAYERS, LAYERS)):
        model, optimizer, handle = attached(method=methods.topk(k, cache=EXACT))
        train(model, optimizer, 6)
        assert sum(handle.layers.values()) == trains
        assert handle.hits == (0.5 if trains < LAYERS else None)


@pytest.mark.parametrize("name", ZOO)
def test_weights_are_rounded_once_and_to_what_autocast_rounds_them(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    low = Cache(compute="bfloat16")
    found, held = [], []
    for copies in (True, False):
        if not copies:
            monkeypatch.setattr(passage, "lowered", lambda base, lower: {})
        model, optimizer, handle = attached(ZOO[name], methods.topk(2, cache=low))
        plain_types = {key: value.dtype for key, value in model.state_dict().items()}
        losses = train(model, optimizer, 2)
        prefix = handle._engine.passage.prefix  # type: ignore[union-attr]
        held.append(len(prefix.low))
        losses += train(model, optimizer, 20)
        found.append(losses)
        assert not prefix.low  # all is read: no copy is kept
        assert plain_types == {key: value.dtype for key, value in model.state_dict().items()}
    assert found[0] == found[1] and held[1] == 0
    assert held[0] > 0 or name == "gpt2"  # whose layers are no nn.Linear


def test_a_sequential_is_read_too() -> None:
    found = []
    for cache in (EXACT, None):
        model, optimizer = fresh(stack)
        handle = realloc.attach(model, optimizer, methods.topk(1, cache=cache))
        x, y = torch.randn(8, 6, generator=torch.Generator().manual_seed(1)), torch.arange(8) % 3
        losses = []
        for step in range(40):
            half = slice(0, 4) if step % 2 else slice(4, 8)
            loss = nn.functional.cross_entropy(model(x[half]), y[half])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
        found.append(losses)
        assert handle.layers == {"0": False, "2": False, "4": True}
    assert found[0] == pytest.approx(found[1], abs=1e-5)


def test_padding_on_the_left_is_another_example() -> None:
    model, _, handle = attached(ZOO["llama"])
    ids = torch.tensor([[0, 0, 7, 8], [7, 8, 0, 0]])
    model(input_ids=ids, attention_mask=(ids > 0).long())
    assert handle.cached_bytes == 2 * 2 * 32 * 4


def test_evaluation_computes_everything() -> None:
    model, optimizer, handle = attached()
    train(model, optimizer, 3)
    plain = copy.deepcopy(model).eval()
    model.eval()
    rows, _ = texts()
    visits = handle.hits
    assert torch.equal(model(**batch(rows, [0, 1])).logits, plain(**batch(rows, [0, 1])).logits)
    assert handle.hits == visits


# dropout ----------------------------------------------------------------------------------------------------------


def flags(model: nn.Module) -> list[bool]:
    return [m.training for m in model.modules() if isinstance(m, nn.Dropout)]


def test_dropout_below_stays_off_through_train_and_comes_back() -> None:
    model, optimizer, handle = attached(lambda: bert(dropout=0.3))
    train(model, optimizer, 1)
    below = sum(not on for on in flags(model))
    model.eval()
    model.train()
    train(model, optimizer, 2, first=1)
    assert sum(not on for on in flags(model)) == below > 0
    assert any(flags(model))
    assert "dropout is off" in str(handle.start)
    handle.detach()
    assert all(flags(model))


def test_prefix_dropout_can_be_kept_and_then_nothing_is_cached() -> None:
    method = methods.topk(2).on(cache=Cache(), prefix_dropout="keep")
    model, optimizer, handle = attached(lambda: bert(dropout=0.3), method)
    train(model, optimizer, 3)
    assert all(flags(model))
    assert handle.hits is None
    assert handle.cached_bytes == 0
    assert "stays on" in str(handle.start)


# refusals ---------------------------------------------------------------------------------------------------------


class Noise(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.randn_like(x)


class Mixer(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(0)


@pytest.mark.parametrize("odd", [Noise(), Mixer()])
def test_layers_that_do_not_give_the_same_each_time_are_refused_before_the_first_update(odd: nn.Module) -> None:
    model, optimizer = fresh(lambda: stack(noise=odd))
    realloc.attach(model, optimizer, methods.topk(1))
    with pytest.raises(StateError, match=r"do not give the same for one example each time.*cache=None"):
        model(torch.randn(6, 6))


def test_a_batch_norm_that_updates_is_refused_and_one_that_does_not_is_welcome() -> None:
    model, optimizer = fresh(lambda: stack(noise=nn.BatchNorm1d(16)))
    with pytest.raises(ConfigError, match=r"'1'.*BatchNorm1d.*\.eval\(\)"):
        realloc.attach(model, optimizer, methods.topk(1))
    assert not any(key.startswith("realloc") for key in model.state_dict())
    model[1].eval()
    realloc.attach(model, optimizer, methods.topk(1))
    before = model[1].running_mean.clone()
    model.train()
    model(torch.randn(6, 6))
    assert torch.equal(model[1].running_mean, before)


@pytest.mark.parametrize(
    "method", [methods.autofreeze(), methods.egeria(), methods.layer_gradient(0.9, cache=Cache())], ids=lambda m: m.name
)
def test_a_batch_norm_that_may_come_to_lie_below_is_refused_too(method: LayerMethod) -> None:
    model, optimizer = fresh(lambda: stack(noise=nn.BatchNorm1d(16)))
    schedule = realloc.every(3, total=30)
    with pytest.raises(ConfigError, match=r"'1'.*BatchNorm1d.*\.eval\(\)"):
        realloc.attach(model, optimizer, method, schedule=schedule)
    realloc.attach(model, optimizer, method.on(cache=None), schedule=schedule).detach()
    model[1].eval()
    realloc.attach(model, optimizer, method, schedule=schedule)


def test_masks_that_are_no_padding_are_refused() -> None:
    model, _, _ = attached()
    rows, _ = texts()
    given = batch(rows, [0, 1, 2])
    given["attention_mask"][0, 0] = 0
    given["attention_mask"][0, 1] = 1
    given["attention_mask"][1, 1] = 0
    with pytest.raises(StateError, match="no plain padding"):
        model(**given)
    with pytest.raises(StateError, match="has shape"):
        model(input_ids=given["input_ids"], attention_mask=torch.ones(3, 1, given["input_ids"].shape[1]))


def test_what_cannot_be_read_is_computed_and_said() -> None:
    model, _, handle = attached()
    rows, _ = texts()
    with pytest.warns(ReallocWarning, match="RA101.*output_hidden_states"):
        out = model(**batch(rows, [0, 1]), output_hidden_states=True)
    assert len(out.hidden_states) == LAYERS + 1
    assert handle.hits is None


class Own(nn.Module):
    """Nobody's architecture."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(60, 16)
        self.layers = nn.ModuleList(nn.Linear(16, 16) for _ in range(3))
        self.head = nn.Linear(16, 3)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.words(ids)
        for layer in self.layers:
            x = layer(x).relu()
        return self.head(x.mean(1))


def test_an_unknown_architecture_is_refused_with_the_remedy_which_works() -> None:
    model, optimizer = fresh(Own)
    with pytest.raises(ConfigError, match=r"'layers'.*cache=None"):
        realloc.attach(model, optimizer, methods.topk(1))
    handle = realloc.attach(model, optimizer, methods.topk(1, cache=None))
    model(torch.randint(0, 60, (2, 4))).sum().backward()
    assert {n for n, p in model.named_parameters() if p.grad is not None} == {
        "layers.2.weight", "layers.2.bias", "head.weight", "head.bias",
    }  # fmt: skip
    handle.detach()
    assert all(p.requires_grad for p in model.parameters())


# what changes below -----------------------------------------------------------------------------------------------


def test_a_weight_changed_below_is_noticed() -> None:
    model, optimizer, handle = attached()
    train(model, optimizer, 3)
    with torch.no_grad():
        model.bert.embeddings.word_embeddings.weight.mul_(1.5)
    with pytest.warns(ReallocWarning, match="RA102"):
        losses = train(model, optimizer, 6, first=3)
    assert handle.hits == 0.0
    plain, other, _ = attached(method=methods.topk(2, cache=None))
    train(plain, other, 3)
    with torch.no_grad():
        plain.bert.embeddings.word_embeddings.weight.mul_(1.5)
    assert losses == pytest.approx(train(plain, other, 6, first=3), abs=1e-4)


def test_a_weight_changed_behind_its_version_is_noticed_within_a_round() -> None:
    model, optimizer, _ = attached()
    train(model, optimizer, 3)
    model.bert.encoder.layer[0].output.dense.weight.data.mul_(1.5)
    with pytest.warns(ReallocWarning, match="RA102"):
        train(model, optimizer, 60, first=3)


@pytest.mark.parametrize("how", ["compiled", "forward", "eval"])
def test_a_cache_that_is_never_asked_says_so_once(how: str) -> None:
    model, optimizer = fresh(stack)
    realloc.attach(model, optimizer, methods.topk(1))
    called: Any = (
        torch.compile(model, backend="eager") if how == "compiled" else model.forward if how == "forward" else model
    )
    model.train(how != "eval")
    with pytest.warns(ReallocWarning, match="RA106") as said:
        for _ in range(25):
            called(torch.randn(6, 6)).sum().backward()
            optimizer.step()
    assert [str(one.message).count("RA106") for one in said] == [1]


def test_a_cache_that_is_asked_late_says_nothing() -> None:
    model, optimizer = fresh(stack)
    realloc.attach(model, optimizer, methods.topk(1))
    for number in range(25):
        (model.forward if number < 9 else model)(torch.randn(6, 6)).sum().backward()
        optimizer.step()


def test_it_switches_itself_off_where_nothing_is_found_again() -> None:
    model, _, handle = attached(method=methods.topk(2, cache=Cache(epoch=24)))
    draw = torch.Generator().manual_seed(0)
    with pytest.warns(ReallocWarning, match="RA103.*off"):
        for _ in range(8):
            model(torch.randint(5, 60, (8, 5), generator=draw)).logits.sum().backward()
    assert handle.hits is None
    assert handle.cached_bytes == 0


def test_a_second_epoch_that_finds_its_examples_keeps_it_on() -> None:
    model, optimizer, handle = attached(method=methods.topk(2, cache=Cache(epoch=24)))
    train(model, optimizer, 12)
    assert handle.hits == 0.75


def test_when_it_is_full_what_is_there_stays() -> None:
    limit = 60 * 32 * 2
    model, optimizer, handle = attached(method=methods.topk(2, cache=Cache(limit=limit)))
    train(model, optimizer, 12)
    assert 0 < handle.cached_bytes <= limit
    assert handle.hits is not None and 0 < handle.hits < 0.75


# leaving and coming back ------------------------------------------------------------------------------------------


def test_detach_gives_the_plain_model_back() -> None:
    model, optimizer = fresh(bert)
    keys, hooks = list(model.state_dict()), sum(len(m._forward_pre_hooks) for m in model.modules())
    handle = realloc.attach(model, optimizer, methods.topk(2))
    train(model, optimizer, 3)
    handle.detach()
    handle.detach()
    assert list(model.state_dict()) == keys
    assert sum(len(m._forward_pre_hooks) for m in model.modules()) == hooks
    assert not any("forward" in m.__dict__ for m in model.modules())
    assert all(p.requires_grad for p in model.parameters())
    realloc.attach(model, optimizer, methods.topk(1))


def test_copies_and_pickles_are_plain() -> None:
    model, optimizer, handle = attached()
    train(model, optimizer, 3)
    rows, _ = texts()
    want = model.eval()(**batch(rows, [0, 1])).logits
    model.train()
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin.eval()(**batch(rows, [0, 1])).logits, want)
        twin.train()(**batch(rows, [0, 1]))
    assert handle.hits == 0.0


def saved(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    return copy.deepcopy({"model": model.state_dict(), "optimizer": optimizer.state_dict()})


@pytest.mark.parametrize("kept", [True, False])
def test_resume_in_the_middle_of_an_epoch(kept: bool, tmp_path: Path) -> None:
    """Bit-equal with the kept file, close with a cold one."""

    def start(name: str) -> tuple[nn.Module, Any, realloc.LayerHandle]:
        return attached(method=methods.topk(2, cache=Cache(file=tmp_path / name)))

    model, optimizer, first = start("rows")
    train(model, optimizer, 4)  # one epoch and a third
    half = saved(model, optimizer)
    losses = train(model, optimizer, 9, first=4)
    first.detach()
    again, its, handle = start("rows" if kept else "others")
    again.load_state_dict(half["model"])
    its.load_state_dict(half["optimizer"])
    found = train(again, its, 9, first=4)
    assert found == (losses if kept else pytest.approx(losses, abs=1e-4))
    assert handle.hits == pytest.approx(48 / 72 if kept else 16 / 40), "counted on, or anew"
    assert handle.steps == 9


def test_a_resumed_run_finds_out_at_the_same_step_that_reading_does_not_pay(tmp_path: Path) -> None:
    draw = torch.Generator().manual_seed(0)
    batches = [torch.randint(5, 60, (8, 5), generator=draw) for _ in range(9)]

    def go(model: nn.Module, first: int) -> list[float]:
        losses = []
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            for number, ids in enumerate(batches[first:], first):
                losses.append(float(model(ids).logits.square().sum()))
                if any("RA103" in str(one.message) for one in said):
                    return [*losses, float(number)]
        return losses

    straight, _, first = attached(method=methods.topk(2, cache=Cache(epoch=24, file=tmp_path / "a")))
    whole = go(straight, 0)
    first.detach()
    assert whole[-1] == 5.0, "the second epoch ends in the sixth batch"
    cut, _, first = attached(method=methods.topk(2, cache=Cache(epoch=24, file=tmp_path / "b")))
    for ids in batches[:4]:
        cut(ids)
    half = copy.deepcopy(cut.state_dict())
    first.detach()
    again, _, _ = attached(method=methods.topk(2, cache=Cache(epoch=24, file=tmp_path / "b")))
    again.load_state_dict(half)
    assert go(again, 4) == whole[4:]


@pytest.mark.parametrize("harm", ["table", "index", "nonsense"])
def test_a_damaged_file_is_left_alone(harm: str, tmp_path: Path) -> None:
    path = tmp_path / "rows"
    model, optimizer, first = attached(method=methods.topk(2, cache=Cache(file=path)))
    train(model, optimizer, 4)
    half = saved(model, optimizer)
    first.detach()
    victim = path if harm == "table" else path.with_name("rows.index")
    data = bytearray(victim.read_bytes())
    data[70 if harm == "table" else -8] ^= 1
    victim.write_bytes(b"?" if harm == "nonsense" else bytes(data))
    if harm == "nonsense":  # it may be somebody else's
        with pytest.raises(ConfigError, match=r"rows\.index' is no index of a cache \(or a damaged one\).*delete it"):
            attached(method=methods.topk(2, cache=Cache(file=path)))
        victim.unlink()
    again, its, handle = attached(method=methods.topk(2, cache=Cache(file=path)))
    again.load_state_dict(half["model"])
    its.load_state_dict(half["optimizer"])
    train(again, its, 5, first=4)
    assert handle.hits == 0.0


def test_a_plain_state_can_be_loaded_and_a_foreign_one_not() -> None:
    plain, _ = fresh(bert, seed=3)
    model, optimizer, handle = attached()
    model.load_state_dict(plain.state_dict())
    train(model, optimizer, 2)
    assert handle.steps == 2
    foreign = model.state_dict() | {"realloc_layers": torch.zeros(3, dtype=torch.int64)}
    with pytest.raises(RecordError, match="realloc_layers"):
        model.load_state_dict(foreign)
