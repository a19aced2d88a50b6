"""The checkpoints of a peft model under a Trainer: its own `save_pretrained` and `load_adapter`, with what moves."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final, final

from torch import Tensor, nn

import realloc.record.disk as disk
from realloc.attach_rates import awaited
from realloc.errors import ConfigError, RecordError, StateError, plain
from realloc.export.peft import adapter_of, peft
from realloc.integrations.plan import AnyMethod
from realloc.methods.layers import LayerMethod
from realloc.methods.rank_method import RankMethod
from realloc.methods.rate_method import RateMethod
from realloc.record.sealed import MOST, seal, unseal
from realloc.record.tensors import chunks, load
from realloc.sites.adopt import adopted_layers

STATE: Final = "realloc_state.safetensors"  # pools, places and counts; for ranks also what trains in full
SEAL: Final = "realloc_state.json"  # the digests of what belongs together; written last, removed first
ADAPTER: Final = "adapter_model.safetensors"


def check_peft(model: nn.Module, method: AnyMethod) -> bool:
    """Whether this is a model of `peft.get_peft_model` that checkpoints through its adapter. Changes nothing.

    Raises:
        ConfigError: one whose adapter could not hold what the method moves.
    """
    kind = type(model).__name__
    if getattr(model, "_hf_peft_config_loaded", False):
        raise ConfigError(
            f"this {kind} took its adapter by add_adapter(), and its checkpoints would lose what moves; give the "
            "Trainer peft.get_peft_model(model, config) instead"
        )
    wraps = isinstance(getattr(model, "peft_config", None), dict) and callable(getattr(model, "get_base_model", None))
    if not wraps:  # peft leaves its config on the model inside, whose checkpoints are plain state dicts
        return False
    if not isinstance(method, RankMethod | LayerMethod | RateMethod):
        raise ConfigError(
            f"{method.name} moves what no adapter of this {kind} can save; give the Trainer a plain model, such as "
            "model.merge_and_unload()"
        )
    if isinstance(method, RankMethod) and not adopted_layers(model):
        raise ConfigError(
            f"this {kind} has no LoRA layers, and its checkpoints would lose the ranks that {method.name} adds; give "
            "the Trainer the plain model inside it, or one with LoRA"
        )
    return True


def keep_adapter(model: nn.Module, method: AnyMethod) -> None:
    """Give a prepared peft model the `save_pretrained` and `load_adapter` of a `Keeper`.

    Raises:
        ConfigError: its ranks, or what trains beside them, cannot be said in an adapter.
    """
    keeper = Keeper(model, ranks=isinstance(method, RankMethod))
    if keeper.ranks:
        adapter_of(model)
    model.__dict__.update({"save_pretrained": keeper.save_pretrained, "load_adapter": keeper.load_adapter})


@final
class Keeper:
    """Writes and reads the adapter of a peft model, and beside it what realloc needs to go on."""

    def __init__(self, model: nn.Module, *, ranks: bool) -> None:
        self.model: Any = model
        self.ranks = ranks

    def save_pretrained(
        self,
        save_directory: str | Path,
        safe_serialization: bool = True,
        selected_adapters: list[str] | None = None,
        save_embedding_layers: str | bool = "auto",
        is_main_process: bool = True,
        path_initial_model_for_weight_conversion: str | None = None,
        state_dict: dict[str, Tensor] | None = None,
    ) -> None:
        """Write an adapter that stock peft loads, and the state from which the Trainer goes on.

        Raises:
            ConfigError: what is asked for is not the whole adapter as safetensors.
            StateError: the ranks are in the weights since `detach()`.
            RecordError: the disk refused.
        """
        if not is_main_process:
            return
        given = (safe_serialization, path_initial_model_for_weight_conversion, state_dict, save_embedding_layers)
        if given != (True, None, None, "auto") or selected_adapters not in (None, [self._name]):
            raise ConfigError(
                "a model that realloc moves is saved whole, as safetensors, from its own values (no FSDP, no ZeRO-3); "
                "call save_pretrained(folder) without more"
            )
        self._refuse_detached()
        folder = Path(save_directory)
        with disk.told("write the adapter into", folder, "make room or rights there, then save again"):
            disk.make_folder(folder)
            (folder / SEAL).unlink(missing_ok=True)
            if self.ranks:
                base = getattr(self.model.peft_config[self._name], "base_model_name_or_path", None)
                peft(self.model, folder, base_model_name=base or "")
            else:
                type(self.model).save_pretrained(self.model, str(folder))
            state = self._state()
            if not state:  # layers, after detach(): a plain adapter again
                (folder / STATE).unlink(missing_ok=True)
                return
            disk.replace(folder / STATE, b"".join(chunks(state)))
            disk.replace(folder / SEAL, seal({"format": "realloc adapter", "version": 1, "files": self._found(folder)}))

    def load_adapter(self, model_id: str | Path, adapter_name: str, is_trainable: bool = False) -> None:
        """Read what `save_pretrained` wrote, all of it or nothing.

        Raises:
            StateError: of another model or method, or the ranks are in the weights since `detach()`.
            RecordError: not written by `save_pretrained` of such a model, cut short or changed since.
        """
        self._refuse_detached()
        if adapter_name != self._name:
            raise StateError(
                f"realloc moves the adapter {plain(self._name)!r}; {plain(str(adapter_name))!r} cannot stand beside it"
            )
        folder, wanted = Path(model_id), self._state() or awaited(self.model)
        if not wanted:
            type(self.model).load_adapter(self.model, str(folder), adapter_name, is_trainable=is_trainable)
            return
        with disk.told("read the adapter in", folder, "give a checkpoint of this run, or its rights"):
            self._check_files(folder)
            found = {name: value.clone() for name, value in load(folder / STATE).items()}
        odd = sorted(found.keys() ^ wanted.keys())
        odd += [n for n, v in found.items() if n in wanted and not _ours(n) and v.shape != wanted[n].shape]
        if odd:
            raise StateError(
                f"{disk.shown(folder)} is of another model or method: {plain(odd[0])} is in one only, or of another "
                "shape; give both runs the same model and the same callback"
            )
        if not self.ranks:
            type(self.model).load_adapter(self.model, str(folder), adapter_name, is_trainable=is_trainable)
        self.model.load_state_dict(found, strict=False)

    @property
    def _name(self) -> str:
        return str(next(iter(self.model.peft_config)))

    def _state(self) -> dict[str, Tensor]:
        """Our own values, and of a model with ranks also what trains in full: the adapter's file is for others."""
        trained = {name for name, p in self.model.named_parameters() if p.requires_grad} if self.ranks else set()
        return {
            name: value
            for name, value in self.model.state_dict().items()
            if _ours(name) or name in trained or (self.ranks and ".modules_to_save." in name)
        }

    def _refuse_detached(self) -> None:
        if self.ranks and not any(map(_ours, self.model.state_dict())):
            raise StateError(
                "detach() added the ranks to the weights, which no adapter can say; "
                "model.merge_and_unload().save_pretrained(folder) writes the plain model"
            )

    def _found(self, folder: Path) -> dict[str, list[int | str]]:
        digests = {name: disk.digest(folder / name) for name in (STATE, ADAPTER)}
        return {name: [digest.size, digest.sha256] for name, digest in digests.items()}

    def _check_files(self, folder: Path) -> None:
        if not (folder / SEAL).exists():
            raise RecordError(
                f"{disk.shown(folder)} has no {SEAL}: it was written without realloc, or cut short; resume from "
                "another checkpoint, or start anew from PeftModel.from_pretrained(base, folder, is_trainable=True)"
            )
        told = unseal(disk.read(folder / SEAL, MOST), f"{SEAL} in {disk.shown(folder)}")
        missing = [name for name in (STATE, ADAPTER) if not (folder / name).exists()]
        if missing or told.get("files") != self._found(folder):
            raise RecordError(
                f"{disk.shown(folder)} has changed since it was written: {STATE} and {ADAPTER} do not belong together; "
                "resume from another checkpoint"
            )


def _ours(name: str) -> bool:
    return name.startswith("realloc_")
