"""Arms at one equal budget, over paired seeds, with their intervals."""
