"""The stitchable network itself: anchors, stitching layers, and the paths through them."""
