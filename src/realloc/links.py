"""The ways from a model and its parameters back to the engine. A copied or pickled model brings none of them."""

from __future__ import annotations

import weakref
from typing import Any, final

from torch import Tensor, nn

from realloc.engine import Engine
from realloc.pool.flat import FlatPool
from realloc.sites.masked import MaskedSite

LINK = "realloc_link"


@final
class Link:
    """The way from a model to its engine, and to the dense weights it had; a copy or a pickle has neither."""

    def __init__(self, old: dict[str, weakref.ref[nn.Parameter]] | None = None) -> None:
        self.engine: Engine | None = None
        self.old = old or {}
        self.order: list[Tensor | str] = []  # the optimizer's parameters before attach; a packed weight by its name

    def __deepcopy__(self, memo: dict[int, Any]) -> Link:
        return Link()

    def __reduce__(self) -> tuple[type[Link], tuple[()]]:
        return (Link, ())


@final
class Arrival:
    """Tells the engine that a gradient is about to reach a pool; a copied parameter's hook does nothing."""

    def __init__(self, engine: Engine | None = None, pool: FlatPool | None = None) -> None:
        self.engine, self.pool = engine, pool

    def __call__(self, gradient: Tensor) -> None:
        """Run before the pool's gradient is accumulated."""
        if self.engine is not None and self.pool is not None:
            self.engine.on_gradient(self.pool)

    def __deepcopy__(self, memo: dict[int, Any]) -> Arrival:
        return Arrival()

    def __reduce__(self) -> tuple[type[Arrival], tuple[()]]:
        return (Arrival, ())


@final
class Fresh:
    """Lets a masked site forget what was thrown away; a copied parameter's hook does nothing."""

    def __init__(self, site: MaskedSite | None = None) -> None:
        self.site = site

    def __call__(self, gradient: Tensor) -> None:
        """Run before the parameter's gradient is accumulated."""
        if self.site is not None:
            self.site.begin()

    def __deepcopy__(self, memo: dict[int, Any]) -> Fresh:
        return Fresh()

    def __reduce__(self) -> tuple[type[Fresh], tuple[()]]:
        return (Fresh, ())


@final
class Collect:
    """Masks the gradient of a masked site after each backward; a copied parameter's hook does nothing."""

    def __init__(self, site: MaskedSite | None = None) -> None:
        self.site = site

    def __call__(self, parameter: Tensor) -> None:
        """Run after the parameter's gradient is accumulated."""
        if self.site is not None:
            self.site.collect(parameter)

    def __deepcopy__(self, memo: dict[int, Any]) -> Collect:
        return Collect()

    def __reduce__(self) -> tuple[type[Collect], tuple[()]]:
        return (Collect, ())
