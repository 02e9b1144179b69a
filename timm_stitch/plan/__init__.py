"""What stitches there are and what is known of them, as plain values; the standard library only."""
