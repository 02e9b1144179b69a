"""What a stitched language model keeps of the tokens before: a cache an anchor, and the text itself.

Each segment of a stitch has an ordinary cache of its anchor. Layers that the stitch leaves out keep one number a
position, so that whoever asks a cache how long it is, or of which size a mask must be, hears the same from every layer.
The text is kept beside, in the first layer: so a stitch that did not fill the cache can go on from it, at the price of
running the text once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from ...plan.stitch_plan import Stitch
from .inputs import TextInputs

NO_TOKEN = -1  # where a text was given as embeddings
NAMES = ("cache", "past_key_values")  # what transformers calls it, and called it


class StitchCache(Cache):
    """The caches of one stitch; for transformers one cache whose layers are the text and those of all of them.

    Args:
        stitch: whose layers fill it.
        configs: of each anchor, by its number.

    Attributes:
        stitch_id: of the stitch.
        of_segments: the cache of each segment, by (anchor, first layer).
    """

    def __init__(self, stitch: Stitch, configs: Mapping[int, Any]) -> None:
        self.stitch_id, self.segments = stitch.stitch_id, stitch.segments
        self.of_segments = {(s.anchor, s.start): DynamicCache(config=configs[s.anchor]) for s in stitch.segments}
        self.text = DynamicLayer()
        super().__init__(layers=[self.text, *(x for cache in self.of_segments.values() for x in cache.layers)])

    @property
    def length(self) -> int:
        """How many tokens it holds."""
        return int(self.text.get_seq_length())

    def note(self, inputs: TextInputs) -> None:
        """Keep the text of a call that ran, and have layers that were left out be as long as those that ran."""
        main, given, before = inputs.main, inputs.given, self.length
        rows, count, device = main.shape[0], main.shape[1], main.device
        for segment in self.segments:
            cache = self.of_segments[segment.anchor, segment.start]
            for index, layer in enumerate(cache.layers):
                if not segment.start <= index < segment.stop:
                    _lengthen(layer, rows, count, device)
        ids, positions, mask = (given.get(name) for name in ("input_ids", "position_ids", "attention_mask"))
        if ids is None:
            ids = torch.full((rows, count), NO_TOKEN, device=device)
        if positions is None or positions.ndim != 2:
            positions = torch.arange(before, before + count, device=device)[None]
        real = torch.ones_like(ids) if mask is None or mask.ndim != 2 else mask[:, -count:].to(ids.dtype)
        kept = torch.stack([ids, positions.expand(rows, count), real], dim=-1)[:, None]
        self.text.update(kept, kept[..., :1])

    def read(self) -> tuple[Tensor, Tensor, Tensor]:
        """The text, its positions, and which of it is no padding, (B, length) each.

        Raises:
            ValueError: if it was given as embeddings.
        """
        text: Any = self.text
        kept: Tensor = text.keys[:, 0]
        ids, positions, real = kept.unbind(-1)
        if ids.numel() and int(ids.min()) == NO_TOKEN:
            raise ValueError(
                f"this cache was filled by stitch {self.stitch_id} from embeddings, so that another stitch cannot go "
                "on from it: give that one an empty cache and the whole text."
            )
        return ids, positions, real

    def become(self, other: StitchCache) -> None:
        """Hold what another one holds."""
        self.__dict__.update(other.__dict__)


def _lengthen(layer: Any, rows: int, count: int, device: Any) -> None:
    """Let a layer that was left out know of so many tokens."""
    for state in getattr(layer, "has_previous_state", None) or ():
        layer.has_previous_state[state] = True
    if hasattr(layer, "update") and hasattr(layer, "lazy_initialization") and hasattr(layer, "get_seq_length"):
        number = torch.zeros(rows, 1, count, 1, device=device)
        layer.update(number, number)


def own_cache(given: Any, stitch: Stitch, views: Sequence[Any]) -> StitchCache:
    """A cache for a stitch: the one given, or in the place of an empty one of another kind a new one.

    Raises:
        ValueError: if it holds what another model has kept.
    """
    if isinstance(given, StitchCache):
        return given
    if given is not None and (not hasattr(given, "layers") or any(_holds(layer) for layer in given.layers)):
        raise ValueError(
            f"this {type(given).__name__} holds what another model has kept: begin with none (cache=None), "
            "and go on with the one in this network's output."
        )
    return StitchCache(stitch, {s.anchor: views[s.anchor].anchor.config for s in stitch.segments})


def _holds(layer: Any) -> bool:
    return bool(getattr(layer, "is_initialized", False)) and getattr(layer, "keys", None) is not None


def taken_apart(inputs: TextInputs) -> tuple[TextInputs, Any, bool]:
    """A call without its cache; the cache; and whether one is wanted."""
    given = dict(inputs.given)
    caches = [given.pop(name) for name in NAMES if name in given]
    wanted = bool(given.pop("use_cache", False))
    return replaced(inputs, given), caches[0] if caches else None, wanted or bool(caches)


def replaced(inputs: TextInputs, given: Mapping[str, Any], caches: Mapping[Any, Any] | None = None) -> TextInputs:
    """The same call with other arguments."""
    return TextInputs(given, inputs.labels, caches or {}, inputs.shifts_labels)
