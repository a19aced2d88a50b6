"""How far a layer has come from a copy of itself: the plasticity of the lowest layer that trains."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Final, final

import torch
from torch import Tensor, nn
from torch.func import functional_call

from realloc.modes import as_it_was
from realloc.observe.entering import Entering
from realloc.observe.ranks import Ranks

REFERENCE: Final = "realloc_layer_reference"
TESTS: Final = "realloc_layer_tests"
MOST: Final = 512  # tests of one layer that are kept; the oldest go first
HIGHEST, RATE, THAWS, COUNT, FIRST = range(5)


def dissimilarity(now: Tensor, then: Tensor) -> float:
    """``|| rows(A A') - rows(B B') ||_F^2 / b^2``: how differently two outputs see which examples are alike.

    ``rows`` divides each row by its norm. It is the similarity-preserving loss of Tung and Mori 2019 (1907.09682), and
    Egeria's measure (2201.06227). Examples are compared with each other, so one alone tells nothing.

    Args:
        now, then: float ``[b, ...]``, of the same examples, b of 2 or more; computed in float64.

    >>> a = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    >>> dissimilarity(a, 3 * a), round(dissimilarity(a, torch.ones(2, 2)), 4)
    (0.0, 0.2929)
    """
    return float((_alike(now) - _alike(then)).square().sum() / len(now) ** 2)


def _alike(output: Tensor) -> Tensor:
    flat = output.detach().double().flatten(1)
    return nn.functional.normalize(flat @ flat.T, dim=1)


@final
class Plasticity:
    """A copy of one layer, and what each test of that layer gave, in buffers that travel with the model.

    The copy is made when the layer becomes the lowest that trains, exactly. What lies below is frozen then, so the
    layer and its copy take the same input, and one layer run twice stands for a second model.
    """

    def __init__(self, owner: nn.Module, layers: Sequence[nn.Module]) -> None:
        self.owner = owner
        self._layers = layers
        self._entered: Entering | None = None
        self.value: float | None = None  # of this step
        if REFERENCE in owner._buffers:
            return
        every = [p for layer in layers for p in layer.parameters()]
        most = max(sum(p.numel() for p in layer.parameters()) for layer in layers)
        kind = every[0].dtype
        for parameter in every:
            kind = torch.promote_types(kind, parameter.dtype)
        owner.register_buffer(REFERENCE, torch.zeros(most, dtype=kind, device=every[0].device))
        owner.register_buffer(TESTS, torch.zeros(FIRST + MOST, dtype=torch.float64))

    def _buffer(self, name: str) -> Tensor:
        found = self.owner._buffers[name]
        assert found is not None
        return found

    # the step of a test -----------------------------------------------------------------------------------------

    def enter(self, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        """Keep what enters the layer."""
        self._entered = Entering.of(args, kwargs)

    def measure(self, layer: int, ranks: Ranks) -> str | None:
        """Compare the layer with its copy on what entered it, over the examples of all ranks, without dropout.

        Returns:
            Why there is nothing to compare, the same on each rank, or None; then ``value`` is the plasticity.
        """
        entered, self._entered, self.value = self._entered, None, None
        if ranks.largest([int(entered is None)])[0] or entered is None:
            return "nothing was measured: the lowest layer that trains was not run (is this the model you train?)"
        module = self._layers[layer]
        with torch.no_grad(), as_it_was(module):
            module.eval()
            now = ranks.rows(entered.on(entered.hidden.clone()).run(module).flatten(1))
            then = ranks.rows(self._copied(module, entered).flatten(1))
        if len(now) < 2:
            return "nothing was measured: plasticity compares the examples of a batch, and there was one"
        self.value = float(ranks.mean(torch.tensor(dissimilarity(now, then), dtype=torch.float64)))
        return None

    def _copied(self, module: nn.Module, entered: Entering) -> Tensor:
        named = dict(module.named_parameters())
        bounds = accumulate((p.numel() for p in named.values()), initial=0)
        copy = self._buffer(REFERENCE)
        parts = {
            name: copy[a:b].view(p.shape).to(p.dtype)
            for (name, p), (a, b) in zip(named.items(), pairwise(bounds), strict=True)
        }
        output = functional_call(module, parts, entered.args, entered.kwargs)
        return output if torch.is_tensor(output) else output[0]

    # the account of tests ---------------------------------------------------------------------------------------

    def add(self, rate: float) -> None:
        """Write down this step's value, and the learning rate it was trained at."""
        assert self.value is not None
        tests = self._buffer(TESTS)
        count = int(tests[COUNT])
        if count == MOST:
            tests[FIRST:] = tests[FIRST:].roll(-1)
            count -= 1
        tests[FIRST + count] = self.value
        tests[COUNT] = count + 1
        tests[RATE] = rate
        tests[HIGHEST] = max(rate, float(tests[HIGHEST]))
        self.value = None

    def settle(self, before: Sequence[int], after: Sequence[int]) -> None:
        """After a choice: where another layer is the lowest, copy it and begin its account; all back is a thaw."""
        old, new = min(before, default=None), min(after, default=None)
        if new is None or new == old:
            return
        tests = self._buffer(TESTS)
        if old is not None and new < old:
            tests[THAWS] += 1
            tests[HIGHEST] = tests[RATE]
        tests[COUNT] = 0
        flat = torch.cat([p.detach().flatten() for p in self._layers[new].parameters()])
        self._buffer(REFERENCE)[: len(flat)].copy_(flat)

    @property
    def tests(self) -> tuple[float, ...]:
        """The account of the lowest layer that trains, oldest first."""
        tests = self._buffer(TESTS)
        return tuple(tests[FIRST : FIRST + int(tests[COUNT])].tolist())

    @property
    def rate(self) -> float:
        """The learning rate at the last test, as a share of the highest since all layers trained."""
        tests = self._buffer(TESTS)
        highest = float(tests[HIGHEST])
        return float(tests[RATE]) / highest if highest else 1.0

    @property
    def thaws(self) -> int:
        """How often a layer below the lowest came back."""
        return int(self._buffer(TESTS)[THAWS])
