"""The cache of a stitched language model: a cache for each segment, and the text itself.

Each segment of a stitch has an ordinary cache of its anchor. Layers that the stitch leaves out keep one number a
position, so that every layer gives the same answer about the cache's length and the size of a mask. The first layer
keeps the text, so that a stitch that did not fill the cache can go on from it: it runs the text once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from ...plan.stitch_plan import Stitch
from .inputs import TextInputs
from .views import TransformersView

NO_TOKEN = -1  # where a text was given as embeddings
NAMES = ("cache", "past_key_values")  # transformers' name of the cache, and the name that it had before


class StitchCache(Cache):
    """The caches of one stitch as one cache of transformers, whose layers are the text and those of all caches.

    Args:
        stitch: the stitch whose layers fill it.
        configs: the configuration of each anchor of the stitch, by its number.

    Attributes:
        stitch_id: the id of the stitch.
        segment_caches: the cache of each segment, by (anchor, first layer).
    """

    def __init__(self, stitch: Stitch, configs: Mapping[int, PreTrainedConfig]) -> None:
        self.stitch_id, self.segments = stitch.stitch_id, stitch.segments
        self.segment_caches = {(s.anchor, s.start): DynamicCache(config=configs[s.anchor]) for s in stitch.segments}
        self.text = DynamicLayer()
        super().__init__(layers=[self.text, *(x for cache in self.segment_caches.values() for x in cache.layers)])

    @property
    def length(self) -> int:
        """The number of tokens that it holds."""
        return int(self.text.get_seq_length())

    def add_text(self, inputs: TextInputs) -> None:
        """Add the text of a call that ran, and make skipped layers as long as those that ran."""
        rows, count = inputs.main.shape[:2]
        device, length = inputs.device, self.length
        for segment in self.segments:
            for index, layer in enumerate(self.segment_caches[segment.anchor, segment.start].layers):
                if not segment.start <= index < segment.stop:
                    _lengthen(layer, length, rows, count, device)
        ids, positions, mask = (inputs.arguments.get(n) for n in ("input_ids", "position_ids", "attention_mask"))
        if ids is None:
            ids = torch.full((rows, count), NO_TOKEN, device=device)
        if positions is None or positions.ndim != 2:
            positions = torch.arange(length, length + count, device=device)[None]
        real = torch.ones_like(ids) if mask is None or mask.ndim != 2 else mask[:, -count:].to(ids.dtype)
        text = torch.stack([ids, positions.expand(rows, count), real], dim=-1)[:, None]
        self.text.update(text, text[..., :1])

    def read_text(self) -> tuple[Tensor, Tensor, Tensor]:
        """Read the text, its positions, and which of it is no padding, (B, length) each.

        Raises:
            ValueError: if it was given as embeddings.
        """
        ids, positions, real = cast("Tensor", self.text.keys)[:, 0].unbind(-1)
        if ids.numel() and int(ids.min()) == NO_TOKEN:
            raise ValueError(
                f"this cache was filled by stitch {self.stitch_id} from embeddings, so that another stitch cannot go "
                "on from it: give that one an empty cache and the whole text."
            )
        return ids, positions, real

    def become(self, other: StitchCache) -> None:
        """Take over the contents of another one."""
        self.__dict__.update(other.__dict__)


def _lengthen(layer: Any, length: int, rows: int, count: int, device: torch.device) -> None:
    """Make the cache of a skipped layer longer by some tokens, unless a layer that ran keeps further states there."""
    states: dict[int, bool] = getattr(layer, "has_previous_state", None) or {}
    states.update(dict.fromkeys(states, True))
    if not all(hasattr(layer, name) for name in ("update", "lazy_initialization", "get_seq_length")):
        return
    if int(layer.get_seq_length()) <= length:
        number = torch.zeros(rows, 1, count, 1, device=device)
        layer.update(number, number)


def cache_for(stitch: Stitch, views: Sequence[TransformersView], cache: object = None) -> StitchCache:
    """Make a cache for a stitch, unless a call brings one; an empty one of another kind is replaced.

    Raises:
        ValueError: if that cache holds what another model has kept.
    """
    if isinstance(cache, StitchCache):
        return cache
    if cache is not None and (not hasattr(cache, "layers") or any(map(_is_filled, cache.layers))):
        raise ValueError(
            f"this {type(cache).__name__} holds what another model has kept: begin with none (cache=None), "
            "and go on with the one in this network's output."
        )
    return StitchCache(stitch, {s.anchor: views[s.anchor].anchor.config for s in stitch.segments})


def _is_filled(layer: object) -> bool:
    return bool(getattr(layer, "is_initialized", False)) and getattr(layer, "keys", None) is not None


def split_cache(inputs: TextInputs, default: bool = False) -> tuple[TextInputs, object, bool]:
    """Split a call into one without a cache, its cache, and whether it wants one; `default` where it does not say."""
    arguments = dict(inputs.arguments)
    caches = [arguments.pop(name) for name in NAMES if name in arguments]
    is_wanted = bool(arguments.pop("use_cache", default)) or bool(caches)
    return replace(inputs, arguments=arguments, caches={}), caches[0] if caches else None, is_wanted
