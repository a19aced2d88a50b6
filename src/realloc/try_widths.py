"""Whether a model's own code follows its widths: asked of the model, by a forward with one unit more."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from realloc.find_widths import Found, Others
from realloc.pool.widths import RUNNING


def call(root: nn.Module, example: Any) -> Any:
    """One forward on an example: a tensor, a tuple of arguments, a mapping of keywords, or what calls a model."""
    if callable(example):
        return example(root)
    if isinstance(example, dict):
        return root(**example)
    return root(*example) if isinstance(example, tuple) else root(example)


@contextmanager
def apart(root: nn.Module) -> Iterator[None]:
    """Forwards that leave modes, running statistics and random streams as they were."""
    modes = {module: module.training for module in root.modules()}
    root.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def that_follow(root: nn.Module, example: Any, found: Sequence[Found]) -> tuple[list[Found], Others]:
    """The dimensions that a model's own code follows, and those that it does not.

    Each gets one unit more, a copy of its first one that nobody reads. Then the forward must run and give what it gave:
    code that counts units, adds them to an input, or gives them out does not.
    """
    with apart(root):
        start = torch.get_rng_state()

        def outputs() -> list[Tensor]:
            torch.set_rng_state(start)
            return [leaf for leaf in tree_leaves(call(root, example)) if isinstance(leaf, Tensor)]

        plain = outputs()
        exact = _differ(plain, outputs(), True) is None  # else the model draws numbers of its own

        def why(those: Sequence[Found]) -> str | None:
            try:
                with _one_more(those):
                    return _differ(plain, outputs(), exact)
            except Exception as error:  # the model's own code may raise anything
                return f"a forward with one unit more failed ({type(error).__name__}: {error})"[:200]

        if why(found) is None:
            return list(found), []
        reasons = [why([one]) for one in found]
    follow = [one for one, reason in zip(found, reasons, strict=True) if reason is None]
    return follow, [(one.name, reason) for one, reason in zip(found, reasons, strict=True) if reason is not None]


def _differ(before: Sequence[Tensor], after: Sequence[Tensor], exact: bool) -> str | None:
    if [one.shape for one in before] != [one.shape for one in after]:
        return "a forward with one unit more gave outputs of other shapes"
    for one, two in zip(before, after, strict=True) if exact else ():
        if one.is_floating_point() and one.numel():
            tolerance = torch.finfo(one.dtype).eps ** 0.5 * float(one.abs().nan_to_num(0.0, 0.0).max())
            if not torch.allclose(one, two, rtol=0.0, atol=tolerance, equal_nan=True):
                return "a forward with one more unit, which nobody reads, gave other outputs"
    return None


@contextmanager
def _one_more(found: Sequence[Found]) -> Iterator[None]:
    """For a while, one unit more in each dimension."""
    saved: list[tuple[dict[str, Any], str, Tensor]] = []

    def put(place: dict[str, Any], name: str, value: Tensor) -> None:
        saved.append((place, name, place[name]))
        place[name] = nn.Parameter(value, requires_grad=False) if isinstance(place[name], nn.Parameter) else value

    try:
        for one in found:
            for side in (*one.makers, *one.norms):
                for place in (side.module._parameters, side.module._buffers):
                    for name in ("weight", "bias", *RUNNING):
                        old = place.get(name)
                        if old is not None:
                            put(place, name, torch.cat([old, old[: side.block]]))
            for side in one.readers:
                weight = side.module._parameters["weight"]
                assert weight is not None
                put(side.module._parameters, "weight", torch.cat([weight, 0 * weight[:, : side.block]], 1))
        yield
    finally:
        for place, name, value in reversed(saved):
            place[name] = value
