"""The promises of a method that `attach` takes, of whatever kind: what every handle has in common."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any, Final, final

import torch
from torch import Tensor

from realloc.attach import AnyHandle, attach
from realloc.handle import Handle
from realloc.methods.layers import LayerMethod
from realloc.row_handle import RowHandle
from realloc.schedule import every
from realloc.testing.worlds import in_short, world_of

EVERY: Final = 4
STEPS: Final = 6 * EVERY
OURS: Final = "realloc_"  # begins the names of what an attached model has more


@final
class _Run:
    """A method's own small world in training, under AdamW."""

    def __init__(self, method: Any, seed: int = 3) -> None:
        world, short = world_of(method), in_short(method)
        self.model, self._batch = world.model, world.batch
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-2, weight_decay=0.0)
        self.groups = [sorted(group) for group in self.optimizer.param_groups]
        self.handle: AnyHandle = attach(
            self.model, self.optimizer, short, schedule=every(EVERY, until=1.0, total=STEPS), seed=seed
        )

    def step(self, number: int, *, parts: int = 1, scale: float = 1.0) -> None:
        self.optimizer.zero_grad()
        x, y = self._batch(number)
        for part, wanted in zip(x.chunk(parts), y.chunk(parts), strict=True):
            (scale * (self.model(part) - wanted).square().sum() / y.numel()).backward()
        self.optimizer.step()

    def go(self, first: int = 1, last: int = STEPS) -> _Run:
        for number in range(first, last + 1):
            self.step(number)
        return self

    @property
    def moves(self) -> int:
        return self.handle.acquired_rows if isinstance(self.handle, RowHandle) else self.handle.moves

    def account(self, when: str, budget: int) -> None:
        held, parked = self.handle.held, self.handle.parked
        assert held + parked == self.handle.budget == budget, f"{when}: {held} + {parked} is not {budget}"

    def state(self) -> dict[str, Tensor]:
        """All that a checkpoint would have of the model, each tensor a copy."""
        return {name: value.clone() for name, value in self.model.state_dict().items()}


def _apart(one: dict[str, Tensor], two: dict[str, Tensor]) -> str | None:
    """The first tensor that differs, bit by bit; NaN is as good as NaN."""
    return next(
        (name for name in one if not torch.equal(*(s[name].nan_to_num(0.0, 1.0, 2.0) for s in (one, two)))), None
    )


def _budget(method: Any) -> str:
    run = _Run(method)
    budget = run.handle.budget
    run.account("at attach()", budget)
    for number in range(1, STEPS + 1):
        run.step(number)
        run.account(f"step {number}", budget)
        assert run.handle.parked >= 0, f"step {number}: {-run.handle.parked} more is held than the budget has"
    return f"{budget:,}, {STEPS} steps"


def _moves(method: Any) -> str:
    run = _Run(method).go()
    if not method.moves:
        assert run.moves == 0, f"it says that it never moves, and moved {run.moves} times"
        return "it never moves, as it says"
    needed = not isinstance(method, LayerMethod)  # layers may stay where they are
    assert run.moves or not needed, f"nothing moved in {STEPS // EVERY} decisions; see handle.summary()"
    return f"{run.moves} moves"


def _repeats(method: Any) -> str:
    one, two = _Run(method), _Run(method)
    for number in range(1, STEPS + 1):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(number)
            one.step(number)
            torch.manual_seed(1000 + number)
            two.step(number)
        name = _apart(one.state(), two.state())
        assert name is None, f"step {number}: equal seeds, another {name}; use only the generator that is given"
    return "equal seeds, equal bits"


def _resumes(method: Any) -> str:
    straight, stop = _Run(method).go(), STEPS // 2 + 1
    stopped, disk = _Run(method).go(1, stop), io.BytesIO()
    torch.save((stopped.model.state_dict(), stopped.optimizer.state_dict()), disk)
    disk.seek(0)
    model, optimizer = torch.load(disk, weights_only=True)
    again = _Run(method, seed=99)
    again.model.load_state_dict(model)
    again.optimizer.load_state_dict(optimizer)
    again.go(stop + 1)
    name = _apart(straight.state(), again.state())
    assert name is None, f"stopped at step {stop}, {name} ends otherwise"
    return f"stopped at step {stop}, ends bit-equal"


def _nan(method: Any) -> str:
    run = _Run(method).go(1, EVERY - 1)
    budget = run.handle.budget
    run.step(EVERY, scale=float("nan"))
    run.account("after a NaN gradient", budget)
    return "the budget stands"


def _accumulates(method: Any) -> str:
    run = _Run(method)
    budget = run.handle.budget
    for number in range(1, STEPS // 2 + 1):
        run.step(number, parts=4)
        assert run.handle.steps == number, f"{run.handle.steps} steps counted where {number} were taken"
        run.account(f"step {number} of micro-batches", budget)
    return "micro-batches count as one step"


def _detaches(method: Any) -> str:
    run = _Run(method).go(1, STEPS - 2)
    x, _ = run._batch(0)
    run.model.eval()
    before = run.model(x).detach()
    run.handle.detach()
    assert torch.allclose(run.model(x), before, rtol=0, atol=1e-9), "the outputs changed"
    ours = [name for name in run.model.state_dict() if OURS in name]
    assert not ours, f"the state still has {ours}"
    for name, module in run.model.named_modules():
        hooks = [kind for kind in vars(module) if kind.endswith("_hooks") and len(vars(module)[kind]) > 0]
        assert not hooks, f"hooks stayed on {name or 'the model'}: {hooks}"
    left = [kind for kind in vars(run.optimizer) if kind.endswith("_hooks") and len(vars(run.optimizer)[kind]) > 0]
    assert not left, f"hooks stayed on the optimizer: {left}"
    if not isinstance(run.handle, Handle):  # parameters that were replaced come back in groups as attach() found them
        assert [sorted(group) for group in run.optimizer.param_groups] == run.groups, "the groups have other keys"
    run.model.train()
    run.step(STEPS)
    return "no hook, no buffer, trains on"


PROMISES: Final[tuple[tuple[str, Callable[[Any], str]], ...]] = (
    ("budget exact after every step", _budget),
    ("moves happen", _moves),
    ("same seed, same bits", _repeats),
    ("resume is bit-equal", _resumes),
    ("NaN breaks no budget", _nan),
    ("accumulation counts steps", _accumulates),
    ("detach leaves no trace", _detaches),
)
