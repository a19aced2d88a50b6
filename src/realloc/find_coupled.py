"""Coupled dimensions of any model, by torch-pruning's dependency graph: residuals, norms, flattened convolutions."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from realloc.errors import ConfigError
from realloc.find_widths import NORMS, Dimensions, Found, Others, Side, is_norm, sizes_of
from realloc.try_widths import that_follow

Sides = list[tuple[nn.Module, bool, list[int]]]  # a layer, whether by its outputs, which entries one unit has there


def coupled(root: nn.Module, example: Any) -> Dimensions:
    """Trace a model once, read off its hidden dimensions, and keep those that its own code follows.

    The tracer leaves the model in eval mode and draws random numbers; both are put back. It changes nothing else.

    Raises:
        ConfigError: torch-pruning is missing, or cannot trace the model.
    """
    try:
        import torch_pruning
    except ImportError:
        raise ConfigError(
            "method.on(example=...) finds coupled dimensions with torch-pruning; pip install 'realloc[width]', or "
            "leave the example out for nn.Sequential and known transformers"
        ) from None
    modes = {module: module.training for module in root.modules()}
    flags = {parameter: parameter.requires_grad for parameter in root.parameters()}
    try:
        for parameter in flags:  # what is frozen has no gradient to follow
            parameter.requires_grad_(parameter.is_floating_point())
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            graph = torch_pruning.DependencyGraph().build_dependency(root, example_inputs=example, verbose=False)
    except Exception as error:  # the tracer runs the model's own code
        raise ConfigError(f"torch-pruning cannot trace this model ({type(error).__name__}: {error})"[:300]) from error
    finally:
        for module, mode in modes.items():
            module.training = mode
        for parameter, flag in flags.items():
            parameter.requires_grad_(flag)
    traced, others = _groups(root, graph, torch_pruning)
    behind = _behind(graph)
    for node in graph.module2node.values():  # they hold each other, and by their gradients the parameters
        node.grad_fn = None
        for links in (node.dependencies, node.inputs, node.outputs):
            links.clear()
    found, more = that_follow(root, example, traced)
    return Dimensions(found, others + more, behind)


def _behind(graph: Any) -> dict[nn.Module, nn.Module]:
    """Layers whose output goes into one norm and nowhere else."""
    found = {}
    for module, node in graph.module2node.items():
        if isinstance(module, nn.Module) and sizes_of(module) is not None:
            then = [one.module for one in node.outputs]
            if len(then) == 1 and type(then[0]) in NORMS and then[0].running_mean is not None:
                found[module] = then[0]
    return found


def _groups(root: nn.Module, graph: Any, tracer: Any) -> tuple[list[Found], Others]:
    found: list[Found] = []
    others: Others = []
    seen: set[nn.Module] = set()
    starts = {nn.Linear: tracer.prune_linear_out_channels, nn.Conv2d: tracer.prune_conv_out_channels}
    names = {module: name for name, module in root.named_modules()}
    for module, name in names.items():
        if type(module) not in starts or module in seen or module not in graph.module2node:
            continue
        size = sizes_of(module)
        if size is None:
            others.append((name, "its convolution is grouped" if _grouped(module) else "its weight is computed"))
            continue
        pairs = list(graph.get_pruning_group(module, starts[type(module)], idxs=[0]))
        sides = [(dep.target.module, graph.is_out_channel_pruning_fn(dep.handler), idxs) for dep, idxs in pairs]
        makers = [one for one, out, _ in sides if out and type(one) in starts]
        readers = [(one, len(idxs)) for one, out, idxs in sides if not out and type(one) in starts]
        seen |= set(makers)
        if not readers:
            continue  # an output of the model
        reason = _stuck(sides, names, size[0])
        if reason is None and any(dep.target.type == tracer.ops.OPTYPE.OUTPUT for dep, _ in pairs):
            reason = "it is among the outputs of the model"
        if reason is not None:
            others.append((name, reason))
            continue
        norms = {one: 1 for one, _, _ in sides if type(one) in NORMS}
        made, read, normed = (_in_order(mine, names) for mine in (dict.fromkeys(makers, 1), dict(readers), norms))
        found.append(Found("+".join(names[side.module] for side in made), size[0], made, read, normed))
    return found, others


def _in_order(blocks: dict[nn.Module, int], names: dict[nn.Module, str]) -> tuple[Side, ...]:
    """As the model lists them: the tracer's order is its own."""
    return tuple(Side(module, blocks[module]) for module in names if module in blocks)


def _grouped(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d) and module.groups > 1


def _stuck(sides: Sides, names: dict[nn.Module, str], width: int) -> str | None:
    """Why a dimension cannot move."""
    for module, out, idxs in sides:
        if isinstance(module, nn.Parameter):
            return f"a parameter of shape {tuple(module.shape)} that is no layer's meets it"
        name = names.get(module, type(module).__name__)
        if type(module) in (nn.Linear, nn.Conv2d, *NORMS):
            size = sizes_of(module) or ((module.num_features,) * 2 if is_norm(module) else None)
            if size is None:
                return f"{name} is a grouped convolution, or a {type(module).__name__} without parameters of its own"
            if out and len(idxs) != 1:
                return f"{name} makes several entries of each unit"
            if list(idxs) != list(range(len(idxs))) or size[0 if out else 1] != width * len(idxs):
                return f"{name} has it beside others (a concatenation)"
        elif any(True for _ in module.parameters(recurse=False)):
            return f"{name} is a {type(module).__name__}, which cannot be resized here"
    return None
