"""What an example is worth a visit: from what the loop reported of it to one number."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import final, get_args

import torch
from torch import Tensor

from realloc.errors import ConfigError, StateError
from realloc.methods.example_method import Need
from realloc.observe.visited import Past


@final
@dataclass(frozen=True)
class ExampleScore:
    """One way to rank examples.

    Args:
        name: as users call it.
        measure: from what is known to one float64 for each example, ``[n]``: 0 or more, NaN where nothing is known.
        needs: what the loop must report: "loss", "score" or nothing.

    Raises:
        ConfigError: ``needs`` is another word.
        StateError: on a call, when the result is not ``[n]`` numbers, or none that says anything.

    >>> seldom = ExampleScore("seldom", lambda past: 1.0 / (1.0 + past.visits))
    >>> seldom(Past(torch.zeros(2), torch.zeros(2), torch.tensor([0, 3]))).tolist()
    [1.0, 0.25]
    """

    name: str
    measure: Callable[[Past], Tensor]
    needs: Need | None = None

    def __post_init__(self) -> None:
        if self.needs not in (None, *get_args(Need)):
            raise ConfigError(f'needs is {self.needs!r}; a loop reports "loss" or "score": name one, or None')

    def __call__(self, past: Past) -> Tensor:
        """Measure and check the shape."""
        found = self.measure(past)
        if not isinstance(found, Tensor):
            raise StateError(
                f"score {self.name!r} gave a {type(found).__name__}; return a tensor, one float an example"
            )
        if found.shape != (len(past),) or not found.is_floating_point():
            raise StateError(
                f"score {self.name!r} gave {found.dtype} of shape {tuple(found.shape)} for {len(past)} examples; "
                "return one float for each"
            )
        known = found[~found.isnan()]
        if bool(known.isinf().any()) or (len(known) == 0 and len(past) and bool((past.visits > 0).any())):
            raise StateError(
                f"score {self.name!r} gave {'Inf' if len(known) else 'NaN for every example, visited ones too'}; it is "
                "0 or more, and NaN only where nothing is known yet"
            )
        return found.double()


gradient_bound = ExampleScore("gradient", lambda past: past.score, "score")
"""What the loop reports as ``score=``: with `realloc.logit_gradient` a bound on the example's gradient (1803.00942)."""

last_loss = ExampleScore("loss", lambda past: past.loss, "loss")
"""The mean loss of the last epoch that visited it."""

nothing = ExampleScore("random", lambda past: torch.ones(len(past), dtype=torch.float64))
"""The control: all examples are worth the same."""
