"""Generation by stitches: with caches, from one stitch to another in the middle of a text, and with a draft stitch."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import GenerationConfig, GenerationMixin

from ...network.stitchable import StitchIds, is_sequence_of_ids
from ...plan.stitch_plan import Stitch
from .cache import NAMES, StitchCache, cache_for, split_cache
from .inputs import TextInputs
from .network import StitchedModel

if TYPE_CHECKING:
    from transformers.utils import ModelOutput


class GeneratingModel(StitchedModel, GenerationMixin):
    """A stitched network that generates text."""

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
            inputs, *args, **kwargs: the arguments of transformers' `generate`.
            stitch_id: the stitch of this call; with one id a row there is no cache. Default: the stitch that is set. A
                streamer, a stopping criterion or a controller may set another one in the middle: it runs the text so
                far once, and goes on from there.
            assistant_stitch_id: a cheaper stitch that drafts tokens, which the stitch verifies (assisted generation):
                the same text, sooner where they agree. Greedy, for one row.

        Returns:
            The output of transformers' `generate`.

        Raises:
            ValueError: if an id is not in the plan.
        """
        settings = kwargs.get("generation_config") or self.generation_config
        if kwargs.get("assistant_early_exit", getattr(settings, "assistant_early_exit", None)) is not None:
            raise ValueError(
                "assistant_early_exit drafts by the first layers of one model: give assistant_stitch_id, the id of a "
                "cheaper stitch."
            )
        several = is_sequence_of_ids(stitch_id)
        has_no_cache = several or any(view.keeps_own_states for view in self.views)
        if has_no_cache and kwargs.get("inputs_embeds") is not None:
            raise ValueError(
                "inputs_embeds needs a cache, which belongs to one stitch: generate with one stitch_id, or from "
                "input_ids."
            )
        if several:
            kwargs["stitch_id"] = torch.as_tensor(stitch_id)  # repeated for each beam
        elif stitch_id is not None:
            kwargs["stitch_id"] = self._stitch(stitch_id).stitch_id
        if has_no_cache or not all(view.takes_cache for view in self.views):
            kwargs["use_cache"] = False
        if assistant_stitch_id is not None:  # both extracted: transformers gives the assistant the call's arguments
            kwargs.pop("stitch_id", None)
            kwargs["assistant_model"] = self.extract(assistant_stitch_id)
            alone = self.extract(self._stitch(stitch_id).stitch_id)
            return alone.generate(inputs, *args, **kwargs)
        return super().generate(inputs, *args, **kwargs)

    def prepare_inputs_for_generation(
        self,
        input_ids: Any,
        *args: Any,
        cache: Any = None,
        attention_mask: Any = None,
        inputs_embeds: Any = None,
        **kwargs: Any,
    ) -> Any:
        """Prepare inputs as the back anchor does: what its layers take after the first token differs between models."""
        stitch_id = kwargs.get("stitch_id")
        stitch = self.plan.stitches[-1] if is_sequence_of_ids(stitch_id) else self._stitch(stitch_id)
        anchor: Any = self.views[stitch.back].anchor
        return anchor.prepare_inputs_for_generation(
            input_ids, *args, cache=cache, attention_mask=attention_mask, inputs_embeds=inputs_embeds, **kwargs
        )

    def _prepare_cache_for_generation(
        self, generation_config: GenerationConfig, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> Any:
        """Prepare the cache as transformers does, and replace an empty one by a cache of the stitch."""
        mixin: Any = super()
        prepared = mixin._prepare_cache_for_generation(generation_config, model_kwargs, *args, **kwargs)
        cache = model_kwargs.get("cache")
        if cache is not None and not isinstance(cache, StitchCache):
            cache = cache_for(self._stitch(model_kwargs.get("stitch_id")), self.views, cache)
            model_kwargs["cache"] = cache
            if getattr(generation_config, "is_assistant", False):
                cache.activate_past_recording()
        return prepared

    @property
    def _caches_by_default(self) -> bool:
        """Whether calls that do not say so want a cache: where the user set `use_cache` in the configuration."""
        return bool(self.config.__dict__.get("use_cache")) and not (self.training and self.grad_checkpointing)

    def _run(self, stitch: Stitch, inputs: TextInputs) -> ModelOutput:
        """Run a stitch on a text, or on what follows the text in a cache."""
        is_asked = "use_cache" in inputs.arguments
        inputs, brought, is_wanted = split_cache(inputs, self._caches_by_default)
        stranger = next((view for n in stitch.anchors if (view := self.views[n]).keeps_own_states), None)
        if stranger is not None and brought is not None:
            raise ValueError(
                f"{type(stranger.anchor).__name__} takes no cache of transformers: give the whole text with "
                "use_cache=False."
            )
        if not is_wanted or stranger is not None:
            return super()._run(stitch, inputs)
        cache = cache_for(stitch, self.views, brought)
        count = inputs.main.shape[1]
        if cache.stitch_id != stitch.stitch_id:  # run the text again, by this stitch
            inputs = _prepend_text(cache, inputs)
            cache.become(cache_for(stitch, self.views))
        caches = {place: {"cache": own, "use_cache": True} for place, own in cache.segment_caches.items()}
        output = super()._run(stitch, replace(inputs, caches=caches))
        if brought is None and not is_asked and all(output.get(name) is None for name in NAMES):
            return output  # of encoders, which give no cache
        cache.add_text(inputs)
        if output["logits"].shape[1] > count:
            output["logits"] = output["logits"][:, -count:]
        output["cache"] = cache
        return output


def _prepend_text(cache: StitchCache, inputs: TextInputs) -> TextInputs:
    """Prepend the text that a cache holds to that of a call."""
    if not cache.length:
        return inputs
    ids, positions, real = cache.read_text()
    arguments = dict(inputs.arguments)
    new_ids: Tensor | None = arguments.get("input_ids")
    if new_ids is None:
        raise ValueError(
            f"this cache was filled by stitch {cache.stitch_id}: another one goes on from it with input_ids, not with "
            "embeddings."
        )
    count, new_positions, mask = new_ids.shape[1], arguments.get("position_ids"), arguments.get("attention_mask")
    if new_positions is None:
        new_positions = torch.arange(cache.length, cache.length + count, device=ids.device)[None]
    arguments["input_ids"] = torch.cat([ids, new_ids], dim=1)
    arguments["position_ids"] = torch.cat([positions, new_positions.expand(ids.shape[0], count)], dim=1)
    if mask is None or mask.shape[-1] == count:
        new_real = real.new_ones(ids.shape[0], count) if mask is None else mask.to(real.dtype)
        arguments["attention_mask"] = torch.cat([real, new_real], dim=1)
    return replace(inputs, arguments=arguments)
