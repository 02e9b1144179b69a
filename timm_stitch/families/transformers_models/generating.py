"""Generation by stitches: with caches, from one stitch to another in the middle of a text, and a cheap one ahead."""

from __future__ import annotations

from typing import Any

import torch

from ...network.stitchable import StitchIds, is_sequence_of_ids
from ...plan.stitch_plan import Stitch
from .cache import StitchCache, own_cache, replaced, taken_apart
from .inputs import TextInputs


class Generates:
    """What a stitched causal language model has beside the other networks; before transformers' `GenerationMixin`."""

    def generate(
        self,
        inputs: Any = None,
        *args: Any,
        stitch_id: StitchIds | None = None,
        assistant_stitch_id: int | None = None,
        **kwargs: Any,
    ) -> Any:
        """Generate text by one stitch, or each row by its own.

        Args:
            inputs, *args, **kwargs: as of transformers' `generate`.
            stitch_id: for this call only; with one id a row there is no cache. Default: the stitch that is set, which
                may be set anew in the middle (by a streamer, a stopping criterion or a controller): what follows is
                what the new one says of the text so far, at the price of running the text once.
            assistant_stitch_id: a cheaper stitch that proposes tokens, of which the stitch takes those that are its own
                (assisted generation): the same text, sooner where they agree. Greedy, for one row.

        Returns:
            As of transformers' `generate`.

        Raises:
            ValueError: if an id is not in the plan.
        """
        me: Any = self
        if stitch_id is not None:
            kwargs["stitch_id"] = stitch_id
        several = is_sequence_of_ids(stitch_id)
        if not several:
            me._stitch(stitch_id)
        if several or not all(view.takes_cache for view in me.views):
            kwargs["use_cache"] = False
        if assistant_stitch_id is not None:  # both alone: what a call names is handed to the assistant too
            kwargs.pop("stitch_id", None)
            ahead = me.extract(assistant_stitch_id)
            return me.extract(stitch_id).generate(inputs, *args, assistant_model=ahead, **kwargs)
        theirs: Any = super()
        return theirs.generate(inputs, *args, **kwargs)

    def prepare_inputs_for_generation(
        self, input_ids: Any, *args: Any, cache: Any = None, attention_mask: Any = None, **kwargs: Any
    ) -> Any:
        """As the back anchor has it: what its layers are given after the first token differs between models."""
        me: Any = self
        stitch_id = kwargs.get("stitch_id")
        several = is_sequence_of_ids(stitch_id)
        back = me.plan.stitches[-1].back if several else me._stitch(stitch_id).back
        return me.views[back].anchor.prepare_inputs_for_generation(
            input_ids, *args, cache=cache, attention_mask=attention_mask, **kwargs
        )

    def _prepare_cache_for_generation(
        self, generation_config: Any, model_kwargs: Any, *args: Any, **kwargs: Any
    ) -> Any:
        """As transformers', with a cache of the stitch in the place of an empty one."""
        me: Any = self
        theirs: Any = super()
        made = theirs._prepare_cache_for_generation(generation_config, model_kwargs, *args, **kwargs)
        given = model_kwargs.get("cache")
        if given is not None and not isinstance(given, StitchCache):
            model_kwargs["cache"] = own_cache(given, me._stitch(model_kwargs.get("stitch_id")), me.views)
            if getattr(generation_config, "is_assistant", False):
                model_kwargs["cache"].activate_past_recording()
        return made

    def _run(self, stitch: Stitch, inputs: TextInputs) -> Any:
        """What a stitch gives of a text, or of what follows the text in a cache."""
        me: Any = self
        inputs, given, wanted = taken_apart(inputs)
        if not wanted:
            return me.executor.run(stitch, inputs)
        cache = own_cache(given, stitch, me.views)
        new = inputs.main.shape[1]
        if cache.stitch_id != stitch.stitch_id:
            inputs = _from_the_beginning(cache, inputs)
            cache.become(own_cache(None, stitch, me.views))
        caches = {at: {"cache": one, "use_cache": True} for at, one in cache.of_segments.items()}
        out = me.executor.run(stitch, replaced(inputs, inputs.given, caches))
        cache.note(inputs)
        if out.logits.shape[1] > new:
            out["logits"] = out.logits[:, -new:]
        out["cache"] = cache
        return out


def _from_the_beginning(cache: StitchCache, inputs: TextInputs) -> TextInputs:
    """A call with the text that a cache holds before its own."""
    if not cache.length:
        return inputs
    ids, positions, real = cache.read()
    given = dict(inputs.given)
    if given.get("input_ids") is None:
        raise ValueError(
            f"this cache was filled by stitch {cache.stitch_id}: another one goes on from it with input_ids, not with "
            "embeddings."
        )
    count = given["input_ids"].shape[1]
    own = given.get("position_ids")
    if own is None:
        own = torch.arange(cache.length, cache.length + count, device=ids.device)[None]
    given["input_ids"] = torch.cat([ids, given["input_ids"]], dim=1)
    given["position_ids"] = torch.cat([positions, own.expand(ids.shape[0], count)], dim=1)
    mask = given.get("attention_mask")
    if mask is None or mask.shape[-1] == count:
        new = real.new_ones(ids.shape[0], count) if mask is None else mask.to(real.dtype)
        given["attention_mask"] = torch.cat([real, new], dim=1)
    return replaced(inputs, given)
