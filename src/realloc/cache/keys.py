"""What an example is to a cache: a digest of all that a frozen prefix sees of it."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Final, final

import numpy as np
import torch
from torch import Tensor

from realloc.errors import StateError

SIZE: Final = 16  # bytes of a key: two of 2^64 examples share one by chance


@final
@dataclass(frozen=True)
class Example:
    """One row of a batch without its padding: its key, and where it lies in the row."""

    key: bytes
    first: int
    last: int

    @property
    def length(self) -> int:
        """Tokens."""
        return self.last - self.first


def examples_of(
    ids: Tensor, mask: Tensor | None = None, types: Tensor | None = None, positions: Tensor | None = None
) -> list[Example]:
    """The examples of a batch.

    Two rows get one key only if a model that looks at tokens, types and positions within the mask computes the same
    for both. Padding on either side is left out, positions are not. Where none are given they follow from the columns
    and from what stands left of the tokens: some models count from there what is no padding token.

    Args:
        ids: int ``[b, t]``, tokens.
        mask: ``[b, t]``, nonzero where a token counts; None: everywhere.
        types: int ``[b, t]``, token types, or None.
        positions: int ``[b, t]``, or None: the model counts for itself.

    Raises:
        StateError: a shape that differs, a row without a token, or a mask that is not plain padding (one run of
            tokens in each row): what such a model computes for a token is not a function of the row alone.

    >>> one = torch.tensor([[5, 6, 0]])
    >>> a, b = (examples_of(one, torch.tensor([m]))[0] for m in ([1, 1, 0], [1, 1, 1]))
    >>> a.length, b.length, a.key == b.key
    (2, 3, False)
    """
    if ids.ndim != 2:
        raise StateError(
            f"token ids have shape {tuple(ids.shape)}; the cache takes [batch, tokens]: pass rows of tokens, or train "
            "with cache=None"
        )
    parts = {"mask": mask, "types": types, "positions": positions}
    for name, part in parts.items():
        if part is not None and part.shape != ids.shape:
            why = "it is no plain padding mask; pass a mask" if name == "mask" else f"pass {name}"
            raise StateError(
                f"{name} has shape {tuple(part.shape)}, the token ids {tuple(ids.shape)}: {why} of rows and tokens, or "
                "train with cache=None"
            )
    bounds = [(0, ids.shape[1])] * ids.shape[0] if mask is None else _runs(mask)
    columns = torch.arange(ids.shape[1]).expand_as(ids) if positions is None else positions
    tokens = _numbers(ids)
    seen = [tokens, _numbers(columns), *([] if types is None else [_numbers(types)])]
    found = []
    for row, (first, last) in enumerate(bounds):
        if first == last:
            raise StateError(f"row {row} of the batch has no token; drop empty texts, or give them one token")
        digest = blake2b(digest_size=SIZE)
        for numbers in seen:
            digest.update(numbers[row, first:last].tobytes())
        if positions is None:
            digest.update(tokens[row, :first].tobytes())
        digest.update(f"{last - first} {len(seen)} {positions is not None}".encode())
        found.append(Example(digest.digest(), first, last))
    return found


def tensors_of(x: Tensor) -> list[Example]:
    """The examples of a batch ``[b, ...]`` of plain tensors: by shape, type and bytes of each row.

    >>> a, b, c = tensors_of(torch.tensor([[1.0, 2.0], [1.0, 2.0], [1.0, 3.0]]))
    >>> a.length, a.key == b.key, a.key == c.key
    (1, True, False)
    """
    flat = x.detach().cpu().contiguous().flatten(1)
    rows = flat.view(torch.uint8).numpy()
    kind = repr((x.dtype, tuple(x.shape[1:]))).encode()
    return [Example(blake2b(row.tobytes() + kind, digest_size=SIZE).digest(), 0, 1) for row in rows]


def _numbers(part: Tensor) -> np.ndarray[Any, np.dtype[np.int64]]:
    return np.ascontiguousarray(part.detach().cpu().numpy().astype(np.int64))


def _runs(mask: Tensor) -> list[tuple[int, int]]:
    """First and past-last token of each row."""
    flags = mask != 0
    counts = flags.sum(1)
    first = flags.int().argmax(1)
    inside = torch.arange(mask.shape[1], device=mask.device)
    run = (inside >= first[:, None]) & (inside < (first + counts)[:, None])
    if not torch.equal(run, flags):
        row = int((run != flags).any(1).nonzero()[0])
        raise StateError(
            f"the mask of row {row} is no plain padding: it leaves out tokens between others; train with cache=None"
        )
    return [(int(a), int(a + n)) for a, n in zip(first, counts, strict=True)]
