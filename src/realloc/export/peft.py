"""A plain LoRA adapter in the files that `peft` and those who read its files know."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

from torch import Tensor, nn

import realloc.record.disk as disk
from realloc.errors import ConfigError, nearest, plain
from realloc.pool.found import find, root_of
from realloc.record.tensors import chunks
from realloc.sites.rank import RankConv1D, Ranked, RankSite

PREFIX: Final = "base_model.model."
TASKS: Final = {
    "ForSequenceClassification": "SEQ_CLS",
    "ForCausalLM": "CAUSAL_LM",
    "ForTokenClassification": "TOKEN_CLS",
}
RETRY: Final = "make room or rights on that disk, then export again"


def peft(model: nn.Module, folder: str | Path, *, base_model_name: str = "", below: str = "") -> Path:
    """Write the ranks, and what trains in full beside them, as a plain LoRA adapter.

    Each layer has its own rank and alpha, ``alpha = scale * rank``; a layer without ranks is left out. Stock `peft`
    loads the folder to the same outputs: ``PeftModel.from_pretrained(base, folder)``.

    Args:
        model: a model with ranks: prepared or attached, wrapped or not; not changed.
        folder: where ``adapter_config.json`` and ``adapter_model.safetensors`` go; made where it is missing.
        base_model_name: what `peft` is told of the model that the adapter is for, a folder or a name.
        below: the part of the model that the adapter is for, by its name, such as ``"encoder"`` where a pre-trained
            encoder stands in a module with a head; all ranks must lie in it, and what else trains is not written.

    Returns:
        The folder.

    Raises:
        ConfigError: a model without ranks, or whose names peft would take for others, or no such part.
        RecordError: the disk refused.

    Example:
        >>> import tempfile, torch, realloc
        >>> from realloc import methods
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 2))
        >>> _ = realloc.prepare(model, methods.lora(rank=2))
        >>> sorted(p.name for p in realloc.export.peft(model, tempfile.mkdtemp()).iterdir())
        ['adapter_config.json', 'adapter_model.safetensors']
    """
    config, tensors = adapter_of(model, base_model_name=base_model_name, below=below)
    target = Path(folder)
    with disk.told("write the adapter to", target, RETRY):
        disk.make_folder(target)
        disk.replace(target / "adapter_model.safetensors", b"".join(chunks(tensors)))
        disk.replace(target / "adapter_config.json", json.dumps(config, indent=2).encode())
    return target


def adapter_of(
    model: nn.Module, *, base_model_name: str = "", below: str = ""
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What `peft` writes: the adapter's config and tensors.

    Raises:
        ConfigError: as `peft` does.
    """
    holdings = find(model)
    root = _part(root_of(model), below)
    layers = {name: m.realloc_site for name, m in root.named_modules() if isinstance(m, Ranked)}
    if holdings is None or not layers:
        raise ConfigError(f"this {type(root).__name__} has no ranks; prepare it with methods.lora(rank=8) or another")
    holdings.stamp()  # refuses a copy whose values and places do not belong together
    held = {name: site for name, site in layers.items() if site.rank}
    outside = next((site.name for site in holdings.sites.values() if site not in layers.values()), None)
    if outside is not None:
        raise ConfigError(f"{plain(outside)} has ranks and is not below {plain(below)!r}; export the whole model")
    if not held:
        raise ConfigError("no layer holds a rank now, so there is no adapter to write; use export.merged(model)")
    beside = _trained(root)
    return _config(root, held, sorted(beside), base_model_name), _tensors(held, beside)


def _part(root: nn.Module, below: str) -> nn.Module:
    modules = dict(root.named_modules())
    if below not in modules:
        raise ConfigError(f"there is no part {plain(str(below))!r} in this model{nearest(str(below), modules)}")
    found: nn.Module = modules[below]
    return found


def _tensors(held: dict[str, RankSite], beside: dict[str, nn.Module]) -> dict[str, Tensor]:
    found = {}
    for name, site in held.items():
        a, b = site.factors()
        found[f"{PREFIX}{inner(name)}.lora_A.weight"] = a.contiguous()
        found[f"{PREFIX}{inner(name)}.lora_B.weight"] = b.t().contiguous()
    for name, module in beside.items():
        found |= {f"{PREFIX}{inner(name)}.{key}": value.detach() for key, value in module.state_dict().items()}
    return found


