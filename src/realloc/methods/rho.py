"""RHO: of several candidates, those are trained that are still to be learnt and can be."""

from __future__ import annotations

import torch
from torch import Tensor

from realloc.errors import ConfigError
from realloc.methods.example_method import Draw, ExampleMethod, least_visited
from realloc.observe.visited import Past


def rho(irreducible: Tensor, *, over: int = 10) -> ExampleMethod:
    """Look at every example once an epoch; train on the 1 in ``over`` of each batch with the largest reducible loss.

    Reducible is the loss now less that of a model trained on other data (``irreducible``). Weights are 1: the choice is
    greedy, and biased on purpose. The look is a forward pass over all candidates, which `realloc.Visits.cost` charges.
    Give it batches of ``over`` candidates and more; under `torch.distributed` each rank chooses among its own.

    Source: Mindermann et al. 2022, RHO-LOSS (2206.07137), equation 3 and algorithm 1 (which trains a tenth of
    each batch). The holdout that made ``irreducible`` takes part in training decisions: report on a third split.

    Args:
        irreducible: losses of the holdout model, one for each example, in the order of the data set; finite.
        over: candidates for each trained visit, 2 or more; the budget is 1 in ``over`` of all visits.

    Raises:
        ConfigError: losses that are not one finite number for each example.

    >>> rho(torch.zeros(100), over=4).share
    0.25
    """
    if not torch.is_tensor(irreducible) or irreducible.dim() != 1 or not bool(irreducible.isfinite().all()):
        raise ConfigError("irreducible is no vector of finite losses; give one number for each example of the data set")
    if isinstance(over, bool) or not isinstance(over, int) or over < 2:
        raise ConfigError(f"over is {over!r}; it is a number of candidates for each trained visit, 2 or more")
    known = irreducible.detach().to("cpu", torch.float64, copy=True)

    def draw(past: Past, count: int, random: torch.Generator) -> Draw:
        if known.numel() != len(past):
            raise ConfigError(f"irreducible has {known.numel()} losses and the data set {len(past)} examples")
        return Draw(least_visited(past, count, random), torch.ones(count, dtype=torch.float64))

    return ExampleMethod(
        "rho",
        draw,
        share=1 / over,
        over=over,
        worth=lambda index, losses: losses - known[index],
        reference="2206.07137",
    )
