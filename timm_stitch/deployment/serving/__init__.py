"""A network served under a promise of latency."""
