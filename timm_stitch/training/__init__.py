"""Stitching layers by least squares, and training over stitches."""
