"""Seeds for one purpose each, derived from the seed of a run."""

from __future__ import annotations

import hashlib


def derive(seed: int, *purpose: int | str) -> int:
    """Derive a seed below 2**32 for one purpose from the run's seed and the purpose's name.

    Examples:
        >>> derive(0, "image", 3) == derive(0, "image", 3) != derive(1, "image", 3)
        True
    """
    text = "/".join(str(word) for word in (seed, *purpose))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "big")
