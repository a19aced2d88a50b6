"""Fine-tuning of pre-trained transformers on a budget: from a file of texts to a model, with its honest figures."""
