"""A head for a pre-trained model: the mean over its tokens, dropout, and one linear layer.

Sentence encoders are trained for this mean. The pooler of BERT's first token, which stock classifiers read, is not
trained in them: transformers gives them a random one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final, final

from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from realloc.errors import ConfigError, plain
from realloc.rng import stream

DROPOUT: Final = 0.1
FILE: Final = "head.safetensors"


@final
class MeanHead(nn.Module):
    """``input_ids`` and ``attention_mask`` ``[b, t]`` give ``[b, outputs]``.

    Parameters are named as in transformers' own classifiers: the base model under its ``base_model_prefix`` (such as
    ``bert``), and ``classifier``.
    """

    def __init__(self, base: nn.Module, width: int, outputs: int, seed: int) -> None:
        super().__init__()
        self.prefix = str(getattr(base, "base_model_prefix", "") or "base")
        self.add_module(self.prefix, base)
        self.dropout = nn.Dropout(DROPOUT)
        self.classifier = nn.Linear(width, outputs)
        draw = stream(seed, "head")
        nn.init.normal_(self.classifier.weight, std=0.02, generator=draw)
        nn.init.zeros_(self.classifier.bias)

    @property
    def base(self) -> nn.Module:
        """The pre-trained part."""
        return self.get_submodule(self.prefix)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        """Foretell: classes' logits, or one number: standardised in training, in the labels' own units once saved.

        ``token_type_ids``, as some tokenizers give them, are not read: each text is one segment, as in training.
        """
        hidden = self.base(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask.unsqueeze(-1).to(hidden.dtype)
        out: Tensor = self.classifier(self.dropout((hidden * mask).sum(1) / mask.sum(1)))
        return out


def save_head(model: MeanHead, folder: Path, mean: float = 0.0, scale: float = 1.0) -> None:
    """Write the head beside the model's weights. What it foretells is multiplied by ``scale``, and ``mean`` added."""
    weight, bias = model.classifier.weight.detach().double(), model.classifier.bias.detach().double()
    tensors = {"weight": weight * scale, "bias": bias * scale + mean}
    save_file({name: value.to(model.classifier.weight.dtype) for name, value in tensors.items()}, folder / FILE)


def with_head(base: nn.Module, folder: Path | str) -> MeanHead:
    """Put a saved head on a model that ``AutoModel.from_pretrained`` (or peft) gave back; ready to foretell.

    Args:
        base: the model that was saved in ``folder``.
        folder: ``model`` in a run's folder; its ``labels.json`` names the classes in order. Numbers (regression) are in
            the labels' own units.

    Raises:
        ConfigError: no head there.
    """
    file = Path(folder) / FILE
    if not file.is_file():
        raise ConfigError(f"'{plain(str(folder))}' holds no {FILE}; give the folder 'model' of a finetune run's --out")
    tensors = load_file(file)
    outputs, width = tensors["weight"].shape
    model = MeanHead(base, width, outputs, seed=0)
    model.classifier.load_state_dict(tensors)
    return model.eval()


def unused(base: nn.Module) -> list[nn.Parameter]:
    """Parameters of the base that the mean never reads: the pooler's."""
    pooler = getattr(base, "pooler", None)
    return list(pooler.parameters()) if isinstance(pooler, nn.Module) else []
