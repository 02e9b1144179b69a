"""What the stitches of a network are worth: accuracy, speed, memory, and which to choose."""
