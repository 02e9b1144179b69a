"""Accuracy, speed and memory of stitches, and the choice of one."""
