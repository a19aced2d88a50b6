"""Pre-trained weights by folder or by name, and the model that a task needs. Never any code from a model's folder."""

from __future__ import annotations

import inspect
import io
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, final

import torch
from torch import nn

from realloc.errors import ConfigError, plain
from realloc.finetune.bundled import MODELS, model_folder
from realloc.finetune.config import FinetuneConfig, Task
from realloc.finetune.converted import converted
from realloc.finetune.head import MeanHead, unused
from realloc.modes import as_it_was
from realloc.shorten import shorten

# only what is here already is read, without code of its own, and no pickled weights
TOKENS: Final = 128  # longest text where the user does not say
_SAFE: Final[dict[str, Any]] = {"local_files_only": True, "trust_remote_code": False}


@final
@dataclass(frozen=True, eq=False)
class Loaded:
    """A model that a task can train, and the tokenizer it goes with."""

    model: nn.Module
    tokenizer: Any
    base: nn.Module  # the pre-trained part
    name: str  # that a stock library loads it by: a folder, or a name of the hub
    tokens: int  # longest text that is read
    depth: int | None  # layers of the model of that name, before any was dropped


def load(config: FinetuneConfig, outputs: int) -> Loaded:
    """Load weights and tokenizer; the head is new, from the seed.

    Raises:
        ConfigError: transformers is missing, no such model here, quantised weights, an architecture that is unknown,
            needs code of its own or reads no tokens, more layers to keep than there are.
    """
    library = _transformers()
    where, gguf = _find(config.model)
    with quiet(library), nullcontext() if gguf is None else redirect_stderr(io.StringIO()):  # gguf's own bar
        try:
            if gguf is not None:
                make = partial(_convert, library, where, _SAFE | {"gguf_file": gguf})
                kept = converted(Path(where) / gguf, f"transformers-{library.__version__}", make)
                where, gguf = (where, gguf) if kept is None else (str(kept), None)
            more: dict[str, Any] = _SAFE if gguf is None else _SAFE | {"gguf_file": gguf}
            settings = library.AutoConfig.from_pretrained(where, **more)
            if gguf is None:
                _check_settings(config, settings)
            tokenizer = library.AutoTokenizer.from_pretrained(where, **more)
            base = _weights(library, where, config.task, more)
        except ConfigError:
            raise
        except Exception as error:  # whatever transformers makes of a stranger's folder
            raise ConfigError(_cannot(config.model, where, error)) from error
    most = _check_base(config, base, tokenizer)
    depth = getattr(base.config, "num_hidden_layers", None)
    if config.layers is not None:
        if isinstance(depth, int) and config.layers > depth:
            raise ConfigError(
                f"--layers {config.layers} is more than the {depth} layers of '{plain(config.model)}'; leave --layers "
                "out to keep them all, or lower it"
            )
        shorten(base, config.layers)
    if config.task == "causal-lm":
        base.config.use_cache = False
        _check_causal(config.model, base)
        return Loaded(base, tokenizer, base, where, most, depth)
    for parameter in unused(base):
        parameter.requires_grad_(False)
    model = MeanHead(base, base.config.hidden_size, outputs, config.seed)
    return Loaded(model, tokenizer, base, where, most, depth)


def _find(name: str) -> tuple[str, str | None]:
    """A folder or hub name, and the gguf file in it that holds the weights, if one does."""
    bundled = model_folder(name)
    if bundled is not None:
        return str(bundled[0]), bundled[1]
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ConfigError(
                f"model folder '{plain(name)}' has no config.json; give the folder that a save_pretrained() wrote"
            )
        return str(path), None
    if path.exists():
        raise ConfigError(f"model '{plain(name)}' is a file; give the folder that holds config.json and the weights")
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ConfigError(f"model folder '{plain(name)}' does not exist; check the path")
    return name, None


def _check_settings(config: FinetuneConfig, settings: Any) -> None:
    name = plain(config.model)
    if getattr(settings, "quantization_config", None) is not None:
        raise ConfigError(
            f"model '{name}' is quantised, and training moves its weights; give a folder with float32 or bfloat16 ones"
        )
    if getattr(settings, "is_encoder_decoder", False):
        raise ConfigError(
            f"model '{name}' is an encoder with a decoder ({plain(str(settings.model_type))}); give an encoder such as "
            "BERT, or a decoder such as Llama"
        )


