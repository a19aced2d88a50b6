"""Small models of every architecture that the cache goes through, with random weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers
from torch import Tensor, nn

WORDS, LAYERS, LABELS = 60, 4, 3
SIZES: dict[str, Any] = {
    "vocab_size": WORDS, "hidden_size": 32, "num_hidden_layers": LAYERS, "num_attention_heads": 4,
    "intermediate_size": 48, "max_position_embeddings": 64,
}  # fmt: skip


def bert(dropout: float = 0.0) -> nn.Module:
    config = transformers.BertConfig(
        **SIZES, num_labels=LABELS, hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout
    )
    return transformers.BertForSequenceClassification(config)


def roberta() -> nn.Module:
    config = transformers.RobertaConfig(**SIZES, num_labels=LABELS)
    config.hidden_dropout_prob = config.attention_probs_dropout_prob = 0.0
    return transformers.RobertaForSequenceClassification(config)


def deberta() -> nn.Module:
    config = transformers.DebertaV2Config(
        **SIZES, num_labels=LABELS, relative_attention=True, pos_att_type=["p2c", "c2p"], hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    return transformers.DebertaV2ForSequenceClassification(config)


def distilbert() -> nn.Module:
    config = transformers.DistilBertConfig(
        vocab_size=WORDS, dim=32, n_layers=LAYERS, n_heads=4, hidden_dim=48, max_position_embeddings=64, dropout=0.0,
        attention_dropout=0.0, seq_classif_dropout=0.0, num_labels=LABELS,
    )  # fmt: skip
    return transformers.DistilBertForSequenceClassification(config)


def llama() -> nn.Module:
    config = transformers.LlamaConfig(**SIZES, num_labels=LABELS, pad_token_id=0)
    return transformers.LlamaForSequenceClassification(config)


def gpt2() -> nn.Module:
    config = transformers.GPT2Config(
        vocab_size=WORDS, n_embd=32, n_layer=LAYERS, n_head=4, n_positions=64, num_labels=LABELS, pad_token_id=0,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    return transformers.GPT2ForSequenceClassification(config)


ZOO: dict[str, Callable[[], nn.Module]] = {
    "bert": bert, "roberta": roberta, "deberta": deberta, "distilbert": distilbert, "llama": llama, "gpt2": gpt2,
}  # fmt: skip


def stack(*, noise: nn.Module | None = None) -> nn.Sequential:
    """Three hidden layers and a head; something odd after the first one if asked for."""
    odd = [noise] if noise is not None else []
    return nn.Sequential(
        nn.Linear(6, 16), *odd, nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(),
        nn.Linear(16, LABELS),
    )  # fmt: skip


def texts(count: int = 24, seed: int = 0) -> tuple[list[Tensor], Tensor]:
    """Ragged rows of tokens, and labels."""
    draw = torch.Generator().manual_seed(seed)
    lengths = torch.randint(2, 12, (count,), generator=draw).tolist()
    rows = [torch.randint(5, WORDS, (length,), generator=draw) for length in lengths]
    return rows, torch.randint(0, LABELS, (count,), generator=draw)


def batch(rows: list[Tensor], index: list[int]) -> dict[str, Tensor]:
    """Padded on the right, to the longest of them."""
    chosen = [rows[i] for i in index]
    ids = nn.utils.rnn.pad_sequence(chosen, batch_first=True)
    mask = nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in chosen], batch_first=True)
    return {"input_ids": ids, "attention_mask": mask}


def train(
    model: nn.Module, optimizer: torch.optim.Optimizer, steps: int, *, seed: int = 0, first: int = 0, size: int = 8
) -> list[float]:
    """A plain loop over shuffled epochs; the losses. ``first``: the step at which it goes on."""
    rows, labels = texts()
    losses = []
    for step in range(first, steps):
        per_epoch = len(rows) // size
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed + step // per_epoch))
        index = order[(step % per_epoch) * size :][:size].tolist()
        out = model(**batch(rows, index))
        loss = nn.functional.cross_entropy(out.logits, labels[index])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def fresh(make: Callable[[], nn.Module], seed: int = 0) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A model in training, and AdamW over all of it."""
    torch.manual_seed(seed)
    model = make().train()
    return model, torch.optim.AdamW(model.parameters(), lr=1e-3)
