"""A fixed 64-bit mixing function in int64 arithmetic: where an id hashes to, the same on every device and machine."""

from __future__ import annotations

from typing import Final

from torch import Tensor

MASK: Final = 2**64 - 1
GOLDEN: Final = 0x9E3779B97F4A7C15
FIRST: Final = 0xBF58476D1CE4E5B9
SECOND: Final = 0x94D049BB133111EB


def signed(number: int) -> int:
    """64 bits as an int64 writes them."""
    number &= MASK
    return number - 2**64 if number >> 63 else number


def mixed_plain(number: int) -> int:
    """One integer mixed, as an int64 writes it. The plain reference.

    >>> mixed_plain(0) == signed(0xE220A8397B1DCDAF)
    True
    """
    z = (number + GOLDEN) & MASK
    z = ((z ^ (z >> 30)) * FIRST) & MASK
    z = ((z ^ (z >> 27)) * SECOND) & MASK
    return signed(z ^ (z >> 31))


def mixed(numbers: Tensor) -> Tensor:
    """Each of int64 ``numbers`` mixed: the output of splitmix64 for that state. Products wrap around, as they should.

    >>> import torch
    >>> mixed(torch.tensor([0, 2**62])).tolist() == [mixed_plain(0), mixed_plain(2**62)]
    True
    """
    z = numbers + signed(GOLDEN)
    z = (z ^ ((z >> 30) & (2**34 - 1))) * signed(FIRST)
    z = (z ^ ((z >> 27) & (2**37 - 1))) * signed(SECOND)
    return z ^ ((z >> 31) & (2**33 - 1))


def below(bits: Tensor, count: int) -> Tensor:
    """Mixed numbers brought into ``0 .. count - 1``: their upper 63 bits, modulo the count.

    >>> import torch
    >>> below(torch.tensor([-1, 7, 8]), 5)
    tensor([2, 3, 4])
    """
    return ((bits >> 1) & (2**63 - 1)) % count
