"""Plans, costs and results as plain values, with the standard library only."""
