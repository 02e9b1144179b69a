"""The ways to change a model of transformers that `text_changes.py` tries, each on a model alone and on a network.

A change is a function of a `Pair`: two plain models, the network of their copies, and folders of both. It changes both
alike and returns pairs of outputs that must be equal. It raises `Skip` where the plain model cannot follow.
"""

from __future__ import annotations

import copy
import logging
import re
import sys
import tempfile
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "coverage"))
from transformers_checks import cacheless, configuration, inputs, make_two

Equal = list[tuple[Any, Any]]  # outputs of the plain model, and of the network
READ = re.compile(r"""getattr\((?:\w+\.)*config,\s*["']([a-z]\w+)["']""")


class Skip(Exception):  # noqa: N818 (it is no error)
    """Says that the plain model does not do what a change asks for."""


class Pair:
    """Two plain models, the network of their copies, and both as saved.

    Args:
        kind, name, task: the type, the class and the task.
        prepare: a function that changes each model before the network is made.
        attention: the implementation of attention.
    """

    def __init__(
        self, kind: str, name: str, task: str, prepare: Callable[[Any], None] | None = None, attention: str = "eager"
    ) -> None:
        import timm_stitch

        self.kind, self.task = kind, task
        self.models = make_two(kind, name, attention)
        for model in self.models:
            if prepare is not None:
                plainly(prepare, model)
        self.plain = self.models[-1]
        # A batch with padding, and the arguments that keep a model from making a cache.
        self.batch: dict[str, Any] = {**inputs(self.plain, 2, 9), **cacheless(self.plain)}
        plainly(lambda m: m(**self.batch), self.plain)
        self.net = timm_stitch.stitch(copy.deepcopy(self.models), kernel_size=1)

    def anchor(self, **more: Any) -> Any:
        """Call the network's last anchor alone."""
        return self.net(**more, stitch_id=1)

    def both(self, **more: Any) -> Equal:
        """Call the plain model and the network's anchor."""
        expected = plainly(lambda m: m(**more), self.plain)
        return [(expected, self.anchor(**more))]

    def reloaded(self, **more: Any) -> Equal:
        """Save the network, load it, and call both."""
        import timm_stitch

        batch = {k: v for k, v in self.batch.items() if k != "use_cache"} | more
        with tempfile.TemporaryDirectory() as folder:
            timm_stitch.save_pretrained(self.net, folder)
            again = timm_stitch.from_hub(folder, attn_implementation="eager")
        return [(self.net(**batch, stitch_id=k), again(**batch, stitch_id=k)) for k in (1, self.net.stitch_ids[-1])]


def plainly(call: Callable[[Any], Any], model: Any) -> Any:
    """Call a plain model; what it cannot do is skipped."""
    try:
        return call(model)
    except Exception as error:
        raise Skip(f"{type(error).__name__}: {' '.join(str(error).split())[:100]}") from error


def set_both(pair: Pair, **fields: Any) -> None:
    """Set fields of both configurations after building."""
    for name, value in fields.items():
        plainly(lambda m, n=name, v=value: setattr(m.config, n, v), pair.plain)
        setattr(pair.net.config, name, value)


# ── fields set after building ─────────────────────────────────────────────────────────────────────────


def field_in_config(name: str, **fields: Any) -> Callable[[Callable[..., Pair]], Equal]:
    """Make the change of this name, which sets fields after building."""

    def change(make: Callable[..., Pair]) -> Equal:
        pair = make()
        set_both(pair, **fields)
        return pair.both(**pair.batch) + pair.reloaded()

    change.__name__ = name
    return change


hidden_states_in_config = field_in_config("hidden_states_in_config", output_hidden_states=True)
attentions_in_config = field_in_config("attentions_in_config", output_attentions=True)
tuples_in_config = field_in_config("tuples_in_config", return_dict=False)


def cache_in_config(make: Callable[..., Pair]) -> Equal:
    pair = make()
    if pair.task != "ForCausalLM" or "use_cache" not in pair.batch:
        raise Skip("no cache")
    set_both(pair, use_cache=True)
    batch = inputs(pair.plain, 2, 9)
    plain, ours = plainly(lambda m: m(**batch), pair.plain), pair.anchor(**batch)
    return [(plain.logits, ours.logits), ([bool(plain.get("cache"))], [bool(ours.get("cache"))])]


