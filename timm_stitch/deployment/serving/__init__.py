"""A server that answers requests within a latency target."""
