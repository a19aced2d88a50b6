"""Random streams and surroundings on which bit-equality depends."""

from __future__ import annotations

import importlib.metadata
import platform
import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from realloc.errors import RecordError, nearest, plain, warn

# ruff: noqa: NPY002  the user's global stream is saved, whoever uses it

Generator = torch.Generator | np.random.Generator


def capture(generators: Mapping[str, Generator]) -> dict[str, Any]:
    """Return the states of the global streams and of the named ones."""
    cuda = torch.cuda.get_rng_state_all() if _cuda_used() else []
    return {
        "torch": torch.get_rng_state(),
        "cuda": cuda,
        "numpy": np.random.get_state(legacy=False),
        "python": random.getstate(),
        "named": {name: _state(generator) for name, generator in generators.items()},
    }


def check(saved: Mapping[str, Any], generators: Mapping[str, Generator]) -> None:
    """Try every saved state on a throwaway stream.

    Raises:
        RecordError: a state that does not fit, a name too many or too few.
    """
    for name in [*saved["named"], *generators]:
        if name not in saved["named"] or name not in generators:
            raise RecordError(
                f"generator {plain(name)!r} is {'not in the checkpoint' if name in generators else 'not given'}"
                f"{nearest(name, {**saved['named'], **generators}.keys() - {name})}; "
                "pass the generators that were saved"
            )
    try:
        _set_torch(torch.Generator(), saved["torch"])
        if not all(isinstance(state, Tensor) and state.dtype == torch.uint8 for state in saved["cuda"]):
            raise TypeError("cuda state")
        _check_numpy(saved["numpy"], np.random.get_state(legacy=False))
        np.random.RandomState().set_state(saved["numpy"])
        random.Random().setstate(saved["python"])
        for name, generator in generators.items():
            trial = _throwaway(generator)
            if isinstance(trial, np.random.Generator):
                _check_numpy(saved["named"][name], trial.bit_generator.state)
            _set(trial, saved["named"][name])
    except (TypeError, ValueError, KeyError, RuntimeError, OverflowError) as error:
        raise RecordError(
            f"a random stream of the checkpoint does not fit ({plain(repr(error))[:120]}); delete this checkpoint"
        ) from None


def restore(saved: Mapping[str, Any], generators: Mapping[str, Generator]) -> None:
    """Set every stream to its saved, checked state."""
    torch.set_rng_state(saved["torch"])
    if saved["cuda"] and torch.cuda.is_available() and len(saved["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(saved["cuda"])
    np.random.set_state(saved["numpy"])
    random.setstate(saved["python"])
    for name, generator in generators.items():
        _set(generator, saved["named"][name])


def surroundings() -> dict[str, Any]:
    """Versions and thread count: float sums differ between 1 and 2 threads."""
    return {
        "torch": torch.__version__,
        "numpy": np.__version__,
        "numba": importlib.metadata.version("numba"),
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
    }


def warn_if_moved(saved: object) -> None:
    """Warn (RA301) where the surroundings differ from those at saving."""
    now = surroundings()
    then = saved if isinstance(saved, dict) else {}
    moved = [f"{key} {plain(str(then.get(key)))} -> {now[key]}" for key in now if then.get(key) != now[key]]
    if moved:
        warn(
            "RA301",
            f"resumed under other conditions ({', '.join(moved)}): the run goes on, but not bit for bit as it would "
            "have; resume with the same ones if that matters",
        )


# numpy takes any position and then reads outside its buffer: measured with numpy 2.4, a crash at the next draw.
_POSITIONS = {"pos": 624, "buffer_pos": 4, "has_uint32": 1, "has_gauss": 1}


def _check_numpy(saved: Any, now: Any) -> None:
    """Compare a saved state of a numpy stream with a live one, entry by entry."""
    if isinstance(now, Mapping):
        if not isinstance(saved, Mapping) or set(saved) != set(now):
            raise TypeError("the state of a numpy generator has other entries")
        for key, value in now.items():
            _check_numpy(saved[key], value)
            if key in _POSITIONS and not 0 <= saved[key] <= _POSITIONS[key]:
                raise ValueError(f"{key} of a numpy generator is out of range")
    elif isinstance(now, np.ndarray):
        if not isinstance(saved, np.ndarray) or saved.shape != now.shape or saved.dtype != now.dtype:
            raise TypeError("the state of a numpy generator has another shape")
    elif type(saved) is not type(now) or (isinstance(now, str) and saved != now):
        raise TypeError("the state of a numpy generator is of another kind")


def _cuda_used() -> bool:
    # Asking an untouched CUDA for its streams would start it.
    return torch.cuda.is_available() and bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]


def _state(generator: Generator) -> Any:
    return generator.get_state() if isinstance(generator, torch.Generator) else generator.bit_generator.state


def _throwaway(generator: Generator) -> Generator:
    if isinstance(generator, torch.Generator):
        return torch.Generator(generator.device)
    return np.random.Generator(type(generator.bit_generator)())


def _set(generator: Generator, state: Any) -> None:
    if isinstance(generator, torch.Generator):
        _set_torch(generator, state)
    else:
        generator.bit_generator.state = state


def _set_torch(generator: torch.Generator, state: Any) -> None:
    if not isinstance(state, Tensor) or state.shape != generator.get_state().shape:
        raise TypeError("the state of a torch generator has another size")
    generator.set_state(state)
