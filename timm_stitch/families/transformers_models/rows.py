"""A call with one stitch a row: what is asked of it must be what each row's stitch would give alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch

from ...network.executor import Executor, Notify
from ...plan.stitch_plan import Stitch
from .cache import NAMES
from .inputs import TextInputs
from .views import TransformersView


def run_rows(
    executor: Executor,
    views: Sequence[TransformersView],
    stitches: Sequence[Stitch],
    inputs: TextInputs,
    notify: Notify,
) -> Any:
    """Run one stitch for each row; rows run together as long as their stitches have equal steps.

    Args:
        executor, views: the network's executor and anchors.
        stitches: the stitch of each row.
        inputs: the inputs of the call.
        notify: a function that is called with each stitch that runs, and the number of its rows.

    Raises:
        ValueError: if something is asked for that belongs to one stitch.
    """
    _check_one_stitch_only(inputs)
    arguments = {k: v for k, v in inputs.arguments.items() if k not in NAMES and k != "use_cache"}
    if any(view.takes_mems for view in views):
        arguments["use_mems"] = False
    inputs = replace(inputs, arguments=arguments)
    inputs = replace(inputs, sums_losses=_sums_losses(views, dict.fromkeys(stitches), inputs))
    if asks_for_layers(views, inputs):
        return _run_apart(executor, stitches, inputs, notify)
    return executor.mixed(stitches, inputs, notify)


def asks_for_layers(views: Iterable[TransformersView], inputs: TextInputs) -> bool:
    """Whether a call, or the configuration of an anchor, asks for outputs of single layers.

    Only a stitch that runs from its first layer on gives all of them.
    """
    wishes = [value for name, value in inputs.arguments.items() if name.startswith("output_")]
    fields = (vars(view.anchor.config).items() for view in views)
    wishes += [value for own in fields for name, value in own if name.lstrip("_").startswith("output_")]
    return any(value is not None and value is not False for value in wishes)


def _run_apart(executor: Executor, stitches: Sequence[Stitch], inputs: TextInputs, notify: Notify) -> Any:
    """Run one stitch for each row as `Executor.mixed`, but each stitch from its first layer on."""
    rows: dict[Stitch, list[int]] = {}
    for row, stitch in enumerate(stitches):
        rows.setdefault(stitch, []).append(row)
    outputs, counts = [], []
    for stitch, own in rows.items():
        part = inputs.pick(torch.tensor(own, device=inputs.device))
        notify(stitch, len(own))
        outputs.append(executor.run(stitch, part))
        counts.append(part.num_labels())
    order = torch.tensor([row for own in rows.values() for row in own], device=inputs.device)
    return inputs.join(outputs, counts, torch.argsort(order))


def _sums_losses(views: Sequence[TransformersView], stitches: Iterable[Stitch], inputs: TextInputs) -> bool:
    """Whether the losses of these stitches for parts of the rows add up to that of all."""
    if "num_items_in_batch" not in inputs.arguments or not inputs.labels:
        return False
    sums = {views[stitch.back].divides_loss(inputs.rows(0, 1)) for stitch in stitches}
    if len(sums) > 1:
        raise ValueError(
            "some anchors divide their loss by num_items_in_batch and others do not: call each stitch by itself."
        )
    return sums.pop()


def _check_one_stitch_only(inputs: TextInputs) -> None:
    """Refuse what belongs to one stitch in a call with several.

    Raises:
        ValueError: naming it.
    """
    wishes = ((name, inputs.arguments.get(name)) for name in (*NAMES, "use_cache", "mems", "use_mems"))
    names = [name for name, wish in wishes if wish is not None and wish is not False]
    if names:
        raise ValueError(
            f"{names[0]} belongs to one stitch, and this call has several: leave it out, or call each stitch by itself."
        )
