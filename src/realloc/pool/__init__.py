"""The budget as tensors: the flat pool, masks, and the optimizer state that follows."""
