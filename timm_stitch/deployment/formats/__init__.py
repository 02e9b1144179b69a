"""The formats of exported stitches, one per file; `job` is what they share."""