def _config(root: nn.Module, held: dict[str, RankSite], beside: Sequence[str], base: str) -> dict[str, Any]:
    names = [inner(name) for name, module in root.named_modules(remove_duplicate=False) if name and module is not root]
    ranks = {inner(name): site.rank for name, site in held.items()}
    alphas = {inner(name): site.scale * site.rank for name, site in held.items()}
    if sum(1 for name in names if name in ranks) < len(ranks) or _twice(root):
        raise ConfigError("a layer with ranks stands in the model under two names, which an adapter cannot say")
    rank, alpha = max(ranks.values()), max(alphas.values(), key=abs)
    even = set(ranks.values()) == {rank} and set(alphas.values()) == {alpha}
    saved = [inner(name) for name in beside]
    turned = any(isinstance(root.get_submodule(name), RankConv1D) for name in held)
    for name in names:
        if any(name.endswith(head) and name != head and name not in saved for head in saved):
            taken = next(head for head in saved if name.endswith(head))
            raise ConfigError(
                f"peft would take {plain(name)!r} for {plain(taken)!r}, which trains in full: it looks at how names "
                "end; rename one of them, or export.merged(model)"
            )
    return {
        "peft_type": "LORA", "task_type": _task(root, saved), "base_model_name_or_path": base or None, "r": rank,
        "lora_alpha": alpha, "target_modules": _targets([*ranks], names), "modules_to_save": saved or None,
        "rank_pattern": {} if even else _pattern(ranks), "alpha_pattern": {} if even else _pattern(alphas),
        "bias": "none", "fan_in_fan_out": turned, "init_lora_weights": True, "inference_mode": True,
        "lora_dropout": 0.0, "use_rslora": False, "use_dora": False,
    }  # fmt: skip


def inner(name: str) -> str:
    """A module's name inside the model that peft wraps."""
    return name.removeprefix(PREFIX)


def _pattern(numbers: dict[str, Any]) -> dict[str, Any]:
    """Keys are regular expressions that match endings, and the first match counts: longest names first."""
    return {re.escape(name): numbers[name] for name in sorted(numbers, key=lambda name: (-name.count("."), name))}


def _targets(targets: Sequence[str], names: Iterable[str]) -> list[str] | str:
    """A list, as most readers expect, unless peft would match a name's ending; then one expression for whole names."""
    ours = set(targets)
    if any(name not in ours and any(name.endswith(f".{target}") for target in ours) for name in names):
        return "|".join(map(re.escape, sorted(ours)))
    return sorted(ours)


def _task(root: nn.Module, saved: Sequence[str]) -> str | None:
    kind = next((task for ending, task in TASKS.items() if type(root).__name__.endswith(ending)), None)
    # peft trains these by itself for the two tasks, so they must be in the file
    own = {"classifier", "score"} & set(saved)
    return kind if kind == "CAUSAL_LM" or own else None


def _twice(root: nn.Module) -> bool:
    every = [module for _, module in root.named_modules(remove_duplicate=False) if isinstance(module, Ranked)]
    return len(every) > len({id(module) for module in every})


def _trained(root: nn.Module) -> dict[str, nn.Module]:
    """The largest modules all of whose parameters train in full, by name."""
    found: dict[str, nn.Module] = {}

    def visit(name: str, module: nn.Module) -> None:
        copies = module._modules.get("modules_to_save")
        if "original_module" in module._modules and isinstance(copies, nn.ModuleDict):  # a wrapper that peft made
            found[name] = next(iter(copies.values()))
            return
        parameters = [p for key, p in module.named_parameters() if not key.startswith("realloc_")]
        if name and parameters and all(p.requires_grad for p in parameters):
            found[name] = module
            return
        if any(
            p is not None and p.requires_grad for k, p in module._parameters.items() if not k.startswith("realloc_")
        ):
            raise ConfigError(
                f"{plain(name) or 'the model'} trains some of its own parameters and not others, which an adapter "
                "cannot say; use export.merged(model)"
            )
        for key, child in module.named_children():
            visit(f"{name}.{key}" if name else key, child)

    visit("", root)
    return found
