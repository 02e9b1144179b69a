"""timm's models as anchors, and the stitched network of them, a timm model itself."""
