"""The ways to spend a fine-tuning budget: one file each, chosen by name in ``table``."""
