"""The promises of a method over weights, on a small net and made-up data."""

from __future__ import annotations

import contextlib
import copy
import io
from collections.abc import Callable
from dataclasses import replace
from typing import Final, cast, final, get_args

import torch
from torch import Tensor, nn

from realloc.attach import attach
from realloc.handle import Handle
from realloc.methods.method import Method, Storage
from realloc.schedule import every
from realloc.scores.score import Need
from realloc.scores.seen import Seen

Factory = Callable[[float], Method]
EVERY: Final = 4
MOVES: Final = 6
STEPS: Final = EVERY * MOVES


def made_by(factory: Factory, density: float) -> Method:
    """Call the factory, and refuse what needs no run to be seen."""
    for asked in (density / 2, density):
        method = factory(asked)
        if not isinstance(method, Method):
            raise AssertionError(f"the factory made {method!r}; it must return a realloc.methods.method.Method")
        if method.density != asked:
            raise AssertionError(
                f"{method.name}: the factory was asked for density {asked} and made a method of density "
                f"{method.density}; hand its density on to Method(...)"
            )
    drop = max(method.drop(0.0), method.drop(1.0))
    if drop and method.want is None:
        raise AssertionError(
            f"{method.name}: drop is {drop:g}, but it names no want, so nothing is ever released or acquired; "
            "give it want=..., such as realloc.scores.gradient.gradient, or leave drop out"
        )
    return method


@final
class _Watched:
    """What a score sees, and which undeclared fields it reads."""

    def __init__(self, seen: Seen, needs: frozenset[str], read: set[str]) -> None:
        self._seen, self._needs, self._read = seen, needs, read

    def __len__(self) -> int:
        return len(self._seen)

    def __getattr__(self, name: str) -> object:
        if name in get_args(Need) and name not in self._needs:
            self._read.add(name)
        return getattr(self._seen, name)


def undeclared(method: Method) -> str:
    """The remedy where a score reads what it did not name in its needs, as the tail of a message."""
    places, values = torch.arange(4), torch.ones(4, 1)
    for score in filter(None, (method.place, method.keep, method.want)):
        read: set[str] = set()
        known = dict.fromkeys(score.needs, values)
        seen = Seen(places, (2, 2), places, torch.Generator(), **known)
        # the score may fail here as it did before; what it read is all that counts
        with contextlib.suppress(Exception):
            score.measure(cast(Seen, _Watched(seen, score.needs, read)))
        if read:
            words = ", ".join(f'"{name}"' for name in sorted(read))
            return f"; score {score.name!r} reads {words} without naming it: add {words} to its needs"
    return ""


# one small run ----------------------------------------------------------------------------------------------------


@final
class _Run:
    """A net of two sites in float64, AdamW, and made-up data that depends on the step alone."""

    def __init__(self, method: Method, *, storage: Storage = "packed", seed: int = 3, gap: int = EVERY) -> None:
        self.model, self.optimizer = _plain()
        # columns of layers of different widths are units of different sizes, which masks cannot share a budget for
        layers = ("0",) if method.where.block == "column" else ("*",)
        where = replace(method.where, layers=layers, storage=storage)
        self.skips: list[str] = []
        self.handle: Handle = attach(
            self.model, self.optimizer, replace(method, where=where), schedule=every(gap, total=STEPS), seed=seed,
            record=self,
        )  # fmt: skip

    def decision(self, event: dict[str, object]) -> None:
        """Take one line of the record."""
        if event["kind"] == "skip":
            self.skips.append(str(event["reason"]))

    def step(self, number: int, *, parts: int = 1, scale: float = 1.0) -> None:
        _step(self.model, self.optimizer, number, parts=parts, scale=scale)

    def go(self, first: int = 1, last: int = STEPS) -> _Run:
        for number in range(first, last + 1):
            self.step(number)
        return self

    def masks(self) -> dict[str, Tensor]:
        return {name: self.handle.mask(name) for name in self.handle.sites}


def _plain() -> tuple[nn.Module, torch.optim.Optimizer]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 8)).double()
    return model, torch.optim.AdamW(model.parameters(), lr=1e-2)


