"""Tensors in a safetensors file: written as a stream (no second copy in memory), read by the safetensors library."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import safetensors
import torch
from safetensors.torch import load_file
from torch import Tensor

import realloc.record.disk as disk
from realloc.errors import RecordError, plain
from realloc.record.sealed import dump

_CODES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint64: "U64",
    torch.uint32: "U32",
    torch.uint16: "U16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
    torch.complex64: "C64",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
}


def chunks(tensors: Mapping[str, Tensor]) -> Iterator[bytes | memoryview]:
    """Yield the bytes of a safetensors file, one tensor at a time.

    The format: a little-endian uint64 with the header's length, the JSON header, then the values without a gap.
    Source: https://github.com/huggingface/safetensors#format. Tensors that share memory are written once each.

    Raises:
        RecordError: a tensor that the format cannot hold (sparse, quantised, on `meta`, complex128), by name.

    >>> from safetensors.torch import load as read
    >>> read(b"".join(chunks({"w": torch.arange(3)})))
    {'w': tensor([0, 1, 2])}
    """
    # Widest type first, so that every tensor starts at a multiple of its element size.
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header, end = {}, 0
    for name in order:
        start, end = end, end + _size(name, tensors[name])
        header[name] = {
            "dtype": _CODES[tensors[name].dtype],
            "shape": list(tensors[name].shape),
            "data_offsets": [start, end],
        }
    text = dump(header)
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for name in order:
        flat = tensors[name].detach().resolve_conj().resolve_neg().to("cpu").contiguous().reshape(-1)
        if flat.numel():
            yield flat.view(torch.uint8).numpy().data


def load(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file, whose digest the caller has checked; the tensors are mapped from it: copy, do not write.

    Raises:
        RecordError: not a valid file (offsets or sizes that do not fit it).
    """
    if disk.size_of(path) < 8:
        raise RecordError(f"{disk.shown(path)} is too short to be a safetensors file")
    try:
        return load_file(path)
    except (safetensors.SafetensorError, ValueError, RuntimeError, OverflowError, KeyError, TypeError) as error:
        raise RecordError(f"{disk.shown(path)} is not a valid safetensors file ({plain(str(error))[:200]})") from None


def _size(name: str, tensor: Tensor) -> int:
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta or tensor.dtype not in _CODES:
        raise RecordError(
            f"tensor {plain(name)!r} ({tensor.dtype}, {tensor.layout}, {tensor.device}) cannot be saved; "
            "store plain strided values of a common dtype"
        )
    return tensor.numel() * tensor.element_size()
