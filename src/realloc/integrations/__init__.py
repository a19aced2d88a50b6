"""Thin ways into other people's training loops; each is imported by its own name."""
