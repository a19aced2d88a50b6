"""Layers that users build with: embeddings whose rows are a budget."""

from realloc.nn.bag import EmbeddingBag
from realloc.nn.double_hashing import DoubleHashing
from realloc.nn.embedding import Embedding
from realloc.nn.quotient_remainder import QuotientRemainder
from realloc.nn.rows import Rows

__all__ = ["DoubleHashing", "Embedding", "EmbeddingBag", "QuotientRemainder", "Rows"]
