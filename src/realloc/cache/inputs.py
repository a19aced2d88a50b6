"""One call of a base model, as the cache sees it: its examples, and the same call for some of its rows."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol, final

import torch
from torch import Tensor, nn

from realloc.cache.keys import Example, examples_of, tensors_of
from realloc.errors import StateError

_WIDE: Final = ("output_hidden_states", "output_attentions")  # asks for what a prefix that is read does not compute
_KNOWN: Final = ("input_ids", "attention_mask", "token_type_ids", "position_ids")  # in an example's key
_IDLE: Final = ("num_items_in_batch",)  # of the loss, handed on to every layer


class Call(Protocol):
    """One call."""

    @property
    def refusal(self) -> str | None:
        """Why this call cannot be answered from a cache, or None."""

    @property
    def columns(self) -> int:
        """Tokens of a row, with its padding."""

    def examples(self) -> list[Example]:
        """The examples, one a row."""

    def rows(self, index: Sequence[int]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of the same call for some rows."""


@final
@dataclass(frozen=True, eq=False)
class Tokens:
    """A call of a model of transformers."""

    given: Mapping[str, Any]
    wide: bool  # whether the model's own configuration asks for hidden states or attentions

    @property
    def refusal(self) -> str | None:
        """Why not."""
        if not torch.is_tensor(self.given.get("input_ids")):
            return "it got no input_ids"
        strange = next((name for name in self.given if name not in _KNOWN + _IDLE and self._reaches(name)), None)
        if strange is not None:
            return f"it got {strange}"
        asked = next((name for name in _WIDE if self.given.get(name)), None)
        if asked is not None or self.wide:
            return f"{asked or 'its configuration'} asks for what the frozen layers computed"
        return None

    def _reaches(self, name: str) -> bool:
        """Whether an argument may change what the layers give: all but switches and None."""
        return self.given[name] is not None and not isinstance(self.given[name], bool)

    @property
    def columns(self) -> int:
        """Tokens of a row."""
        return int(self.given["input_ids"].shape[1])

    def examples(self) -> list[Example]:
        """By tokens, mask, types and positions."""
        ids, mask = self.given["input_ids"], self.given.get("attention_mask")
        if mask is not None and not torch.is_tensor(mask):
            raise StateError(f"the attention mask is a {type(mask).__name__}; the cache takes a plain [batch, tokens]")
        positions = self.given.get("position_ids")
        if positions is not None and positions.shape != ids.shape:
            positions = positions.expand_as(ids)
        return examples_of(ids, mask, self.given.get("token_type_ids"), positions)

    def rows(self, index: Sequence[int]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Every tensor that has a row for each example, cut."""
        count = len(self.given["input_ids"])
        chosen = list(index)
        cut = {
            name: value[chosen] if torch.is_tensor(value) and value.ndim and len(value) == count else value
            for name, value in self.given.items()
        }
        return (), cut


@final
@dataclass(frozen=True, eq=False)
class Tensors:
    """A call of an nn.Sequential: one tensor, one example a row."""

    given: tuple[Any, ...]

    @property
    def refusal(self) -> str | None:
        """Why not."""
        fits = len(self.given) == 1 and torch.is_tensor(self.given[0]) and self.given[0].ndim > 1
        if fits and self.given[0].requires_grad:
            return "its input requires a gradient"
        return None if fits else "its input is not one tensor [batch, ...]"

    @property
    def columns(self) -> int:
        """A row is one token."""
        return 1

    def examples(self) -> list[Example]:
        """By the bytes of each row."""
        return tensors_of(self.given[0])

    def rows(self, index: Sequence[int]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The rows themselves."""
        return (self.given[0][list(index)],), {}


def call_of(base: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
    """Read a call."""
    if isinstance(base, nn.Sequential):
        return Tensors(args)
    names = inspect.signature(type(base).forward).parameters
    given = dict(zip([n for n in names if n != "self"], args, strict=False)) | kwargs
    config = getattr(base, "config", None)
    return Tokens(given, any(getattr(config, name, False) is True for name in _WIDE))


def hidden_of(output: Any) -> Tensor:
    """The activations in what a block or a base model gives: itself, or its first part."""
    found = output if torch.is_tensor(output) else output[0]
    assert torch.is_tensor(found)
    return found