def other_padding_in_config(make: Callable[..., Pair]) -> Equal:
    pair = make()
    set_both(pair, pad_token_id=5)
    batch = {**pair.batch, "input_ids": pair.batch["input_ids"].clone()}
    batch["input_ids"][0, -2:] = 5
    return pair.both(**batch) + pair.reloaded()


def problem_type_in_config(make: Callable[..., Pair]) -> Equal:
    import torch

    pair = make()
    if pair.task != "ForSequenceClassification":
        raise Skip("no classifier")
    set_both(pair, problem_type="multi_label_classification")
    return pair.both(**pair.batch, labels=torch.rand(2, 3)) + pair.reloaded(labels=torch.rand(2, 3))


def unknown_field(make: Callable[..., Pair]) -> Equal:
    pair = make(prepare=lambda m: setattr(m.config, "a_note_of_mine", 3))
    return pair.both(**pair.batch) + pair.reloaded()


def fields_that_the_code_reads(make: Callable[..., Pair]) -> Equal:
    """Set fields that the configuration does not declare but the model's code reads, before building."""
    from transformers import CONFIG_MAPPING

    kind = make.args[0]  # type: ignore[attr-defined]
    cls = CONFIG_MAPPING[kind]
    spec = find_spec(cls.__module__.replace(".configuration_", ".modeling_"))
    names = set(READ.findall(Path(str(spec.origin)).read_text())) if spec and spec.origin else set()
    names = {n for n in names if not hasattr(cls(), n)} if names else names
    if not names:
        raise Skip("reads declared fields only")
    pairs: Equal = []
    for name in sorted(names)[:4]:
        try:
            pair = make(prepare=lambda m, n=name: build_with(m, n))
            pairs += pair.both(**pair.batch) + pair.reloaded()
        except Skip:
            continue
    if not pairs:
        raise Skip("the plain model takes no True for them")
    return pairs


def build_with(model: Any, name: str) -> None:
    """Build a model again with a field of its configuration set."""
    setattr(model.config, name, True)
    model.__init__(model.config)
    model.eval()


# ── asked for in a call, or on when the network is made ───────────────────────────────────────────────


def on_when_stitched(make: Callable[..., Pair]) -> Equal:
    def prepare(model: Any) -> None:
        model.config.output_hidden_states = True
        if hasattr(model.config, "output_router_logits"):
            model.config.output_router_logits = True

    pair = make(prepare=prepare)
    return pair.both(**pair.batch) + pair.reloaded()


def hidden_states_by_row(make: Callable[..., Pair]) -> Equal:
    import torch

    pair = make()
    ids, batch = [1, pair.net.stitch_ids[-1]], {**pair.batch, "output_hidden_states": True}
    together, pairs = pair.net(**batch, stitch_id=ids), []
    for row, k in enumerate(ids):
        part = {n: v[row : row + 1] if isinstance(v, torch.Tensor) else v for n, v in batch.items()}
        alone = pair.net(**part, stitch_id=k)
        states = together.hidden_states[-len(alone.hidden_states) :]
        pairs.append((list(alone.hidden_states), [s[row : row + 1] for s in states]))
    return pairs


def loss_by_row(make: Callable[..., Pair]) -> Equal:
    """One anchor for all rows, by row and not: the loss with `num_items_in_batch` is the same."""
    import torch

    pair = make()
    batch = pair.batch
    labels = torch.ones(2).long() if pair.task == "ForSequenceClassification" else batch["input_ids"]
    more = {**batch, "labels": labels, "num_items_in_batch": 50}
    plainly(lambda m: m(**more), pair.plain)
    k, one = pair.net.stitch_ids[-1], pair.net.stitch_ids[2]
    rows = [{n: v[i : i + 1] if isinstance(v, torch.Tensor) else v for n, v in more.items()} for i in (0, 1)]
    together = pair.net(**more, stitch_id=[k, one]).loss
    alone = [pair.net(**row, stitch_id=i).loss for row, i in zip(rows, (k, one), strict=True)]
    free = {n: v for n, v in rows[0].items() if n != "num_items_in_batch"}
    divided = not torch.equal(pair.net(**free, stitch_id=k).loss, alone[0])
    counts = [int((r["labels"][:, 1:] if pair.task == "ForCausalLM" else r["labels"]).numel()) for r in rows]
    mean = sum(a * c for a, c in zip(alone, counts, strict=True)) / sum(counts)
    return [([sum(alone) if divided else mean], [together])]


