"""Layers of a peft LoRA model, as they are found: A, B and scale, and the plain layer inside. peft is not needed."""

from __future__ import annotations

from dataclasses import MISSING, dataclass, fields
from typing import Any, Final, final

from torch import Tensor, nn

from realloc.errors import ConfigError, plain
from realloc.sites.turned import turned

ELSEWHERE: Final = "train it with stock peft, or take a plain model, merge_and_unload()"
STARTS: Final = (True, False, "gaussian", "orthogonal", "eva")  # of A and B, that leave the base as it is
# fields of peft's LoraConfig that say no more than the layers themselves do, or that the layers are asked about
SEEN: Final = frozenset({
    "task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode",
    "r", "target_modules", "exclude_modules", "lora_alpha", "lora_dropout", "fan_in_fan_out", "use_rslora",
    "modules_to_save", "init_lora_weights", "layers_to_transform", "layers_pattern", "rank_pattern", "alpha_pattern",
    "loftq_config", "eva_config", "corda_config", "lora_ga_config", "runtime_config", "use_dora", "lora_bias",
})  # fmt: skip


@final
@dataclass(frozen=True, eq=False)
class Adopted:
    """One layer of a peft model whose ranks are taken over."""

    layer: nn.Module  # the frozen one inside
    a: Tensor  # [r, in]
    b: Tensor  # [r, out]
    scale: float
    parent: nn.Module
    attribute: str

    def unwrap(self) -> None:
        """Put the plain layer where the wrapper stands."""
        self.parent._modules[self.attribute] = self.layer


def adopted_layers(root: nn.Module) -> dict[str, Adopted]:
    """The LoRA layers of a model, by the name of the wrapper; none in a model that peft did not make.

    Raises:
        ConfigError: a layer that does more than add ``scale * B'A``: several adapters, dropout, DoRA, biases,
            embeddings, merged weights, or a base that is no plain `nn.Linear`; a setting of peft that changes the base
            or trains more than A, B and ``modules_to_save`` (PiSSA, OLoRA, biases, tokens, replicated layers, ...).
    """
    modules = dict(root.named_modules())
    found = {}
    for name, module in modules.items():
        if hasattr(module, "lora_A") and hasattr(module, "base_layer"):
            parent, _, attribute = name.rpartition(".")
            adapter = _only_adapter(name, module)
            reason = _unfit(module, adapter)
            if reason is not None:
                raise ConfigError(f"{plain(name)} cannot be taken over from peft: {reason}")
            a, b = module.lora_A[adapter].weight.detach(), module.lora_B[adapter].weight.detach()
            scale = float(module.scaling[adapter])
            found[name] = Adopted(module.base_layer, a, b.t(), scale, modules[parent], attribute)
    for module in modules.values() if found else ():
        configs = getattr(module, "peft_config", None)
        for config in configs.values() if isinstance(configs, dict) else ():
            _check_config(config)
    return found


def _check_config(config: Any) -> None:
    """Refuse what A, B and scale cannot say, also settings that a later peft may bring."""
    kind = str(getattr(config.peft_type, "value", config.peft_type))
    if kind != "LORA":
        raise ConfigError(f"this peft model has an adapter of type {plain(kind)} beside its LoRA layers; {ELSEWHERE}")
    start = config.init_lora_weights
    if start not in STARTS:
        raise ConfigError(
            f"init_lora_weights={plain(repr(start))[:80]} changes the base or is unknown, and an adapter for the plain "
            f"base would give other outputs; start with True, or {ELSEWHERE}"
        )
    for field in fields(config):
        value = getattr(config, field.name)
        usual = field.default_factory() if field.default_factory is not MISSING else field.default
        if field.name not in SEEN and value != usual:
            raise ConfigError(
                f"this peft model was made with {field.name}={plain(repr(value))[:80]}, which would be lost; leave it "
                f"out, or {ELSEWHERE}"
            )


def _only_adapter(name: str, module: Any) -> str:
    adapters = [*module.lora_A.keys(), *getattr(module, "lora_embedding_A", {}).keys()]
    if len(adapters) != 1 or [*getattr(module, "active_adapters", adapters)] != adapters:
        raise ConfigError(
            f"{plain(name)} has the adapters {', '.join(map(plain, adapters)) or 'none'}; keep one, and have it active"
        )
    return str(adapters[0])


def _unfit(module: Any, adapter: str) -> str | None:
    """Why a layer is no plain LoRA: the first reason that holds."""
    if adapter not in module.lora_A or not isinstance(module.lora_A[adapter], nn.Linear):
        return "its ranks are not those of a linear layer"
    dropout = getattr(module, "lora_dropout", {})
    rate = getattr(dropout[adapter], "p", 0.0) if adapter in dropout else 0.0
    more = module.lora_B[adapter].bias is not None or adapter in getattr(module, "lora_magnitude_vector", {})
    base = type(module.base_layer)
    reasons = {
        "its ranks are merged into the weight; call unmerge_adapter() first": getattr(module, "merged", False),
        f"its base is a {base.__name__}, no plain nn.Linear": base is not nn.Linear and not turned(module.base_layer),
        f"its dropout of {rate} has no place here; make it with lora_dropout=0.0": rate > 0,
        "it has a bias or a magnitude (DoRA) beside its ranks; make it with plain LoRA": more,
        "its adapter is disabled; call enable_adapter_layers() first": getattr(module, "disable_adapters", False),
        "a weight or bias of its base trains too (bias='lora_only'?); freeze it: base_layer.requires_grad_(False)": any(
            p.requires_grad for p in module.base_layer.parameters()
        ),
        "it is a variant of LoRA; make it with plain LoRA": adapter in getattr(module, "lora_variant", {}),
    }
    return next((reason for reason, holds in reasons.items() if holds), None)
