"""Which optimizers may share a pool is asked of the optimizer itself."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import realloc
from realloc import methods
from realloc.errors import ConfigError
from realloc.pool.probe import fresh_state

FUSED = {torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.Adagrad}
ACCEPTED = [
    (torch.optim.SGD, {"lr": 0.1}),
    (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-4}),
    (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True, "maximize": True}),
    (torch.optim.Adam, {"amsgrad": True}),
    (torch.optim.AdamW, {"weight_decay": 0.1}),
    (torch.optim.RMSprop, {}),
    (torch.optim.RMSprop, {"centered": True, "momentum": 0.9}),
    (torch.optim.Adagrad, {"initial_accumulator_value": 0.1}),
    (torch.optim.NAdam, {"momentum_decay": 0.01}),
    (torch.optim.RAdam, {}),
    (torch.optim.Adamax, {}),
    (torch.optim.Adadelta, {}),
    (torch.optim.ASGD, {}),
    (torch.optim.Rprop, {}),
]


class Lamb(torch.optim.Optimizer):
    """Layerwise rates: the norm of the whole tensor is in each element's update."""

    def __init__(self, params, lr=1e-2):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["m"], state["v"] = torch.zeros_like(p), torch.zeros_like(p)
                state["m"].lerp_(p.grad, 0.1)
                state["v"].lerp_(p.grad.square(), 0.01)
                update = state["m"] / (state["v"].sqrt() + 1e-6)
                trust = p.norm().clamp(min=1e-3) / update.norm().clamp(min=1e-3)
                p.add_(update * trust, alpha=-group["lr"])


def net(width: int = 8) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, width), nn.Tanh(), nn.Linear(width, 4)).double()


def train(model: nn.Module, optimizer: torch.optim.Optimizer, handle: realloc.Handle, steps: int) -> None:
    for number in range(steps):
        x = torch.randn(16, 6, generator=torch.Generator().manual_seed(number), dtype=torch.float64)
        optimizer.zero_grad()
        (model(x) - x[:, :4]).square().mean().backward()
        optimizer.step()
        assert handle.held + handle.parked == handle.budget
        assert handle.held == sum(int(handle.mask(name).sum()) for name in handle.sites)


FORMS = [
    pytest.param(cls, settings, form, id=f"{cls.__name__}-{'-'.join(settings) or 'default'}-{form}")
    for cls, settings in ACCEPTED
    for form in ("plain", "foreach", "fused", "automatic")
    if form != "fused" or cls in FUSED
]


@pytest.mark.parametrize(("cls", "settings", "form"), FORMS)
def test_elementwise_optimizers_are_accepted(cls, settings, form):
    flags = {"plain": {"foreach": False}, "foreach": {"foreach": True}, "fused": {"fused": True}}.get(form, {})
    model = net()
    optimizer = cls(model.parameters(), **settings, **flags)
    groups = len(optimizer.param_groups)
    handle = realloc.attach(model, optimizer, methods.rigl(0.4).on("*"), schedule=realloc.every(2, total=8))
    assert len(optimizer.param_groups) == groups  # and the probe leaves nothing behind:
    assert all(float(state["step"]) == 0 for state in optimizer.state.values()), "Adagrad alone has state before a step"
    train(model, optimizer, handle, 8)
    assert handle.moves > 1


def not_elementwise(name: str, model: nn.Module) -> torch.optim.Optimizer:
    matrices = [p for p in model.parameters() if p.ndim == 2]
    return {
        "Adafactor": lambda: torch.optim.Adafactor(model.parameters(), lr=1e-2),
        "Muon": lambda: torch.optim.Muon(matrices, lr=1e-2),
        "LBFGS": lambda: torch.optim.LBFGS(model.parameters()),
        "Lamb": lambda: Lamb(model.parameters()),
        "SparseAdam": lambda: torch.optim.SparseAdam(model.parameters()),
    }[name]()


@pytest.mark.parametrize("name", ["Adafactor", "LBFGS", "Lamb", "Muon", "SparseAdam"])
def test_others_are_refused_by_name_with_the_remedy(name):
    model = net()
    optimizer = not_elementwise(name, model)
    before = [id(p) for p in model.parameters()]
    with pytest.raises(ConfigError, match=rf'optimizer {name} cannot share a pool.*storage="masked"'):
        realloc.attach(model, optimizer, methods.rigl(0.4).on("*"), schedule=realloc.every(2, total=8))
    assert [id(p) for p in model.parameters()] == before and not optimizer.state  # nothing was changed
    assert [id(p) for g in optimizer.param_groups for p in g["params"]] == [i for i in before if i in {
        id(p) for g in optimizer.param_groups for p in g["params"]}]  # fmt: skip


@pytest.mark.parametrize("name", ["Adafactor", "Lamb", "Muon"])
def test_the_remedy_works(name):
    model = net(16)
    optimizer = not_elementwise(name, model)
    method = methods.rigl(0.4).on("*", storage="masked")
    handle = realloc.attach(model, optimizer, method, schedule=realloc.every(2, total=20))
    train(model, optimizer, handle, 20)
    assert handle.moves > 4
    for site in handle.sites:
        assert not bool(model.get_parameter(site)[~handle.mask(site)].any())


@pytest.mark.parametrize(
    ("cls", "settings", "expected"),
    [
        (torch.optim.Adagrad, {"initial_accumulator_value": 0.25}, {"sum": 0.25}),
        (torch.optim.Rprop, {"lr": 0.02}, {"prev": 0.0, "step_size": 0.02}),
        (torch.optim.AdamW, {}, {"exp_avg": 0.0, "exp_avg_sq": 0.0}),
        (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}, {"momentum_buffer": 0.0}),
        (torch.optim.SGD, {"lr": 0.1}, {}),
    ],
)
def test_what_a_fresh_instance_writes(cls, settings, expected):
    like = torch.zeros(3, 3)
    optimizer = cls([nn.Parameter(like)], **settings)
    assert fresh_state(optimizer, optimizer.param_groups[0], like) == pytest.approx(expected)


def test_a_rate_of_zero_in_a_warm_up_does_not_blind_the_probe():
    model = net()
    optimizer = Lamb(model.parameters(), lr=0.0)
    with pytest.raises(ConfigError, match="Lamb"):
        realloc.attach(model, optimizer, methods.rigl(0.4).on("*"), schedule=realloc.every(2, total=8))
