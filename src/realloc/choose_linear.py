"""Which linear layers may hold ranks or a delta, what trains in full beside them, and what stays frozen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import final

import torch
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from realloc.errors import ConfigError, nearest, plain
from realloc.kernels.finite import all_finite
from realloc.methods.beside import Beside
from realloc.sites.adopt import Adopted, adopted_layers
from realloc.sites.quantised import quantised
from realloc.sites.turned import is_linear, turned, upright

PLAIN = (nn.Linear, NonDynamicallyQuantizableLinear)


@final
@dataclass(frozen=True, eq=False)
class Layer:
    """A linear layer that may take part: an `nn.Linear`, or the `Conv1D` of transformers."""

    name: str  # of its weight
    module: nn.Module
    adopted: Adopted | None = None  # what a peft model has there

    @property
    def parameter(self) -> nn.Parameter:
        """Its weight as it is stored."""
        found = self.module._parameters["weight"]
        assert found is not None
        return found

    @property
    def weight(self) -> Tensor:
        """Its weight ``[out, in]``, a view."""
        return upright(self.module, self.parameter)


@final
@dataclass(frozen=True, eq=False)
class Choice:
    """The layers that take part; the names of the parameters that train in full; the other layers, and why."""

    layers: tuple[Layer, ...]
    trained: tuple[str, ...]
    others: tuple[tuple[str, str], ...]


def choose_layers(root: nn.Module, where: Beside, what: str = "ranks") -> Choice:
    """Split a model into layers with ranks, parts that train in full, and the frozen rest. Changes nothing.

    ``what`` the layers are to hold, in words. By default every plain `nn.Linear` and every `Conv1D` of transformers may
    hold it, except those of the task head and an output embedding. The head is all that stands beside the base model of
    a transformers model; elsewhere, the last `nn.Linear` that the model declares. An output embedding is no head: it
    stays frozen.

    Raises:
        ConfigError: no layer to choose, a pattern without a match, or a named layer that cannot hold it.
    """
    adopted = adopted_layers(root)
    if adopted and what != "ranks":
        raise ConfigError(f"a peft model has ranks, no place for {what}; take its merge_and_unload() first")
    if adopted:
        return _adopt(root, where, adopted)
    modules = dict(root.named_modules())
    linear = {name: m for name, m in modules.items() if is_linear(m)}
    output = _output_embedding(root)
    head = _head(root, linear, output) if where.train is None else _matched(modules, where.train, "train")
    within = {name for name in modules if any(name == h or name.startswith(f"{h}.") for h in head)}
    excluded = _matched(linear, where.exclude, "exclude")
    named = None if where.layers is None else _named(modules, linear, where.layers, what)
    layers, others = [], []
    shared = _shared(root)
    for name, module in linear.items():
        if named is not None and name not in named:
            continue
        reason = "excluded" if name in excluded else _unfit(module, shared)
        if reason is None and named is None:
            reason = "the task head" if name in within else "the output embedding" if module is output else None
        if reason is None:
            layers.append(_checked(Layer(f"{name}.weight" if name else "weight", module)))
        elif named is not None and name not in excluded:
            raise ConfigError(f"{plain(name)} cannot hold {what}: {reason}; leave it out of method.on(...)")
        else:
            others.append((plain(name), reason))
    if not layers:
        why = "; ".join(f"{n}: {r}" for n, r in others[:4]) or f"there is no nn.Linear{quantised(root)}"
        raise ConfigError(
            f'no layer of this {type(root).__name__} may hold {what} ({why}); name layers with method.on("*"), or take '
            "a model with nn.Linear layers"
        )
    return Choice(tuple(layers), _trained(root, within, layers), tuple(others))


def freeze_others(root: nn.Module, choice: Choice) -> tuple[str, ...]:
    """Freeze all but the pools and what trains in full, in place. Returns the names of what trained before."""
    ours = {*choice.trained, *(name for name in root._parameters if name.startswith("realloc_pool"))}
    frozen = {name: p for name, p in root.named_parameters() if p.requires_grad and name not in ours}
    for parameter in frozen.values():
        parameter.requires_grad_(False)
    return tuple(frozen)


def notes_of(root: nn.Module, choice: Choice, what: str) -> list[str]:
    """What trains beside, and what does not, for the table that `prepare` returns."""
    named = dict(root.named_parameters())
    head = sum(named[name].numel() for name in choice.trained)
    total = sum(parameter.numel() for parameter in named.values())
    beside = ", ".join(sorted({plain(name.rpartition(".")[0]) for name in choice.trained})) or "nothing"
    return [
        f"trains in full beside the {what}: {beside} ({head:,} parameters)",
        f"frozen: {total - head:,} parameters; detach() lets them train again",
    ]


def pool_dtype(weight: Tensor) -> torch.dtype:
    """Of what trains beside a weight: its own, or float32 where that is half precision."""
    return weight.dtype if weight.element_size() >= 4 else torch.float32


def _adopt(root: nn.Module, where: Beside, adopted: dict[str, Adopted]) -> Choice:
    """The layers of a peft model, all of them; what trains beside them there goes on training."""
    if where != Beside():
        raise ConfigError("a peft model says itself which layers have ranks and what trains; leave out method.on(...)")
    shared = _shared(root)
    for name, found in adopted.items():
        if shared[id(found.layer._parameters["weight"])] > 1:
            raise ConfigError(
                f"{plain(name)} cannot be taken over from peft: its weight is tied to another module's, which detach() "
                "would change too; leave it out of target_modules"
            )
    layers = [_checked(Layer(f"{name}.weight", found.layer, found)) for name, found in adopted.items()]
    inside = tuple(f"{name}." for name in adopted)
    trained = [n for n, p in root.named_parameters() if p.requires_grad and not n.startswith(inside)]
    return Choice(tuple(layers), tuple(trained), ())


def _trained(root: nn.Module, within: set[str], layers: Sequence[Layer]) -> tuple[str, ...]:
    """Parameters of the head that train now; one that a layer outside of it uses too stays frozen."""
    ours = {id(p) for layer in layers for p in layer.module._parameters.values()}
    outside = {
        id(p) for name, m in root.named_modules() if name not in within for p in m._parameters.values() if p is not None
    }
    found = []
    for name, parameter in root.named_parameters():
        owner = name.rpartition(".")[0]
        if owner in within and parameter.requires_grad and id(parameter) not in ours | outside:
            found.append(name)
    return tuple(found)


def _head(root: nn.Module, linear: dict[str, nn.Module], output: nn.Module | None) -> set[str]:
    base = getattr(root, "base_model_prefix", "")
    if base and isinstance(root._modules.get(base), nn.Module):
        beside = [(name, child) for name, child in root.named_children() if name != base and child is not output]
        return {name for name, child in beside if any(True for _ in child.parameters())}
    last = next(reversed(linear), None)
    return set() if last is None or linear[last] is output else {last}


def _output_embedding(root: nn.Module) -> nn.Module | None:
    ask = getattr(root, "get_output_embeddings", None)
    found = ask() if callable(ask) else None
    return found if isinstance(found, nn.Module) else None


def _shared(root: nn.Module) -> dict[int, int]:
    """How many modules hold each parameter."""
    counts: dict[int, int] = {}
    for module in root.modules():
        for parameter in module._parameters.values():
            counts[id(parameter)] = counts.get(id(parameter), 0) + 1
    return counts


def _unfit(module: nn.Module, shared: dict[int, int]) -> str | None:
    weight = module._parameters.get("weight")
    if type(module) not in PLAIN and not turned(module):
        return f"a {type(module).__name__} is no plain nn.Linear (quantised, lazy or of another library)"
    if weight is None:
        return "it has no weight of its own (a parametrization holds it)"
    if not weight.dtype.is_floating_point or weight.element_size() < 2:
        return f"its weight is {weight.dtype}, quantised"
    if shared[id(weight)] > 1:
        return "its weight is tied to another module's, which a change here would not reach"
    if not weight.numel():
        return "it has no weights"
    return None


def _checked(layer: Layer) -> Layer:
    if layer.weight.is_meta:
        raise ConfigError(f"{plain(layer.name)} is on the meta device; materialise the model first")
    if not all_finite(layer.parameter.detach()):
        raise ConfigError(f"{plain(layer.name)} has NaN or Inf among its weights; load the model anew")
    return layer


def _named(
    modules: dict[str, nn.Module], linear: dict[str, nn.Module], patterns: tuple[str, ...], what: str
) -> set[str]:
    """Linear layers that patterns name. A pattern that matches modules, but no linear one, says which."""
    found: set[str] = set()
    for pattern in patterns:
        hits = {name for name in _hits(modules, pattern) if name in linear}
        odd = [name for name in _hits(modules, pattern) if name not in linear and not [*modules[name].children()]]
        if not hits and odd:
            kind = type(modules[odd[0]]).__name__
            raise ConfigError(f"{plain(odd[0])} is a {kind}, no nn.Linear, and cannot hold {what}; name linear layers")
        if not hits:
            raise ConfigError(f"pattern {plain(pattern)!r} matches no linear layer{nearest(pattern, linear)}")
        found |= hits
    return found


def _matched(modules: dict[str, nn.Module], patterns: tuple[str, ...], word: str) -> set[str]:
    found: set[str] = set()
    for pattern in patterns:
        hits = _hits(modules, pattern)
        if not hits:
            raise ConfigError(f"{word} pattern {plain(str(pattern))!r} matches nothing{nearest(str(pattern), modules)}")
        found |= hits
    return found


def _hits(modules: dict[str, nn.Module], pattern: str) -> set[str]:
    if not isinstance(pattern, str):
        raise ConfigError(f"layer pattern {pattern!r} is no string; use names such as '*query*' or 'encoder.*'")
    return {name for name in modules if fnmatchcase(name, pattern) or fnmatchcase(f"{name}.weight", pattern)}