def _weights(library: Any, where: str, task: Task, more: dict[str, Any]) -> Any:
    kind = library.AutoModelForCausalLM if task == "causal-lm" else library.AutoModel
    if "gguf_file" not in more:
        return kind.from_pretrained(where, dtype=torch.float32, use_safetensors=True, **more)
    found = kind.from_pretrained(where, dtype=torch.float32, **more)
    settings = found.config
    for name in ("quantization_config", "_pre_quantization_dtype"):
        settings.__dict__.pop(name, None)
    whole = kind.from_config(settings).float()  # only a model made anew can be saved
    whole.load_state_dict(found.state_dict())
    whole.tie_weights()
    return whole


def _convert(library: Any, where: str, more: dict[str, Any], folder: Path) -> None:
    """Write a gguf file's model as any other is written."""
    _weights(library, where, "causal-lm", more).save_pretrained(folder)
    library.AutoTokenizer.from_pretrained(where, **more).save_pretrained(folder)


def _check_base(config: FinetuneConfig, base: Any, tokenizer: Any) -> int:
    """Refuse what cannot be trained on texts; returns how many tokens of a text are read."""
    name = plain(config.model)
    if "input_ids" not in inspect.signature(base.forward).parameters:
        raise ConfigError(f"model '{name}' ({type(base).__name__}) reads no tokens; give a model of text")
    rows, known = base.get_input_embeddings().num_embeddings, len(tokenizer)
    if known > rows:
        raise ConfigError(
            f"the tokenizer of '{name}' has {known:,} tokens and the model embeds {rows:,}: they are not of one model"
        )
    if tokenizer.pad_token_id is None and tokenizer.eos_token is not None:
        tokenizer.pad_token = tokenizer.eos_token
    places = getattr(base.config, "max_position_embeddings", None)
    most = min(tokenizer.model_max_length, places) if isinstance(places, int) else tokenizer.model_max_length
    if config.tokens is not None and config.tokens > most:
        raise ConfigError(f"tokens {config.tokens} is more than '{name}' reads; take --tokens {most} or less")
    return int(min(config.tokens or TOKENS, most))


@torch.no_grad()
def _check_causal(name: str, model: Any) -> None:
    """What is foretold of a token must not depend on the tokens behind it: those are what it should foretell."""
    ids = (torch.arange(6) % model.get_input_embeddings().num_embeddings).repeat(2, 1)
    ids[1, -1] = 0
    with as_it_was(model):
        model.eval()
        one, two = model(input_ids=ids).logits[:, :-1]
    if not torch.allclose(one, two, rtol=1e-3, atol=1e-3 * float(one.abs().max())):
        raise ConfigError(
            f"model '{plain(name)}' ({type(model).__name__}) sees the tokens that causal-lm asks it to foretell: it is "
            "an encoder; give a decoder, such as smollm2, or another --task"
        )


def _cannot(name: str, where: str, error: Exception) -> str:
    said = plain(str(error).splitlines()[0] if str(error) else type(error).__name__)[:200]
    own = "it needs code of its own, which is never run; " if "trust_remote_code" in str(error) else ""
    if Path(where).is_dir():
        remedy = "give a folder with config.json, tokenizer and *.safetensors, of an architecture that transformers has"
    else:
        remedy = (
            f"nothing is downloaded: if it is a name of the hub, get it first with: hf download {plain(name)}; or give "
            f"a folder, or {' or '.join(MODELS)}"
        )
    return f"model '{plain(name)}' cannot be loaded ({said}); {own}{remedy}"


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise ConfigError("fine-tuning needs transformers: pip install 'realloc[finetune]'") from error
    return transformers


@contextmanager
def quiet(library: Any = None) -> Iterator[None]:
    """Without the progress bars and notices of transformers: stdout and stderr belong to the run."""
    library = library or _transformers()
    level, bars = library.logging.get_verbosity(), library.utils.logging.is_progress_bar_enabled()
    library.logging.set_verbosity_error()
    library.utils.logging.disable_progress_bar()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    try:
        yield
    finally:
        library.logging.set_verbosity(level)
        if bars:
            library.utils.logging.enable_progress_bar()
