"""Which weights take part: patterns, or the field's defaults (norms, biases, embeddings, classifier stay dense)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import final

from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from realloc.errors import ConfigError, nearest, plain
from realloc.methods.method import Where
from realloc.pool.found import movers
from realloc.pool.names import FIRST
from realloc.sites.grid import Grid

LINEAR = (nn.Linear, NonDynamicallyQuantizableLinear)
CONV = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
Holder = tuple[nn.Module, str]


@final
@dataclass(frozen=True, eq=False)
class Chosen:
    """One weight that becomes a site. Tied uses are one weight with several holders."""

    name: str
    parameter: nn.Parameter
    holders: tuple[Holder, ...]
    storage: str
    grid: Grid


@final
@dataclass(frozen=True, eq=False)
class _Weight:
    name: str
    module: str
    parameter: nn.Parameter
    holders: tuple[Holder, ...]

    @property
    def linear(self) -> bool:
        return all(type(m) in LINEAR and a == "weight" for m, a in self.holders)

    @property
    def conv(self) -> bool:
        return all(isinstance(m, CONV) and a == "weight" for m, a in self.holders)


def choose(root: nn.Module, where: Where) -> tuple[list[Chosen], list[tuple[str, str]]]:
    """Split the model's weights into those that take part and those that stay dense, with the reason.

    The classifier is the last plain nn.Linear that the model declares, in the order of ``named_modules``, not of calls.
    An output tied to an embedding is none; then the last other nn.Linear counts as it, unless layers are named.

    Raises:
        ConfigError: nothing to choose, or a pattern that matches nothing.
    """
    moved, weights = movers(root), list(_weights(root))
    if not weights:
        raise ConfigError(f"{type(root).__name__} has no parameters; give a model with at least one nn.Linear")
    lazy = next((w.name for w in weights if isinstance(w.parameter, nn.parameter.UninitializedParameter)), None)
    if lazy is not None:
        raise ConfigError(f"{lazy} is lazy and has no shape yet; run one batch through the model before attach")
    named = None if where.layers is None else _matched(weights, where.layers, moved)
    excluded = _matched(weights, [p for p in where.exclude if _gone(p, moved) is None], moved)
    last = _classifier(root, weights, moved)
    chosen: list[Chosen] = []
    dense: list[tuple[str, str]] = []
    for weight in weights:
        if named is not None and weight.name not in named:
            continue
        reason = f"{moved[weight.name]} moves it" if weight.name in moved else None
        if reason is not None and named is not None and weight.name not in excluded:
            raise ConfigError(f"{plain(weight.name)} is moved by {moved[weight.name]} already; name other layers")
        reason = reason or _stays_dense(weight, where, named is not None, weight.name in excluded, weight.name == last)
        if reason is None:
            chosen.append(_take(weight, where))
        elif weight.parameter.ndim > 1:
            dense.append((plain(weight.name), reason))
    sizes = sorted({c.grid.size for c in chosen if c.storage == "masked"})
    if len(sizes) > 1:
        raise ConfigError(
            f"columns of masked layers have {sizes} weights; masked layers share one pool of equal units: name layers "
            "of one width with method.on(...), or leave storage out"
        )
    if not chosen:
        dense += [(plain(name), f"{method} moves it") for name, method in moved.items()]
        why = "; ".join(f"{n}: {r}" for n, r in dense[:4]) or "there is no nn.Linear or convolution"
        raise ConfigError(f'no layer takes part ({why}); name layers with method.on("*") or change the model')
    return chosen, dense


def _classifier(root: nn.Module, weights: list[_Weight], moved: Mapping[str, str]) -> str | None:
    """The last linear weight; None where another method has one behind it in a pool."""
    last = next((w for w in reversed(weights) if w.linear), None)
    if last is None:
        return None
    linear = [name for name, module in root.named_modules() if isinstance(module, nn.Linear)]
    behind = linear[linear.index(last.module) + 1 :]
    return None if any(f"{name}.weight" in moved for name in behind) else last.name


def _weights(root: nn.Module) -> Iterator[_Weight]:
    seen: dict[int, tuple[str, str, nn.Parameter, list[Holder]]] = {}
    for module_name, module in root.named_modules():
        for attribute, parameter in module._parameters.items():
            if parameter is None or attribute.startswith(FIRST):
                continue
            full = f"{module_name}.{attribute}" if module_name else attribute
            seen.setdefault(id(parameter), (full, module_name, parameter, []))[3].append((module, attribute))
    for full, module_name, parameter, holders in seen.values():
        yield _Weight(full, module_name, parameter, tuple(holders))


def _matched(weights: list[_Weight], patterns: Sequence[str], moved: Mapping[str, str]) -> set[str]:
    found: set[str] = set()
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise ConfigError(f"layer pattern {pattern!r} is no string; use names such as 'fc1' or 'encoder.*'")
        hits = {w.name for w in weights if _hit(w, pattern)}
        gone = _gone(pattern, moved)
        if not hits and gone is not None:
            raise ConfigError(f"{plain(gone)} is moved by {moved[gone]} already; name other layers")
        if not hits:
            names = sorted({n for w in weights if w.parameter.ndim > 1 for n in (w.module, w.name) if n})
            raise ConfigError(f"pattern {plain(pattern)!r} matches no layer{nearest(pattern, names)}")
        found |= hits
    return found


def _gone(pattern: object, moved: Mapping[str, str]) -> str | None:
    """The first weight of another method that a pattern means; such a weight may be in a pool, and no weight now."""
    parts = ((name, part) for name in moved for part in (name, name.rpartition(".")[0]))
    return next((name for name, part in parts if isinstance(pattern, str) and fnmatchcase(part, pattern)), None)


def _hit(weight: _Weight, pattern: str) -> bool:
    if weight.parameter.ndim < 2:
        return weight.name == pattern
    return fnmatchcase(weight.module, pattern) or fnmatchcase(weight.name, pattern)


def _stays_dense(weight: _Weight, where: Where, named: bool, excluded: bool, last: bool) -> str | None:
    parameter = weight.parameter
    simple = {"excluded": excluded, "frozen": not parameter.requires_grad, "has no weights": parameter.numel() == 0}
    for reason, holds in simple.items():
        if holds:
            return reason
    if parameter.is_meta:
        raise ConfigError(f"{weight.name} is on the meta device; materialise the model before attach")
    if not parameter.dtype.is_floating_point:
        return f"{parameter.dtype} is not a real floating type"
    if not named and last:
        return "the classifier"
    if not named and not (weight.linear or (weight.conv and where.storage != "packed")):
        return "stays dense by default"
    if named and any(getattr(module, "sparse", False) for module, _ in weight.holders):
        raise ConfigError(
            f"{weight.name} gets sparse gradients, which a mask cannot hold; make the layer with sparse=False"
        )
    if named and where.storage == "packed" and not weight.linear:
        raise ConfigError(f'{weight.name} is no plain nn.Linear weight and cannot be packed; use storage="masked"')
    return None


def _take(weight: _Weight, where: Where) -> Chosen:
    parameter = weight.parameter
    height = parameter.shape[0] if parameter.ndim > 1 else parameter.numel()
    width = parameter.numel() // height
    if where.block == "column" and not weight.linear:
        raise ConfigError(
            f"{weight.name} is no plain nn.Linear weight and has no input columns; exclude it, or use another block, "
            "such as (1, 1)"
        )
    r, c = (height, 1) if where.block == "column" else where.block
    if height % r or width % c:
        raise ConfigError(
            f"{weight.name} is {height} x {width} and cannot be cut into blocks of {r} x {c}; "
            "use a block that divides it, or exclude the layer"
        )
    storage = "packed" if weight.linear and where.storage != "masked" else "masked"
    return Chosen(weight.name, parameter, weight.holders, storage, Grid(height, width, r, c))
