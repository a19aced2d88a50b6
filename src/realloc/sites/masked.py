"""A masked weight: any parameter, a dense tensor and a mask. Right everywhere; saves no time and no memory."""

from __future__ import annotations

from typing import ClassVar, final

import torch
from torch import Tensor, nn

from realloc.sites.grid import Grid
from realloc.sites.last_gradient import LastGradient, thrown_away
from realloc.sites.seat import Masks


@final
class MaskedSite:
    """One parameter of which only the masked-in weights live. ``held`` and ``capacity`` count weights."""

    storage: ClassVar[str] = "masked"
    compute: ClassVar[str] = "dense"

    def __init__(self, name: str, grid: Grid, pool: Masks, index: int, holder: tuple[nn.Module, str]) -> None:
        self.name = name
        self.grid = grid
        self.pool = pool
        self.index = index
        self.holder = holder
        self.armed = False
        self.dense_gradient: Tensor | None = None
        self.touched = False
        self._last = LastGradient()

    def __repr__(self) -> str:
        return f"MaskedSite({self.name!r}, held={self.held:,} of {self.capacity:,})"

    @property
    def parameter(self) -> nn.Parameter:
        """The dense parameter, where the user's module has it."""
        found = self.holder[0]._parameters[self.holder[1]]
        assert found is not None
        return found

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the parameter."""
        return tuple(self.parameter.shape)

    @property
    def capacity(self) -> int:
        """Weights in the parameter."""
        return self.parameter.numel()

    @property
    def held(self) -> int:
        """Weights held now."""
        return int(self.pool.mask(self.index).sum())

    def mask(self) -> Tensor:
        """Bool, of the parameter's shape."""
        return self.pool.mask(self.index).view(self.shape)

    def places(self) -> Tensor:
        """Sorted int64 places of the held units."""
        flat = self.pool.mask(self.index)
        if self.grid.size > 1:
            flat = self.grid.fold(flat.view(self.grid.height, self.grid.width))[:, 0]
        return flat.nonzero().flatten()

    def values(self) -> Tensor:
        """``[units, size]``, gathered; no gradient."""
        return self.parameter.detach().reshape(-1)[self.grid.elements(self.places())]

    def gradient_of_held(self) -> Tensor | None:
        """``[units, size]``, the optimizer's gradient of the held units, or None."""
        grad = self.parameter.grad
        return None if grad is None else grad.reshape(-1)[self.grid.elements(self.places())]

    # what a backward brings -------------------------------------------------------------------------------------

    def arm(self, armed: bool) -> None:
        """Before the first backward of a step: whether its dense gradient is to be kept."""
        self.armed = armed
        self.forget()

    def forget(self) -> None:
        """After the update: what was seen before it counts no more."""
        self.dense_gradient, self.touched = None, False
        self._last.remember(self.parameter.grad)

    def begin(self) -> None:
        """Before a gradient is accumulated: if the ones before it were thrown away, forget what they showed."""
        if self.touched and thrown_away(self.parameter.grad, self._was_zero):
            self.dense_gradient, self.touched = None, False

    def _was_zero(self) -> bool:
        return self.dense_gradient is not None and not bool(self.dense_gradient[self.mask()].any())

    def collect(self) -> None:
        """Keep the dense gradient of a step on which a move is due, then leave the optimizer only what is held.

        Called once per backward, after accumulation: what was masked before stays masked, so the dense part kept
        is the sum over micro-batches.
        """
        grad = self.parameter.grad
        if grad is None:
            return
        self.touched = True
        outside = ~self.mask()
        if self.armed:
            if self.dense_gradient is None:
                self.dense_gradient = torch.zeros_like(grad)
            self.dense_gradient[outside] += grad[outside]
            self.dense_gradient[~outside] = grad[~outside]
        grad.masked_fill_(outside, 0.0)

    def settle(self, elsewhere: bool) -> None:
        """Before the update: a gradient that no backward brought was set by hand; treat it as one that did.

        ``elsewhere``: whether another rank had a backward; then it is that one's, averaged. If it is still the one
        of the last step, it is masked already, and shows nothing new.
        """
        grad = self.parameter.grad
        if not (self.touched or elsewhere or grad is None) and self._last.set_by_hand(grad):
            self.collect()
