"""The command line's own trainer: a plain loop on real data, with three lines of realloc around it."""
