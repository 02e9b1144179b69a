"""Which stitch to train next: a function of the seed and the step, the same on every process.

Imports the standard library and `plan` only.
"""

from __future__ import annotations

import random
from collections.abc import Sequence


def uniform(stitch_ids: Sequence[int], seed: int, step: int) -> int:
    """One stitch with equal chances (SN-Net's rule), a pure function of seed and step.

    Deviation: the authors draw another stitch on every process; here all processes agree, so a resumed
    or a differently distributed run trains the same stitches.
    """
    return random.Random(f"{seed}/{step}").choice(stitch_ids)
