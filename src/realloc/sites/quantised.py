"""Whether a model has layers whose weights are quantised away: said where a search finds nothing to train."""

from __future__ import annotations

from torch import nn

from realloc.errors import plain


def quantised(root: nn.Module) -> str:
    """What to add to a refusal: the first such layer and the remedy; nothing where there is none.

    >>> quantised(nn.Linear(2, 2))
    ''
    """
    for name, module in root.named_modules():
        kind = type(module)
        if ".quantized." in f"{kind.__module__}." or kind.__module__.startswith("bitsandbytes"):
            return (
                f"; {plain(name)!r} is a {kind.__name__}, quantised: load the model unquantised, in float32 or bfloat16"
            )
    return ""