def long_text(make: Callable[..., Pair]) -> Equal:
    pair = make()
    batch = {**inputs(pair.plain, 1, 90), **cacheless(pair.plain)}
    return pair.both(**batch)


def resize_of_embeddings(make: Callable[..., Pair]) -> Equal:
    pair = make()
    size = pair.plain.get_input_embeddings().weight.shape[0] + 5
    plainly(lambda m: m.resize_token_embeddings(size, mean_resizing=False), pair.plain)
    plain = plainly(lambda m: m(**pair.batch), pair.plain)
    pair.net.resize_token_embeddings(size, mean_resizing=False)
    ours = pair.anchor(**pair.batch)
    if plain.logits.shape != ours.logits.shape:
        return [([plain.logits], [ours.logits])]
    return [(plain.logits[..., : size - 5], ours.logits[..., : size - 5]), *pair.reloaded()]


# ── arguments of from_pretrained ──────────────────────────────────────────────────────────────────────


def _load_both(pair: Pair, **more: Any) -> tuple[Any, Any]:
    with tempfile.TemporaryDirectory() as plain, tempfile.TemporaryDirectory() as ours:
        plainly(lambda m: m.save_pretrained(plain), pair.plain)
        pair.net.save_pretrained(ours)
        loaded = plainly(lambda m: type(m).from_pretrained(plain, attn_implementation="eager", **more), pair.plain)
        network = type(pair.net).from_pretrained(ours, attn_implementation="eager", **more)
    return loaded.eval(), network.eval()


def loaded_with_hidden_states(make: Callable[..., Pair]) -> Equal:
    pair = make()
    plain, ours = _load_both(pair, output_hidden_states=True)
    return [(plain(**pair.batch), ours(**pair.batch, stitch_id=1))]


def loaded_with_other_classes(make: Callable[..., Pair]) -> Equal:
    pair = make()
    if pair.task != "ForSequenceClassification":
        raise Skip("no classifier")
    plain, ours = _load_both(pair, num_labels=5, ignore_mismatched_sizes=True)
    return [([tuple(plain(**pair.batch).logits.shape)], [tuple(ours(**pair.batch, stitch_id=1).logits.shape)])]


def loaded_with_other_dropout(make: Callable[..., Pair]) -> Equal:
    import torch

    pair = make()
    names = [
        n for n in ("hidden_dropout_prob", "dropout", "hidden_dropout", "resid_pdrop") if n in vars(pair.plain.config)
    ]
    if not names:
        raise Skip("no dropout")
    plain, ours = _load_both(pair, **{names[0]: 0.375})

    def rates(model: Any) -> list[Any]:
        return [[m.p for m in model.modules() if isinstance(m, torch.nn.Dropout)]]

    return [(rates(plain), rates(ours.anchors[1]))]


# ── generation ────────────────────────────────────────────────────────────────────────────────────────


def generation_settings(make: Callable[..., Pair]) -> Equal:
    def prepare(model: Any) -> None:
        if not model.can_generate():
            raise ValueError("does not generate")
        ids = inputs(model, 1, 9)["input_ids"]
        third = int(model.generate(ids, max_new_tokens=3, do_sample=False)[0, -1])
        model.generation_config.eos_token_id = [2, third]
        model.generation_config.max_new_tokens, model.generation_config.repetition_penalty = 12, 1.3

    pair = make(prepare=prepare)
    ids = inputs(pair.plain, 1, 9)["input_ids"]
    import timm_stitch

    with tempfile.TemporaryDirectory() as folder:
        timm_stitch.save_pretrained(pair.net, folder)
        again = timm_stitch.from_hub(folder, attn_implementation="eager")
    expected = plainly(lambda m: m.generate(ids), pair.plain)
    return [([expected], [pair.net.generate(ids, stitch_id=1)]), ([expected], [again.generate(ids, stitch_id=1)])]


def generation_from_embeddings(make: Callable[..., Pair]) -> Equal:
    pair = make()
    if pair.task != "ForCausalLM":
        raise Skip("does not generate")
    ids = inputs(pair.plain, 1, 9)["input_ids"]
    embeds = pair.plain.get_input_embeddings()(ids).detach()
    more = {"max_new_tokens": 4, "do_sample": False}
    expected = plainly(lambda m: m.generate(inputs_embeds=embeds, **more), pair.plain)
    return [([expected], [pair.net.generate(inputs_embeds=embeds, stitch_id=1, **more)])]


