"""An optimizer's state on its way into and out of a checkpoint: checked by name, order, shape and dtype."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn, optim

from realloc.errors import RecordError, plain

# Their state is elementwise. Fused kernels walk it beside the parameter without looking at its size: another shape or
# dtype there would corrupt the heap.
_ELEMENTWISE = (
    optim.SGD,
    optim.Adam,
    optim.AdamW,
    optim.RMSprop,
    optim.Adagrad,
    optim.NAdam,
    optim.RAdam,
    optim.Adamax,
    optim.Adadelta,
    optim.ASGD,
    optim.Rprop,
)
_REMEDY = "build the optimizer as the run's config.json says, then resume"


def describe_optimizer(optimizer: optim.Optimizer, model: nn.Module) -> dict[str, Any]:
    """Name the class and, in the order of its groups, every parameter: torch itself maps state by position alone."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = [
        [[names.get(id(p)), list(p.shape), str(p.dtype).removeprefix("torch.")] for p in group["params"]]
        for group in optimizer.param_groups
    ]
    return {"class": type(optimizer).__qualname__, "parameters": groups}


def check_optimizer(
    saved: Mapping[str, Any], state: Mapping[str, Any], optimizer: optim.Optimizer, model: nn.Module
) -> None:
    """Check a saved state against the live optimizer, before anything is copied.

    Raises:
        RecordError: another class, group, parameter, order, shape or dtype; by name.
    """
    live = describe_optimizer(optimizer, model)
    if saved["class"] != live["class"]:
        raise RecordError(
            f"the checkpoint is of optimizer {plain(str(saved['class']))}, this is {live['class']}; {_REMEDY}"
        )
    if len(saved["parameters"]) != len(live["parameters"]):
        raise RecordError(
            f"the optimizer had {len(saved['parameters'])} groups and has {len(live['parameters'])}; {_REMEDY}"
        )
    for index, (then, now) in enumerate(zip(saved["parameters"], live["parameters"], strict=True)):
        if then != now:
            pairs = zip(then, now, strict=False)
            odd = next((f"{plain(str(a))} became {plain(str(b))}" for a, b in pairs if a != b), None)
            raise RecordError(
                f"the parameters of optimizer group {index} differ from the checkpoint's: "
                f"{odd or f'{len(then)} became {len(now)}'}; {_REMEDY}"
            )
    _check_groups(state["param_groups"], optimizer)
    kind = next((c for c in type(optimizer).__mro__ if c in _ELEMENTWISE), None)
    unknown = set(state["state"])
    for group, now in zip(state["param_groups"], optimizer.param_groups, strict=True):
        examples: dict[tuple[torch.dtype, torch.device], dict[str, Any]] = {}
        for index, parameter in zip(group["params"], now["params"], strict=True):
            unknown.discard(index)
            entries, where = state["state"].get(index, {}), f"parameter {index} of the optimizer"
            if kind is None:
                _check_live(entries, optimizer.state.get(parameter, {}), where)
            elif entries:
                key = parameter.dtype, parameter.device
                if key not in examples:
                    examples[key] = _example(group, parameter, kind, where)
                _check_elementwise(entries, parameter, examples[key], where)
    if unknown:
        raise RecordError(f"the checkpoint holds optimizer state for an unknown {plain(str(min(map(str, unknown))))}")


def restore_optimizer(state: dict[str, Any], optimizer: optim.Optimizer) -> None:
    """Load a checked state bit-exactly: torch casts floats and integers to the parameter's dtype, this casts back."""
    optimizer.load_state_dict(state)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    ids = [i for group in state["param_groups"] for i in group["params"]]
    for index, parameter in zip(ids, parameters, strict=True):
        for key, saved in state["state"].get(index, {}).items():
            loaded = optimizer.state[parameter].get(key)
            # `step` keeps its dtype in torch's own rule, which knows where fused and capturable want it.
            if key == "step" or not isinstance(saved, Tensor) or not isinstance(loaded, Tensor):
                continue
            if loaded.dtype != saved.dtype and loaded.shape == saved.shape:
                optimizer.state[parameter][key] = saved.to(loaded.device)


def _check_groups(groups: list[dict[str, Any]], optimizer: optim.Optimizer) -> None:
    ids = [i for group in groups for i in group["params"]]
    if len(groups) != len(optimizer.param_groups) or ids != list(range(len(ids))):
        raise RecordError("the optimizer groups of the checkpoint do not fit together; delete this checkpoint")
    for index, (then, now) in enumerate(zip(groups, optimizer.param_groups, strict=True)):
        missing = sorted(set(now) - set(then) - {"param_names"})
        if len(then["params"]) != len(now["params"]) or missing:
            raise RecordError(
                f"optimizer group {index} of the checkpoint lacks {', '.join(map(plain, missing)) or 'parameters'}; "
                f"{_REMEDY}"
            )


def _example(group: Mapping[str, Any], parameter: Tensor, kind: type[optim.Optimizer], where: str) -> dict[str, Any]:
    """Step a throwaway parameter of 3 elements under the saved options: its state shows what belongs where."""
    trial = torch.zeros(3, dtype=parameter.dtype, device=parameter.device, requires_grad=True)
    trial.grad = torch.zeros_like(trial)
    try:
        for value in group.values():
            if isinstance(value, Tensor) and value.numel() != 1:
                raise ValueError("an option is a tensor of many values")
        optimizer = kind([trial])  # type: ignore[call-arg]
        # Copied: the step must not write into a saved tensor.
        options = {k: v.clone() if isinstance(v, Tensor) else v for k, v in group.items() if k != "params"}
        optimizer.param_groups[0].update(options)
        optimizer.step()
    except Exception as error:  # whatever a hostile option makes of torch's own code
        raise RecordError(f"the options of {where} do not work ({plain(repr(error))[:120]}); {_REMEDY}") from None
    return dict(optimizer.state[trial])


def _check_elementwise(entries: Mapping[str, Any], parameter: Tensor, example: Mapping[str, Any], where: str) -> None:
    missing = sorted(set(example) - set(entries) - {"momentum_buffer"})
    if missing:
        raise RecordError(f"{where} lacks {', '.join(map(repr, missing))} in the checkpoint; delete this checkpoint")
    for key, value in entries.items():
        model = example.get(key)
        if isinstance(value, Tensor):
            whole = value.shape == parameter.shape and value.dtype == parameter.dtype
            fits = whole if isinstance(model, Tensor) and model.dim() else whole or value.dim() == 0
        else:
            fits = not isinstance(model, Tensor) and isinstance(value, int | float | None)
            fits = fits or (value is None and key == "momentum_buffer")
        if not fits:
            found = f"{tuple(value.shape)} {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
            raise RecordError(
                f"{plain(str(key))!r} of {where} is {found} in the checkpoint, which does not fit its parameter of "
                f"{tuple(parameter.shape)} {parameter.dtype}; {_REMEDY}"
            )


def _check_live(entries: Mapping[str, Any], live: Mapping[str, Any], where: str) -> None:
    for key, now in live.items():
        then = entries.get(key)
        if isinstance(now, Tensor) and not (isinstance(then, Tensor) and then.shape == now.shape):
            raise RecordError(f"{plain(str(key))!r} of {where} has another shape in the checkpoint; {_REMEDY}")
