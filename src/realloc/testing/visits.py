"""The promises of a method over examples: exactly so many visits, and the same ones again."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Final

import torch

from realloc.methods.example_method import ExampleMethod
from realloc.visits import Visits

COUNT, EPOCHS, BATCH = 60, 8, 6
Trained = list[tuple[list[int], list[float]]]  # of each batch: its examples, and what the loss is worth to each


def _losses(index: torch.Tensor, epoch: int) -> torch.Tensor:
    """Of each example another one, falling."""
    return ((index % 7 + 1).double() / (1 + epoch)).requires_grad_()


def _batches(visits: Visits, stop: int | None = None) -> Trained:
    """What an epoch trains, or the first batches of it; pulled batch by batch, as a loader does."""
    found: Trained = []
    pulled = iter(visits)
    for batch in itertools.islice(iter(lambda: list(itertools.islice(pulled, BATCH)), []), stop):
        index = torch.tensor(batch)
        losses = _losses(index, visits.epoch)
        if visits.method.over > 1:
            places = visits.choose(index, losses.detach())
            index, losses = index[places], losses.detach()[places].requires_grad_()
        loss = visits.loss(index, losses, score=losses.detach() ** 2)
        if index.numel():
            loss.backward()  # type: ignore[no-untyped-call]
            assert losses.grad is not None
            found.append((index.tolist(), losses.grad.tolist()))
    return found


def _made(method: ExampleMethod, seed: int = 3) -> Visits:
    count = max(COUNT, 6 * method.over)
    return Visits(count if method.worth is None else _known(method, count), method, epochs=EPOCHS, seed=seed)


def _known(method: ExampleMethod, count: int) -> int:
    """As many examples as a method knows that was told something of each."""
    assert method.worth is not None
    for tried in range(count, 0, -1):
        try:
            method.worth(torch.arange(tried), torch.ones(tried, dtype=torch.float64))
        except (IndexError, RuntimeError):
            continue
        return tried
    raise AssertionError("worth() takes no example number")


def _exact(method: ExampleMethod) -> str:
    visits = _made(method)
    for number in range(EPOCHS):
        trained = sum(len(index) for index, _ in _batches(visits))
        assert trained == visits.per_epoch[number], f"epoch {number}: {trained} of {visits.per_epoch[number]} visits"
    assert visits.spent + visits.parked == visits.budget, f"{visits.spent} + {visits.parked} is not {visits.budget}"
    return f"{visits.budget} visits, {EPOCHS} epochs"


def _weights(method: ExampleMethod) -> str:
    visits = _made(method)
    for number in range(EPOCHS):
        worth = torch.tensor([one for _, mine in _batches(visits) for one in mine])
        assert bool(worth.isfinite().all()) and bool((worth > 0).all()), f"epoch {number}: a weight is not above 0"
    return "finite and above 0"


def _repeats(method: ExampleMethod) -> str:
    one, two = _made(method), _made(method)
    for number in range(EPOCHS):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(number)
            mine = _batches(one)
            torch.manual_seed(1000 + number)
            assert mine == _batches(two), f"epoch {number}: equal seeds, other visits; use only the generator given"
    return "equal seeds, equal visits"


def _resumes(method: ExampleMethod) -> str:
    straight, stopped = _made(method), _made(method)
    for _ in range(EPOCHS // 2):
        assert _batches(straight) == _batches(stopped)
    wanted = _batches(straight)
    first = _batches(stopped, 2)
    again = _made(method)
    again.load_state_dict(stopped.state_dict())
    assert first + _batches(again) == wanted, "stopped within an epoch, the rest of it is another"
    for number in range(EPOCHS // 2 + 1, EPOCHS):
        assert _batches(straight) == _batches(again), f"epoch {number} is another after a resume"
    return "stopped within an epoch, goes on with the same"


PROMISES: Final[tuple[tuple[str, Callable[[ExampleMethod], str]], ...]] = (
    ("visits exact in every epoch", _exact),
    ("weights are weights", _weights),
    ("same seed, same visits", _repeats),
    ("resume goes on", _resumes),
)
