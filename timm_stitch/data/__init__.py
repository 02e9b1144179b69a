"""Images, in an order and with an augmentation that the seed decides."""