def beams_by_row(make: Callable[..., Pair]) -> Equal:
    pair = make()
    if pair.task != "ForCausalLM":
        raise Skip("does not generate")
    ids, more = inputs(pair.plain, 2, 9)["input_ids"][-1:].expand(2, -1), {"do_sample": False, "num_beams": 2}
    more |= {"max_new_tokens": 3, "min_new_tokens": 3, "use_cache": False}
    stitches = [1, pair.net.stitch_ids[-1]]
    plainly(lambda m: m.generate(ids, **more), pair.plain)
    together = pair.net.generate(ids, stitch_id=stitches, **more)
    return [([pair.net.generate(ids[:1], stitch_id=k, **more)[0]], [together[i]]) for i, k in enumerate(stitches)]


CHANGES = {
    function.__name__: function
    for function in (
        hidden_states_in_config, attentions_in_config, tuples_in_config, cache_in_config, other_padding_in_config,
        problem_type_in_config, unknown_field, fields_that_the_code_reads, on_when_stitched, hidden_states_by_row,
        loss_by_row, long_text, resize_of_embeddings, loaded_with_hidden_states, loaded_with_other_classes,
        loaded_with_other_dropout, generation_settings, generation_from_embeddings, beams_by_row,
    )
}  # fmt: skip


def equal(plain: Any, ours: Any) -> str:
    """Say how two outputs differ; empty if they are equal."""
    import torch

    if isinstance(plain, dict):
        names = [n for n in plain if plain[n] is not None and "cache" not in n and "past" not in n]
        missing = [n for n in names if ours.get(n) is None] if isinstance(ours, dict) else names
        if missing:
            return f"lacks {', '.join(missing)}"
        return next((f"{n}: {why}" for n in names if (why := equal(plain[n], ours[n]))), "")
    if isinstance(plain, torch.Tensor):
        if not isinstance(ours, torch.Tensor) or plain.shape != ours.shape:
            return f"{tuple(plain.shape)} became {tuple(getattr(ours, 'shape', ()))}"
        close = torch.allclose(plain.double(), ours.double(), rtol=1e-4, atol=1e-5, equal_nan=True)
        return "" if close else f"differs by {(plain.double() - ours.double()).abs().max().item():.2g}"
    if isinstance(plain, (tuple, list)):
        if not isinstance(ours, (tuple, list)) or len(plain) != len(ours):
            return f"{len(plain)} became {len(ours) if hasattr(ours, '__len__') else type(ours).__name__}"
        return next((why for a, b in zip(plain, ours, strict=True) if (why := equal(a, b))), "")
    if not isinstance(plain, (bool, int, float, str, type(None))):
        return ""  # a cache
    return "" if plain == ours else f"{plain!s:.60} became {ours!s:.60}"


def examine(kind: str, name: str, task: str) -> dict[str, Any]:
    """Make the row of one type: what became of each change."""
    from functools import partial

    import torch

    import timm_stitch.text  # noqa: F401

    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    row: dict[str, Any] = {"type": kind, "class": name, "task": task, "outcomes": {}, "details": {}}
    try:
        configuration(kind, 4, {})
        Pair(kind, name, task)
    except Exception as error:
        return row | {"reason": f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"}
    for change, function in CHANGES.items():
        with torch.no_grad():
            outcome, detail = try_change(partial(Pair, kind, name, task), function)
        row["outcomes"][change] = outcome
        if outcome not in ("equal", "skipped"):
            row["details"][change] = detail
    return row


def try_change(make: Callable[..., Pair], function: Callable[..., Equal]) -> tuple[str, str]:
    """Try one change: the outcome and what it says."""
    try:
        differences = [why for a, b in function(make) if (why := equal(a, b))]
    except Skip as error:
        return "skipped", str(error)
    except Exception as error:
        message, lines = " ".join(str(error).split())[:160], len(str(error).strip().splitlines())
        expected = isinstance(error, (ValueError, TypeError, OSError)) and lines == 1
        return ("refused" if expected else "RAW"), f"{type(error).__name__}: {message}"
    return ("DIFFERENT", differences[0]) if differences else ("equal", "")
