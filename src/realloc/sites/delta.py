"""A frozen linear layer with a sparse delta: its weights lie in a pool, as those of a packed layer do."""

from __future__ import annotations

from typing import Any, final

from torch import Tensor, nn

from realloc.sites.packed import PackedSite
from realloc.sites.turned import turned


@final
class DeltaLinear(nn.Linear):
    """`nn.Linear` whose weight is a frozen one plus a delta. A layer becomes one by its class, as a packed one does."""

    realloc_site: PackedSite
    realloc_class: type[nn.Module]

    def forward(self, input: Tensor) -> Tensor:
        """Apply the layer to ``[..., in_features]``."""
        return self.realloc_site.over(input, base_of(self), self._parameters["bias"])

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """The weight with its delta, read-only: a new differentiable tensor at each read."""
        return self.realloc_site.sum_with(base_of(self))

    def requires_grad_(self, requires_grad: bool = True) -> DeltaLinear:
        """Freeze or thaw the delta; the weight and the bias stay frozen."""
        self.realloc_site.frozen = not requires_grad
        return self

    def reset_parameters(self) -> None:
        """Refuse: the delta lives in the pool."""
        raise RuntimeError(f"{self.realloc_site.name}: detach() before resetting a layer with a delta")

    def extra_repr(self) -> str:
        """What torch prints, and what is held."""
        return f"{super().extra_repr()}, delta={self.realloc_site.held}"


@final
class DeltaConv1D(nn.Module):
    """`Conv1D` of transformers with a delta over a frozen weight, which is stored ``[in, out]``."""

    realloc_site: PackedSite
    realloc_class: type[nn.Module]

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer to ``[..., in]``."""
        return self.realloc_site.over(x, base_of(self), self._parameters["bias"])

    @property
    def weight(self) -> Tensor:
        """The weight ``[in, out]`` with its delta, read-only: a new differentiable tensor at each read."""
        return self.realloc_site.sum_with(base_of(self)).t()

    def requires_grad_(self, requires_grad: bool = True) -> DeltaConv1D:
        """Freeze or thaw the delta; the weight and the bias stay frozen."""
        self.realloc_site.frozen = not requires_grad
        return self

    def extra_repr(self) -> str:
        """What `nn.Linear` prints, and what is held."""
        out, inward = self.realloc_site.shape
        return f"in_features={inward}, out_features={out}, delta={self.realloc_site.held}"


Delta = DeltaLinear | DeltaConv1D


def base_of(module: Delta) -> Tensor:
    """The weight that the layer came with, without its delta, as ``[out, in]``: a view of what is stored."""
    stored = module._parameters["weight"]
    assert stored is not None
    return stored.t() if isinstance(module, DeltaConv1D) else stored


def add_delta(module: nn.Module, site: PackedSite) -> None:
    """Turn a plain layer into one with a delta, in place."""
    original = type(module)
    module.__class__ = DeltaConv1D if turned(module) else DeltaLinear
    state: dict[str, Any] = module.__dict__
    state["realloc_site"], state["realloc_class"] = site, original


def drop_delta(module: Delta) -> None:
    """Give the layer its old class back. Its weight stays as it is."""
    module.__class__ = module.realloc_class  # type: ignore[assignment]
    del module.__dict__["realloc_site"], module.__dict__["realloc_class"]
