from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from toy import attached, batch, intact, masks, net, same, train, weights

import realloc
from realloc import methods
from realloc.errors import ReallocWarning


def schedule(every: int = 2) -> realloc.schedule.Schedule:
    return realloc.every(every, until=1.0, total=60)


def test_a_layer_called_on_its_own() -> None:
    model, optimizer, handle = attached()
    x, y = batch(0)
    by_hand = model[4](model[3](model[2](model[1](model[0](x)))))
    assert torch.equal(by_hand, model(x)) and torch.equal(model[:3](x), model[2](model[1](model[0](x))))
    for step in range(9):  # trained without ever calling the model
        x, y = batch(step)
        optimizer.zero_grad()
        out = model[4](model[3](model[2](model[1](model[0](x)))))
        nn.functional.cross_entropy(out, y).backward()
        optimizer.step()
    straight, other, _ = attached()
    train(straight, other, 0, 9)
    assert handle.moves == 2 and same(weights(model), weights(straight))


def test_eval_no_grad_and_inference_mode_between_steps() -> None:
    model, optimizer, handle = attached()

    def look(step: int) -> None:
        x, _ = batch(step + 500)
        model.eval()
        with torch.no_grad():
            a = model(x)
        with torch.inference_mode():
            b = model(x)
        model.train()
        assert torch.equal(a, b) and not a.requires_grad

    train(model, optimizer, 0, 9, look)
    straight, other, second = attached()
    train(straight, other, 0, 9)
    assert same(weights(model), weights(straight)) and handle.moves == second.moves == 2


def test_a_forward_that_raises_leaves_no_view_behind() -> None:
    model, optimizer, handle = attached()
    with pytest.raises(RuntimeError):
        model(torch.zeros(3, 5))
    train(model, optimizer, 0, 5)
    assert handle.moves == 1
    intact(handle)


def test_gradients_for_an_input_alone_do_not_enter_the_decision() -> None:
    """An adversarial example: `torch.autograd.grad` for x, before the step's own backward."""

    def run(attack: bool) -> dict[str, Tensor]:
        model, optimizer, handle = attached()
        for step in range(5):
            x, y = batch(step)
            optimizer.zero_grad()
            if attack:
                probe = (50 * x).requires_grad_()
                torch.autograd.grad((100 * model(probe)).square().sum(), probe)
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
        assert handle.moves == 1
        return masks(handle)

    assert same(run(True), run(False))


class Checkpointed(nn.Module):
    def __init__(self, reentrant: bool | None) -> None:
        super().__init__()
        self.inside = net()
        self.reentrant = reentrant

    def forward(self, x: Tensor) -> Tensor:
        if self.reentrant is None:
            return self.inside(x)
        if self.reentrant:
            x = x.requires_grad_()
        x = checkpoint(self.inside[:2], x, use_reentrant=self.reentrant)
        x = checkpoint(self.inside[2:4], x, use_reentrant=self.reentrant)
        return self.inside[4](x)


@pytest.mark.parametrize("storage", ["packed", "masked"])
@pytest.mark.parametrize("reentrant", [True, False])
def test_activation_checkpointing(reentrant: bool, storage: str) -> None:
    ends = []
    for kind in (reentrant, None):
        model = Checkpointed(kind).double()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        method = methods.rigl(density=0.2).on("*", storage=storage)
        handle = realloc.attach(model, optimizer, method, schedule=schedule(4))
        train(model, optimizer, 0, 9, dtype=torch.float64)
        assert handle.moves == 2
        ends.append((masks(handle), weights(model)))
    assert same(ends[0][0], ends[1][0])
    assert all(torch.allclose(ends[0][1][k], ends[1][1][k], atol=1e-10) for k in ends[0][1])


def encoder(dtype: torch.dtype = torch.float64) -> nn.TransformerEncoder:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 4, 32, dropout=0.0, batch_first=True, dtype=dtype)
    return nn.TransformerEncoder(layer, 2)


