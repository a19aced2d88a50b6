"""The record of a run: its folder, its append-only log, its atomic checkpoints."""
