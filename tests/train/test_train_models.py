"""Models by description, and the dense rival's width."""

import pytest
import torch

from realloc.errors import ConfigError
from realloc.train import models


@pytest.mark.parametrize(
    "spec",
    [
        "",
        "mlp",
        "mlp:",
        "mlp:64,",
        "mlp:0",
        "mlp:-3",
        "mlp:6e2",
        "mlp:99999999",
        "mlp:²",
        "cnn:1,2",
        "rnn:3",
        "mlp:" + ",".join(["4"] * 65),
    ],
)
def test_a_bad_description_is_refused_with_an_example(spec: str) -> None:
    with pytest.raises(ConfigError, match=r"mlp:1024,1024"):
        models.parse(spec)


def test_the_seed_alone_decides_the_weights() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one, two, other = (models.build("mlp:16,8", 5, 3, seed=s) for s in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert not torch.equal(next(one.parameters()), next(other.parameters()))


@pytest.mark.parametrize(
    ("spec", "image"), [("mlp:16,8", None), ("mlp:7", None), ("cnn", (1, 8, 8)), ("cnn:3", (3, 28, 28))]
)
def test_the_counts_without_building_are_those_of_the_built_model(spec: str, image: models.Image | None) -> None:
    features = image[0] * image[1] * image[2] if image else 5
    model = models.build(spec, features, 4, image=image)
    assert model(torch.randn(2, features)).shape == (2, 4)
    kind, widths = models.parse(spec)
    if kind == "mlp":
        assert models.parameters(model) == models.mlp_parameters(features, widths, 4)
    else:
        target = models.parameters(model)
        assert models.small_dense(spec, features, 4, target, image) == f"cnn:{widths[0]}"


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("at_least", [1, 100, 12_345, 1_000_000])
def test_the_small_dense_net_is_the_narrowest_that_suffices(depth: int, at_least: int) -> None:
    width = models.small_dense_width(64, 10, depth, at_least)
    assert models.mlp_parameters(64, (width,) * depth, 10) >= at_least
    assert width == 1 or models.mlp_parameters(64, (width - 1,) * depth, 10) < at_least


def test_a_cnn_wants_images() -> None:
    with pytest.raises(ConfigError, match="images"):
        models.build("cnn", 20, 3)
