"""The right to train: which layers have it, in a buffer of the model, and what it does to their parameters."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from typing import Final, Literal, final

import torch
from torch import Tensor, nn

from realloc.allocate.layer_costs import CostTable
from realloc.errors import ConfigError, RecordError
from realloc.pool.book import Book

KEY: Final = "realloc_layers"
COSTS: Final = "realloc_layer_costs"
OWN: Final = ("examples", "tokens", "digest", "visits", "hits", "second", "refused", "uncached")  # a rank's own cache
FIELDS: Final = ("format", "seed", "steps", "moves", "number", *OWN)
FORMAT: Final = 3
State = Literal["drop", "keep"]


@final
class Rights:
    """Counts of one attached model, one flag a layer, and a cost table if there is one: the model's state has them.

    Raises:
        ConfigError: a cost table of another number of layers.
    """

    def __init__(self, owner: nn.Module, layers: int, seed: int, costs: CostTable | None = None) -> None:
        self.owner = owner
        if costs is not None and len(costs) != layers:
            raise ConfigError(f"the cost table is of {len(costs)} layers, the model has {layers}; time this model")
        self.book = Book(owner, KEY, FIELDS, FORMAT)
        if self.book.there:  # registered before, so that a checkpoint could be loaded into it
            return
        device = next(owner.parameters()).device
        self.book.register({"seed": seed}, [0] * layers, device)
        if costs is not None:
            table = torch.tensor([costs.forward, costs.inputs, costs.weights], device=device)
            owner.register_buffer(COSTS, table)

    @property
    def on(self) -> tuple[int, ...]:
        """Layers that have the right, ascending."""
        return tuple(layer for layer, flag in enumerate(self.book.tail.tolist()) if flag)

    def give(self, layers: Iterable[int]) -> None:
        """Write which layers have it from now on."""
        flags = self.book.tail
        flags.zero_()
        flags[list(layers)] = 1

    @property
    def costs(self) -> CostTable | None:
        """The cost table that the ledger charges: that of the checkpoint, once one is loaded."""
        table = self.owner._buffers.get(COSTS)
        if table is None:
            return None
        forward, inputs, weights = (tuple(row) for row in table.tolist())
        return CostTable(forward, inputs, weights)

    @property
    def stamp(self) -> int:
        """Equal on ranks that choose alike: counts, rights and the cost table; not what a rank's own cache holds."""
        own = [FIELDS.index(name) for name in OWN]
        kept = [number for place, number in enumerate(self.book.tensor.tolist()) if place not in own]
        return zlib.crc32(repr((kept, self.costs)).encode())

    def check(self, state: dict[str, Tensor], prefix: str) -> None:
        """Validate a state before anything of it is copied; one of a plain model has nothing to say.

        Raises:
            RecordError: it is that of another model or of another version.
        """
        found = state.get(prefix + KEY)
        if found is None:
            return
        if not self.book.fits(found):
            raise RecordError(
                f"{prefix}{KEY} is not that of a model of {len(self.book.tail)} layers in format {FORMAT} "
                "(older versions of realloc wrote others); load the state of a model attached with the same layers"
            )
        flags = found[len(FIELDS) :]
        if bool(((flags != 0) & (flags != 1)).any()) or bool((found[1:] < 0)[1:].any()):
            raise RecordError(f"{prefix}{KEY} holds numbers that no run writes: the state is damaged")
        table, own = state.get(prefix + COSTS), self.owner._buffers.get(COSTS)
        if (table is None) != (own is None):
            counts, remedy = ("FLOPs", "without") if table is None else ("microseconds", "with")
            raise RecordError(f"the state's budget counts {counts}; attach {remedy} method.costing(table) to go on")
        if table is not None and own is not None:
            fits = table.dtype == own.dtype and table.shape == own.shape
            if not fits or not bool(((table >= 1) & (table < 2**53)).all()):
                raise RecordError(f"{prefix}{COSTS} is no cost table of {own.shape[1]} layers: the state is damaged")


def grant(parameters: Iterable[nn.Parameter]) -> None:
    """Let them train. Where their state was dropped, they start with fresh moments and a fresh step count."""
    for parameter in parameters:
        parameter.requires_grad_(True)


def revoke(parameters: Iterable[nn.Parameter], optimizer: torch.optim.Optimizer, state: State) -> None:
    """Stop them. Without a gradient the optimizer skips them, so that neither decay nor momentum moves them on.

    Args:
        parameters: that stop; they stay in their optimizer groups.
        optimizer: that holds them.
        state: "drop" frees their moments; "keep" keeps them for their next turn.
    """
    for parameter in parameters:
        parameter.requires_grad_(False)
        parameter.grad = None
        if state == "drop":
            optimizer.state.pop(parameter, None)


def forget(parameters: Sequence[nn.Parameter]) -> None:
    """Drop gradients that were made only to be looked at."""
    for parameter in parameters:
        parameter.grad = None


def held_by(optimizer: torch.optim.Optimizer) -> frozenset[int]:
    """Ids of the parameters that an optimizer holds."""
    return frozenset(id(p) for group in optimizer.param_groups for p in group["params"])


def moments_bytes(optimizer: torch.optim.Optimizer, parameters: Iterable[nn.Parameter]) -> int:
    """Bytes of optimizer state that some parameters have now."""
    states = [optimizer.state[p] for p in parameters if p in optimizer.state]
    return sum(v.numel() * v.element_size() for state in states for v in state.values() if torch.is_tensor(v))
