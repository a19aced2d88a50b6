"""Coupled dimensions of any model, by torch-pruning's dependency graph: residuals, norms, flattened convolutions."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from realloc.errors import ConfigError
from realloc.find_widths import NORMS, Found, Others, Side


def coupled(root: nn.Module, example: Any) -> tuple[list[Found], Others]:
    """Trace a model once and read off its hidden dimensions.

    The tracer leaves the model in eval mode and draws random numbers; both are put back. It changes nothing else.

    Raises:
        ConfigError: torch-pruning is missing, or cannot trace the model.
    """
    try:
        import torch_pruning  # type: ignore[import-untyped]
    except ImportError:
        raise ConfigError(
            "method.on(example=...) finds coupled dimensions with torch-pruning; pip install 'realloc[width]', or "
            "leave the example out for nn.Sequential and known transformers"
        ) from None
    modes = {module: module.training for module in root.modules()}
    flags = {parameter: parameter.requires_grad for parameter in root.parameters()}
    try:
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            graph = torch_pruning.DependencyGraph().build_dependency(root, example_inputs=example)
    except Exception as error:  # the tracer runs the model's own code
        raise ConfigError(f"torch-pruning cannot trace this model ({type(error).__name__}: {error})"[:300]) from error
    finally:
        for module, mode in modes.items():
            module.training = mode
        for parameter, flag in flags.items():
            parameter.requires_grad_(flag)
    return _groups(root, graph, torch_pruning)


def _groups(root: nn.Module, graph: Any, tracer: Any) -> tuple[list[Found], Others]:
    found: list[Found] = []
    others: Others = []
    seen: set[nn.Module] = set()
    starts = {nn.Linear: tracer.prune_linear_out_channels, nn.Conv2d: tracer.prune_conv_out_channels}
    names = {module: name for name, module in root.named_modules()}
    for module, name in names.items():
        if type(module) not in starts or module in seen or module not in graph.module2node:
            continue
        if isinstance(module, nn.Conv2d) and module.groups > 1:
            others.append((name, "its convolution is grouped"))
            continue
        pairs = list(graph.get_pruning_group(module, starts[type(module)], idxs=[0]))
        sides = [(dep.target.module, graph.is_out_channel_pruning_fn(dep.handler), idxs) for dep, idxs in pairs]
        seen |= {one for one, out, _ in sides if out and type(one) in starts}
        reason = _stuck(sides, names)
        makers = [one for one, out, _ in sides if out and type(one) in starts]
        readers = [(one, len(idxs)) for one, out, idxs in sides if not out and type(one) in starts]
        if reason is None and not readers:
            continue  # an output of the model
        if reason is not None:
            others.append((name, reason))
            continue
        norms = tuple(Side(one) for one, _, _ in sides if type(one) in NORMS)
        width = module.out_features if isinstance(module, nn.Linear) else int(getattr(module, "out_channels", 0))
        joined = "+".join(names[one] for one in dict.fromkeys(makers))
        made, read = tuple(map(Side, dict.fromkeys(makers))), tuple(Side(*pair) for pair in dict(readers).items())
        found.append(Found(joined, width, made, read, norms))
    return found, others


def _stuck(sides: list[tuple[nn.Module, bool, list[int]]], names: dict[nn.Module, str]) -> str | None:
    """Why a dimension cannot move."""
    for module, out, idxs in sides:
        known = type(module) in (nn.Linear, nn.Conv2d, *NORMS)
        if known and isinstance(module, nn.Conv2d) and module.groups > 1:
            return f"{names[module]} is a grouped convolution"
        if known and type(module) in NORMS and not (module.affine and module.track_running_stats):
            return f"{names[module]} has no factor or no running statistics"
        if not known and any(True for _ in module.parameters(recurse=False)):
            return (
                f"{names.get(module, type(module).__name__)} is a {type(module).__name__}, which cannot be resized here"
            )
        if known and list(idxs) != list(range(len(idxs))):
            return f"{names[module]} reads it beside other inputs (a concatenation)"
        if known and out and len(idxs) != 1:
            return f"{names[module]} makes several entries of each unit"
    return None
