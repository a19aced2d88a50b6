"""Which units: exactly k of them, the same on every rank."""