ALL = ("*.linear1", "*.linear2", "*.out_proj")


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_a_transformer_in_train_and_on_the_fast_path_of_eval() -> None:
    model = encoder()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    handle = realloc.attach(model, optimizer, methods.rigl(density=0.3).on(*ALL), schedule=schedule())
    assert len(handle.sites) == 6 and {s.storage for s in handle.sites.values()} == {"packed"}
    x = torch.randn(3, 5, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    mask = torch.zeros(3, 5, dtype=torch.bool)
    mask[0, 3:] = True
    moved = masks(handle)
    for _ in range(6):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
    assert handle.moves == 3
    for name, before in moved.items():  # growth by gradient also where the weight is read without forward
        assert not torch.equal(before, handle.mask(name)), name
    intact(handle)
    dense = realloc.export.dense(model)
    for mode in (True, False):
        for m in (model, dense):
            m.train(mode)
        with torch.no_grad():
            assert torch.allclose(model(x), dense(x), atol=1e-10)
            if not mode:
                a, b = (m(x, src_key_padding_mask=mask) for m in (model, dense))
                assert torch.allclose(a, b, atol=1e-10)
    assert all(s.held > 0 for s in handle.sites.values())


def test_packed_and_masked_transformers_move_alike() -> None:
    """The gradient that an attention's out_proj shows through its weight is the right one."""
    ends = []
    for storage in ("packed", "masked"):
        model = encoder()
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-2, momentum=0.9)
        method = methods.rigl(density=0.3).on(*ALL, storage=storage)
        handle = realloc.attach(model, optimizer, method, schedule=schedule())
        x = torch.randn(3, 5, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        for _ in range(6):
            optimizer.zero_grad()
            model(x).pow(3).mean().backward()
            optimizer.step()
        ends.append(masks(handle))
    assert same(*ends)


def test_masked_in_proj_of_attention() -> None:
    torch.manual_seed(0)
    model = nn.MultiheadAttention(16, 4, batch_first=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    method = methods.rigl(density=0.3).on("in_proj_weight", "out_proj")
    handle = realloc.attach(model, optimizer, method, schedule=schedule())
    assert {n: s.storage for n, s in handle.sites.items()} == {
        "in_proj_weight": "masked",
        "out_proj.weight": "packed",
    }
    x = torch.randn(3, 5, 16)
    for _ in range(6):
        optimizer.zero_grad()
        model(x, x, x)[0].square().mean().backward()
        optimizer.step()
        assert not model.in_proj_weight[~handle.mask("in_proj_weight")].any()
    assert handle.moves == 3
    intact(handle)


class Mixture(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(12, 16)
        self.experts = nn.ModuleList([nn.Linear(16, 16) for _ in range(3)])
        self.head = nn.Linear(16, 4)
        self.used = (0, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        return self.head(sum(self.experts[i](x) for i in self.used).relu())


@pytest.mark.parametrize("storage", ["packed", "masked"])
@pytest.mark.parametrize("settings", [{}, {"fused": True}, {"foreach": True}])
def test_an_unused_expert_comes_out_of_the_step_unchanged(settings: dict[str, bool], storage: str) -> None:
    """Value and moments, through moves: as plain torch skips a weight whose gradient is None."""

    def run(sparse: bool) -> tuple[nn.Module, object]:
        model = Mixture()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1, **settings)
        handle = None
        if sparse:
            method = methods.rigl(density=0.3).on("first", "experts.*", storage=storage)
            handle = realloc.attach(model, optimizer, method, schedule=schedule())
        for step in range(9):
            model.used = (0, 1, 2) if step < 3 else (0, 1)
            if sparse and step == 3:
                before, held = weights(model), masks(handle)
            train(model, optimizer, step, step + 1)
        if sparse:
            after, now = weights(model), masks(handle)
            for name in ("experts.2.weight", "experts.2.bias"):
                assert torch.equal(before[name], after[name])
            assert torch.equal(held["experts.2.weight"], now["experts.2.weight"])
            assert not torch.equal(held["experts.0.weight"], now["experts.0.weight"])
            handle.detach()
            state = optimizer.state[model.experts[2].weight]
            assert state["exp_avg"][now["experts.2.weight"]].any()
            train(model, optimizer, 9, 10)
        return model, handle

    run(True)


def test_moments_of_an_unused_expert_stay_as_they_were() -> None:
    model = Mixture()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    handle = realloc.attach(model, optimizer, methods.static(0.3).on("experts.*"), schedule=schedule())
    train(model, optimizer, 0, 3)
    pool = handle.sites["experts.2.weight"].pool
    first, last = pool.bounds(2)
    before = {k: v[first:last].clone() for k, v in optimizer.state[pool.parameter].items() if v.ndim}
    model.used = (0, 1)
    train(model, optimizer, 3, 6)
    for key, value in before.items():
        assert torch.equal(value, optimizer.state[pool.parameter][key][first:last]), key


@pytest.mark.parametrize("storage", ["packed", "masked"])
def test_a_layer_frozen_by_hand_after_attach(storage: str) -> None:
    model, optimizer, handle = attached(methods.rigl(density=0.2).on("*", storage=storage), weight_decay=0.1)
    train(model, optimizer, 0, 3)
    before, held = weights(model), handle.mask("2")
    model[2].requires_grad_(False)
    train(model, optimizer, 3, 10)
    assert torch.equal(before["2.weight"], weights(model)["2.weight"]) and torch.equal(held, handle.mask("2"))
    assert not torch.equal(before["0.weight"], weights(model)["0.weight"]) and handle.moves == 2
    model[2].requires_grad_(True)
    train(model, optimizer, 10, 16)
    assert not torch.equal(before["2.weight"], weights(model)["2.weight"])
    assert not torch.equal(held, handle.mask("2"))


def test_freezing_the_whole_model_after_attach() -> None:
    model, optimizer, handle = attached()
    train(model, optimizer, 0, 3)
    before = weights(model)
    model.requires_grad_(False)
    assert not model(batch(0)[0]).requires_grad
    model.requires_grad_(True)
    train(model, optimizer, 3, 5)
    assert handle.moves == 1 and not same(before, weights(model))


def test_a_layer_frozen_before_attach_stays_dense_and_still() -> None:
    model = net()
    model[0].requires_grad_(False)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    frozen = model[0].weight.detach().clone()
    handle = realloc.attach(model, optimizer, methods.rigl(density=0.2), schedule=schedule())
    assert [*handle.sites] == ["2.weight"]
    assert ("0.weight", "frozen") in handle.start.dense
    train(model, optimizer, 0, 5)
    assert torch.equal(frozen, model[0].weight) and handle.moves == 2


class Tied(nn.Module):
    def __init__(self, tied: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two = nn.Linear(12, 12), nn.Linear(12, 12)
        self.head = nn.Linear(12, 4)
        self.two.weight = self.one.weight if tied else self.two.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.two(self.one(x).relu()).relu())


@pytest.mark.parametrize("storage", ["packed", "masked"])
def test_tied_weights_count_once_and_get_both_gradients(storage: str) -> None:
    model = Tied().double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    method = methods.rigl(density=0.25).on("one", storage=storage)
    handle = realloc.attach(model, optimizer, method, schedule=schedule(1))
    assert [*handle.sites] == ["one.weight"] and handle.budget == 36
    dense = realloc.export.dense(model)
    assert dense.one.weight is dense.two.weight
    x, y = batch(0, dtype=torch.float64)
    for m in (model, dense):
        nn.functional.cross_entropy(m(x), y).backward()
    before = handle.mask("one")
    site = handle.sites["one.weight"]
    mine, wanted = site.gradient_of_held().flatten(), dense.one.weight.grad[before]
    assert torch.allclose(mine, wanted, atol=1e-12)
    # the rule by hand: 30 % of 36 dropped, as many acquired where the sum of both gradients is largest
    optimizer.step()
    phase = 1 / 60
    import math

    count = math.floor(0.3 * (1 + math.cos(math.pi * phase)) / 2 * 36)
    kept = dense.one.weight.abs().masked_fill(~before, -1).flatten().topk(36 - count).indices
    stay = torch.zeros(144, dtype=torch.bool).index_fill(0, kept, True)
    grown = dense.one.weight.grad.abs().flatten().masked_fill(stay, -1).topk(count).indices
    assert torch.equal(handle.mask("one").flatten(), stay.index_fill(0, grown, True))
    handle.detach()
    assert model.one.weight is model.two.weight


def test_an_embedding_tied_to_its_head_stays_dense() -> None:
    class Language(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.inside, self.head = nn.Embedding(20, 8), nn.Linear(8, 8), nn.Linear(8, 20, bias=False)
            self.head.weight = self.words.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.inside(self.words(x)))

    model = Language()
    optimizer = torch.optim.AdamW(model.parameters())
    plan = realloc.prepare(model, methods.rigl(density=0.5).on("inside"), dry_run=True)
    assert [s.name for s in plan.sites] == ["inside.weight"]
    handle = realloc.attach(model, optimizer, methods.rigl(density=0.5).on("inside", "words"), schedule=schedule())
    assert handle.sites["words.weight"].storage == "masked"
    for _ in range(4):
        optimizer.zero_grad()
        model(torch.arange(20)).square().mean().backward()
        optimizer.step()
    assert handle.moves == 2 and model.head.weight is model.words.weight
    intact(handle)


def test_a_convolutional_net_in_channels_last() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.Conv2d(8, 8, 3, groups=2), nn.Flatten(),
        nn.Linear(32, 4),
    ).to(memory_format=torch.channels_last)  # fmt: skip
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    handle = realloc.attach(model, optimizer, methods.rigl(density=0.3), schedule=schedule())
    x = torch.randn(4, 3, 6, 6).to(memory_format=torch.channels_last)
    for _ in range(6):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
        for name in handle.sites:
            weight = model.get_parameter(name)
            outside = ~handle.mask(name)
            assert not weight[outside].any() and not optimizer.state[weight]["momentum_buffer"][outside].any()
    assert handle.moves == 3 and model[0].weight.is_contiguous(memory_format=torch.channels_last)
    intact(handle)


def test_freezing_a_container_after_attach_is_named():
    inside = nn.Sequential(nn.Linear(6, 8), nn.ReLU())
    model = nn.Sequential(inside, nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    realloc.attach(model, optimizer, methods.rigl(density=0.5), schedule=realloc.every(2, total=10))
    inside.requires_grad_(False)
    with pytest.warns(ReallocWarning, match=r"RA004.*0\.0\.weight.*on the layer itself"):
        for _ in range(2):
            optimizer.zero_grad()
            model(torch.randn(4, 6)).square().mean().backward()
            optimizer.step()
