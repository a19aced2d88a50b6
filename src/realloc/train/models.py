"""The kinds of model that the command line trains, and the dense rival of a sparse one."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import nn

from realloc.errors import ConfigError, plain
from realloc.rng import stream

MOST_WIDTH = 1 << 16
MOST_LAYERS = 64
CNN_WIDTH = 32
EXAMPLE = "write mlp:1024,1024 (widths of the hidden layers), or cnn for images"

Widths = tuple[int, ...]
Image = tuple[int, int, int]  # channels, height, width


def parse(spec: str) -> tuple[str, Widths]:
    """Read a model's description.

    >>> parse("mlp:64,32"), parse("cnn")
    (('mlp', (64, 32)), ('cnn', (32,)))
    """
    kind, colon, tail = spec.strip().partition(":")
    if kind not in ("mlp", "cnn") or (kind == "mlp" and not colon):
        raise ConfigError(f"model '{plain(spec)}' is unknown; {EXAMPLE}")
    if not colon:
        return kind, (CNN_WIDTH,)
    widths = []
    for word in tail.split(","):
        if not word.strip().isascii() or not word.strip().isdigit() or not 0 < int(word[:20]) <= MOST_WIDTH:
            raise ConfigError(f"model '{plain(spec)}': '{plain(word)}' is no width from 1 to {MOST_WIDTH:,}; {EXAMPLE}")
        widths.append(int(word))
    most = MOST_LAYERS if kind == "mlp" else 1
    if len(widths) > most:
        raise ConfigError(f"model '{plain(spec)}' has {len(widths)} widths, {kind} takes at most {most}; {EXAMPLE}")
    return kind, tuple(widths)


def build(
    spec: str,
    features: int,
    outputs: int,
    *,
    image: Image | None = None,
    seed: int = 0,
    front: Callable[[], nn.Module] | None = None,
) -> nn.Module:
    """Make a model on CPU, float32, with weights that depend on ``seed`` alone.

    ``front`` makes the module that runs first, called ``tables``, and gives ``features`` numbers.
    """
    kind, widths = parse(spec)
    if kind == "cnn" and image is None:
        raise ConfigError(f"model '{plain(spec)}' needs images; {EXAMPLE}")
    # layers draw from torch's global generator: lend them a seeded one and give the old state back
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**31, (1,), generator=stream(seed, "weights"))))
        try:
            if image is not None and kind == "cnn":
                return _cnn(image, widths[0], outputs)
            layers = _mlp(features, widths, outputs)
            return nn.Sequential(OrderedDict(tables=front(), **layers) if front else layers)
        except (RuntimeError, MemoryError) as error:
            raise ConfigError(f"model '{plain(spec)}' does not fit into memory; take narrower layers") from error


def parameters(model: nn.Module) -> int:
    """Count trainable parameters; tied ones count once."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def small_dense_width(features: int, outputs: int, depth: int, at_least: int) -> int:
    """Find the narrowest MLP of ``depth`` equal hidden layers with at least ``at_least`` parameters in all.

    >>> small_dense_width(784, 10, 2, 50_000)
    59
    """
    return _narrowest(lambda w: mlp_parameters(features, (w,) * depth, outputs), at_least)


def small_dense(spec: str, features: int, outputs: int, at_least: int, image: Image | None = None) -> str:
    """Describe the narrowest model of the same kind and depth with at least ``at_least`` parameters in all."""
    kind, widths = parse(spec)
    if kind == "mlp":
        width = small_dense_width(features, outputs, len(widths), at_least)
        return "mlp:" + ",".join([str(width)] * len(widths))
    if image is None:
        raise ConfigError(f"model '{plain(spec)}' needs images; {EXAMPLE}")
    return f"cnn:{_narrowest(lambda w: _cnn_parameters(image, w, outputs), at_least)}"


def mlp_parameters(features: int, widths: Widths, outputs: int) -> int:
    """Count the weights and biases of an MLP without building it."""
    sizes = (features, *widths, outputs)
    return sum(a * b + b for a, b in pairwise(sizes))


def _narrowest(count: Callable[[int], int], at_least: int) -> int:
    low, high = 1, 1
    while count(high) < at_least:
        low, high = high + 1, high * 2
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if count(middle) >= at_least else (middle + 1, high)
    return low


def _mlp(features: int, widths: Widths, outputs: int) -> OrderedDict[str, nn.Module]:
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    last = features
    for i, width in enumerate(widths, 1):
        layers[f"fc{i}"], layers[f"relu{i}"] = nn.Linear(last, width), nn.ReLU()
        last = width
    layers["head"] = nn.Linear(last, outputs)
    return layers


def _cnn(image: Image, width: int, outputs: int) -> nn.Module:
    channels, flat = image[0], _cnn_flat(image, width)
    return nn.Sequential(
        OrderedDict(
            shape=nn.Unflatten(1, image),
            conv1=nn.Conv2d(channels, width, 3, padding=1),
            relu1=nn.ReLU(),
            pool1=nn.MaxPool2d(2),
            conv2=nn.Conv2d(width, 2 * width, 3, padding=1),
            relu2=nn.ReLU(),
            pool2=nn.MaxPool2d(2),
            flat=nn.Flatten(),
            fc1=nn.Linear(flat, 4 * width),
            relu3=nn.ReLU(),
            head=nn.Linear(4 * width, outputs),
        )
    )


def _cnn_flat(image: Image, width: int) -> int:
    return 2 * width * (image[1] // 4) * (image[2] // 4)


def _cnn_parameters(image: Image, width: int, outputs: int) -> int:
    convolutions = 9 * image[0] * width + width + 18 * width * width + 2 * width
    return convolutions + mlp_parameters(_cnn_flat(image, width), (4 * width,), outputs)
