"""A frozen `nn.Linear` with a sparse delta: its weights lie in a pool, as those of a packed layer do."""

from __future__ import annotations

from typing import Any, final

from torch import Tensor, nn

from realloc.sites.packed import PackedSite


@final
class DeltaLinear(nn.Linear):
    """`nn.Linear` whose weight is a frozen one plus a delta. A layer becomes one by its class, as a packed one does."""

    realloc_site: PackedSite
    realloc_class: type[nn.Linear]

    def forward(self, input: Tensor) -> Tensor:
        """Apply the layer to ``[..., in_features]``."""
        return self.realloc_site.over(input, self.base, self._parameters["bias"])

    @property
    def base(self) -> Tensor:
        """The frozen weight, without the delta."""
        found = self._parameters["weight"]
        assert found is not None
        return found

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """The weight with its delta, read-only: a new differentiable tensor at each read."""
        total: Tensor = self.base + self.realloc_site.weight().to(self.base.dtype)
        return total

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


def add_delta(module: nn.Linear, site: PackedSite) -> None:
    """Turn a plain layer into one with a delta, in place."""
    original = type(module)
    module.__class__ = DeltaLinear
    state: dict[str, Any] = module.__dict__
    state["realloc_site"], state["realloc_class"] = site, original


def drop_delta(module: DeltaLinear) -> None:
    """Give the layer its old class back. Its weight stays as it is."""
    module.__class__ = module.realloc_class  # type: ignore[assignment]
    del module.__dict__["realloc_site"], module.__dict__["realloc_class"]
