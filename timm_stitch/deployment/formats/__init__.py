"""The formats that stitches are exported to, one a file; `job` is what they share."""