def _data(number: int) -> tuple[Tensor, Tensor]:
    x = torch.randn(16, 16, generator=torch.Generator().manual_seed(number), dtype=torch.float64)
    return x, x[:, :8] * x[:, 8:]


def _step(
    model: nn.Module, optimizer: torch.optim.Optimizer, number: int, *, parts: int = 1, scale: float = 1.0
) -> None:
    _backward(model, optimizer, number, parts=parts, scale=scale)
    optimizer.step()


def _backward(
    model: nn.Module, optimizer: torch.optim.Optimizer, number: int, *, parts: int = 1, scale: float = 1.0
) -> None:
    optimizer.zero_grad()
    x, y = _data(number)
    for part, wanted in zip(x.chunk(parts), y.chunk(parts), strict=True):
        (scale * (model(part) - wanted).square().sum() / y.numel()).backward()


def _same(one: dict[str, Tensor], two: dict[str, Tensor]) -> str | None:
    """The first site whose masks differ."""
    return next((name for name in one if not torch.equal(one[name], two[name])), None)


# the promises -----------------------------------------------------------------------------------------------------


def _budget(method: Method) -> str:
    run = _Run(method)
    budget = run.handle.budget
    assert budget > 0, "the budget is empty"
    for number in range(1, STEPS + 1):
        run.step(number)
        held, parked = run.handle.held, run.handle.parked
        assert held + parked == run.handle.budget == budget, f"step {number}: {held} + {parked} is not {budget}"
        if method.held is None:
            assert held == budget, f"step {number}: {budget - held} units were lost"
        total = sum(int(mask.sum()) for mask in run.masks().values())
        assert total == held, f"step {number}: the masks hold {total}, the account {held}"
    return f"{budget} weights, {STEPS} steps"


def _index(method: Method) -> str:
    run = _Run(method)
    for number in range(1, STEPS + 1):
        run.step(number)
        for name, site in run.handle.sites.items():
            places = site.places()
            assert bool((places.diff() > 0).all()), f"step {number}: the places of {name} are not sorted"
            drawn = site.grid.mask(places).view(site.shape)
            assert torch.equal(run.handle.mask(name), drawn), f"step {number}: {name} has two truths"
            assert site.held == int(drawn.sum()) <= site.capacity, f"step {number}: {name} miscounts"
    return f"{len(run.handle.sites)} sites"


def _moves(method: Method) -> str:
    run = _Run(method)
    first = run.masks()
    run.go()
    moved = _same(first, run.masks()) is not None
    if not method.moves:
        assert not moved and not run.handle.moves, "it names no want and no density curve, yet units moved"
        return "it never moves, as it says"
    why = f"; every decision was skipped: {run.skips[0]}" if run.skips else ""
    if not why and method.held is None and not method.drop(0.0) and not method.drop(1.0):
        why = "; drop is 0, so nothing is released: give it drop=..., such as realloc.schedule.cosine(0.3)"
    assert run.handle.moves and moved, f"nothing moved in {MOVES} decisions{why}"
    assert not run.skips, f"a decision was skipped: {run.skips[0]}"
    return f"{run.handle.moves} of {MOVES} decisions, {run.handle.units_moved} units"


def _idle(method: Method) -> str:
    run = _Run(method, storage="masked", gap=STEPS)
    model, optimizer = _plain()
    masks = run.masks()
    with torch.no_grad():
        for name, mask in masks.items():
            model.get_parameter(name).mul_(mask)
    for number in range(1, STEPS):
        run.step(number)
        _backward(model, optimizer, number)
        for name, mask in masks.items():
            gradient = model.get_parameter(name).grad
            assert gradient is not None
            gradient.mul_(mask)
        optimizer.step()
        for name, parameter in model.named_parameters():
            mine = run.model.get_parameter(name)
            assert torch.equal(mine, parameter), f"step {number}: {name} differs from plain masked training"
    return "bit-equal to plain masked training"


def _repeats(method: Method) -> str:
    one, two = _Run(method), _Run(method)
    for number in range(1, STEPS + 1):
        one.step(number)
        two.step(number)
        name = _same(one.masks(), two.masks())
        assert name is None, f"step {number}: equal seeds, other units of {name}; use only the generator it is given"
    return "equal seeds, equal plans"


