"""What a unit is worth: keep and want scores, one per file, pure."""
