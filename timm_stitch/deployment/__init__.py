"""What a trained network is used for: files for other engines, cascades, a latency target, a page."""