def _resumes(method: Method) -> str:
    straight, stopped = _Run(method).go(), _Run(method)
    stop = STEPS // 2 + 1
    stopped.go(1, stop)
    disk = io.BytesIO()
    torch.save((stopped.model.state_dict(), stopped.optimizer.state_dict()), disk)
    disk.seek(0)
    model, optimizer = torch.load(disk, weights_only=True)
    again = _Run(method, seed=99)
    again.model.load_state_dict(model)
    again.optimizer.load_state_dict(optimizer)
    again.go(stop + 1)
    for name, value in straight.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[name]), f"stopped at step {stop}, {name} ends otherwise"
    return f"stopped at step {stop}, ends bit-equal"


def _nan(method: Method) -> str:
    run = _Run(method).go(1, EVERY - 1)
    before = run.masks()
    run.step(EVERY, scale=float("nan"))
    assert _same(before, run.masks()) is None, "units moved on a NaN gradient"
    assert run.handle.held + run.handle.parked == run.handle.budget, "the budget broke on a NaN gradient"
    return "no move"


def _accumulates(method: Method) -> str:
    one, two = _Run(method), _Run(method)
    for number in range(1, STEPS // 2 + 1):
        one.step(number)
        two.step(number, parts=4)
        assert two.handle.steps == number, f"{two.handle.steps} steps counted where {number} were taken"
        name = _same(one.masks(), two.masks())
        assert name is None, f"step {number}: four micro-batches choose other units of {name} than one batch"
    return "micro-batches choose as one batch"


def _detaches(method: Method) -> str:
    run = _Run(method).go(1, STEPS - 2)
    plain, optimizer = _plain()
    x, _ = _data(0)
    before = run.model(x).detach()
    run.handle.detach()
    assert torch.allclose(run.model(x), before, rtol=0, atol=1e-12), "the outputs changed"
    assert [*run.model.state_dict()] == [*plain.state_dict()], f"the state has keys {[*run.model.state_dict()]}"
    for mine, theirs in zip(run.model.modules(), plain.modules(), strict=True):
        assert type(mine) is type(theirs), f"a {type(mine).__name__} stayed"
        hooks = [kind for kind in vars(mine) if kind.endswith("_hooks") and len(vars(mine)[kind]) > 0]
        assert not hooks, f"hooks stayed: {hooks}"
    mine_groups, plain_groups = run.optimizer.param_groups, optimizer.param_groups
    assert [g.keys() for g in mine_groups] == [g.keys() for g in plain_groups], "the groups have other keys"
    shapes = [[p.shape for p in g["params"]] for g in mine_groups]
    assert shapes == [[p.shape for p in g["params"]] for g in plain_groups], f"the groups hold {shapes}"
    optimizer.load_state_dict(copy.deepcopy(run.optimizer.state_dict()))
    plain.load_state_dict(run.model.state_dict())
    for number in range(STEPS, STEPS + 3):
        run.step(number)
        _step(plain, optimizer, number)
    assert all(map(torch.equal, run.model.parameters(), plain.parameters())), "the plain model trains otherwise"
    return "plain model, plain optimizer"


def _storages(method: Method) -> str:
    packed, masked = _Run(method), _Run(method, storage="masked")
    for number in range(1, STEPS + 1):
        packed.step(number)
        masked.step(number)
        name = _same(packed.masks(), masked.masks())
        assert name is None, f"step {number}: packed and masked storage chose other units of {name}"
        for name, site in packed.handle.sites.items():
            near = torch.allclose(site.values(), masked.handle.sites[name].values(), rtol=1e-9, atol=1e-12)
            assert near, f"step {number}: packed and masked values of {name} differ"
    return "packed and masked agree"


PROMISES: Final[tuple[tuple[str, Callable[[Method], str]], ...]] = (
    ("budget exact after every step", _budget),
    ("mask and index agree", _index),
    ("moves happen", _moves),
    ("idle means untouched", _idle),
    ("same seed, same plans", _repeats),
    ("resume is bit-equal", _resumes),
    ("NaN moves nothing", _nan),
    ("accumulation counts steps", _accumulates),
    ("detach leaves no trace", _detaches),
    ("storages agree", _storages),
)
