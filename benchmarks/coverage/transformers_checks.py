"""What every model of transformers must do as an anchor: built at a tiny size, opened, stitched, saved, generating."""

from __future__ import annotations

import copy
import logging
import tempfile
import warnings
from typing import Any

# Sizes by the names that configurations have for them; a type takes those that it has.
SIZES = {
    "vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 48, "head_dim": 8, "max_position_embeddings": 64, "n_embd": 32, "n_layer": 4, "n_head": 4,
    "d_model": 32, "n_heads": 4, "n_layers": 4, "ffn_dim": 48, "d_ff": 48, "dim": 32, "hidden_dim": 48,
    "n_positions": 64, "word_embed_proj_dim": 32, "num_layers": 4, "decoder_layers": 4, "decoder_attention_heads": 4,
    "decoder_ffn_dim": 48, "image_size": 64, "patch_size": 16, "embedding_size": 32, "num_experts": 4,
    "num_local_experts": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8, "v_head_dim": 8, "n_group": 1, "topk_group": 1, "mamba_n_heads": 4, "mamba_d_head": 16,
    "mamba_d_state": 8, "mamba_n_groups": 1, "state_size": 8, "num_heads": 4, "lru_width": 32, "sliding_window": 6,
    "attention_window": 8, "block_size": 4, "linear_num_value_heads": 4, "linear_num_key_heads": 2,
    "linear_key_head_dim": 8, "linear_value_head_dim": 8, "hidden_size_per_layer_input": 8, "ffn_hidden_size": 48,
    "vocab_size_per_layer_input": 96, "rotary_dim": 4, "num_labels": 3, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2, "mamba_expand": 2, "first_k_dense_replace": 1, "global_attn_every_n_layers": 2,
}  # fmt: skip
WIDE = {"hidden_size": 64, "n_embd": 64, "d_model": 64, "dim": 64}
LARGEST = 10_000_000  # parameters; larger models are not tried


def configuration(kind: str, depth: int, changes: dict[str, Any]) -> Any:
    """Make a tiny configuration of a type, with those sizes that it has."""
    from transformers import CONFIG_MAPPING

    cls = CONFIG_MAPPING[kind]
    plain = cls()
    own = {k: v for k, v in (SIZES | changes).items() if takes(plain, k)}
    for name in ("num_hidden_layers", "n_layer", "n_layers", "num_layers"):
        if name in own:
            own[name] = depth
    for name in ("layer_types", "layers_block_type"):
        types = getattr(plain, name, None)
        if isinstance(types, (list, tuple)) and takes(plain, name):
            seen = list(dict.fromkeys(types))
            own[name] = [seen[i % len(seen)] for i in range(depth)]
    if takes(plain, "kv_lora_rank") and "num_key_value_heads" in own:  # latent attention has one of each
        own["num_key_value_heads"] = own["num_attention_heads"]
    if isinstance(getattr(plain, "depths", None), (list, tuple)):
        own["depths"] = [1] * len(plain.depths)
        if isinstance(getattr(plain, "hidden_sizes", None), (list, tuple)):
            own["hidden_sizes"] = [8 * (i + 1) for i in range(len(plain.hidden_sizes))]
    return cls(**own)


def takes(config: Any, name: str) -> bool:
    """Whether a configuration has a field that can be set."""
    own = getattr(type(config), name, None)
    if isinstance(own, property) and own.fset is None:
        return False
    try:
        return hasattr(config, name)
    except NotImplementedError:
        return False


def make(kind: str, name: str, depth: int, seed: int, changes: dict[str, Any], attention: str) -> Any:
    """Make a model of a type, with random weights that are not all nearly alike."""
    import torch
    import transformers

    torch.manual_seed(seed)
    cls = getattr(transformers, name)
    with torch.device("meta"):
        count = sum(p.numel() for p in cls(configuration(kind, depth, changes)).parameters())
    if count > LARGEST:
        raise RuntimeError(f"{count:,} parameters with the sizes that are known here")
    return cls._from_config(configuration(kind, depth, changes), attn_implementation=attention).eval()


def make_two(kind: str, name: str, attention: str) -> list[Any]:
    """Make two models of two widths, or of one width where the type does not take another."""
    import torch

    small = make(kind, name, 4, 0, {}, attention)
    try:
        wide = make(kind, name, 4, 1, WIDE, attention)
        with torch.no_grad():
            wide(**inputs(wide, 2, 8))
    except Exception:
        wide = make(kind, name, 4, 1, {}, attention)
    return [small, wide]


def inputs(model: Any, rows: int, length: int) -> dict[str, Any]:
    """Make a batch with padding."""
    import torch

    from timm_stitch.families.transformers_models.opening import make_batch

    torch.manual_seed(length)
    return make_batch(model, rows, length)


def cacheless(model: Any) -> dict[str, Any]:
    """Choose the arguments that keep a model from making a cache."""
    from timm_stitch.families.transformers_models.views import takes as has

    return {"use_cache": False} if has(model, "use_cache") else {}


def outputs(out: Any) -> list[Any]:
    """List the tensors of an output."""
    from timm_stitch.families.transformers_models.opening import tensors_of

    return tensors_of(out)


def examine(kind: str, name: str, task: str) -> dict[str, Any]:
    """Make the row of one type and task."""
    import torch

    import timm_stitch
    import timm_stitch.text
    from timm_stitch.families.transformers_models.opening import same

    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    row: dict[str, Any] = {"type": kind, "class": name, "task": task}
    step = "build"
    try:
        for attention in ("eager", "sdpa"):
            step = "build"
            try:
                anchors = make_two(kind, name, attention)
            except ValueError as error:
                if attention == "sdpa" and "scaled_dot_product" in str(error):
                    continue
                raise
            batches = [inputs(anchors[0], n, length) for n, length in ((2, 9), (3, 12))]
            with torch.no_grad():
                expected = [[outputs(a(**b, **cacheless(a), return_dict=True)) for b in batches] for a in anchors]
            step = f"open ({attention})"
            twins = copy.deepcopy(anchors)
            net = timm_stitch.stitch(anchors, kernel_size=1)
            row.update(depth=anchors[0] and net.views[0].depth, widths=[v.widths[0] for v in net.views])
            step = f"equal ({attention})"
            with torch.no_grad():
                for number in (0, 1):
                    for b, e in zip(batches, expected[number], strict=True):
                        if not same(outputs(net(**b, stitch_id=number)), e):
                            raise ValueError("another output than the model's")
            step = f"gradients ({attention})"
            check_gradients(net, twins, batches[0])
        step = "extract"
        some = [0, 1, *net.stitch_ids[2:4], net.stitch_ids[-1]]
        with torch.no_grad():
            found = {k: outputs(net(**batches[0], stitch_id=k)) for k in some}
            if not all(same(outputs(net.extract(k)(**batches[0])), found[k]) for k in some):
                raise ValueError("another output than the whole network's")
            step = "costs"
            if min(min(r["macs"], r["params"]) for r in net.stitch_table(length=16)) <= 0:
                raise ValueError("a stitch that costs nothing")
            step = "save and load"
            with tempfile.TemporaryDirectory() as folder:
                timm_stitch.save_pretrained(net, folder)
                again = timm_stitch.from_hub(folder)
                alone = timm_stitch.from_hub(folder, extract=some[2])
                for k in some:  # the same weights, but elsewhere in memory, by which sums may round otherwise
                    torch.testing.assert_close(
                        outputs(again(**batches[0], stitch_id=k)), found[k], rtol=1e-4, atol=1e-5
                    )
                torch.testing.assert_close(outputs(alone(**batches[0])), found[some[2]], rtol=1e-4, atol=1e-5)
            row["open"] = True
            if task == "ForCausalLM":
                step = "generate"
                check_generation(net, row)
    except Exception as error:
        row.setdefault("open", False)
        row["reason"] = f"{step}: {type(error).__name__}: {' '.join(str(error).split())[:160]}"
    return row


def check_gradients(net: Any, twins: list[Any], batch: dict[str, Any]) -> None:
    """Check that the gradients of the anchors alone are the models' own."""
    import torch

    for number, twin in enumerate(twins):
        first = next(t for t in outputs(twin(**batch, **cacheless(twin), return_dict=True)) if t.requires_grad)
        first.square().mean().backward()
        net.zero_grad(set_to_none=True)
        next(t for t in outputs(net(**batch, stitch_id=number)) if t.requires_grad).square().mean().backward()
        own = dict(net.anchors[number].named_parameters())
        for name, parameter in twin.named_parameters():
            mine = own[name].grad
            if (mine is None) != (parameter.grad is None):
                raise ValueError(f"{name} has a gradient in one of them only")
            if mine is not None:
                torch.testing.assert_close(mine, parameter.grad, rtol=1e-4, atol=1e-5)


def check_generation(net: Any, row: dict[str, Any]) -> None:
    """Check every stitch with and without a cache, with beams, and with a switch in the middle."""
    import torch
    from transformers import StoppingCriteria

    row["generates"] = False
    batch = inputs(net.anchors[0], 2, 9)
    if "attention_mask" not in batch:
        raise ValueError("no padding")
    long = {"do_sample": False, "max_new_tokens": 6, "min_new_tokens": 6}
    for number, anchor in enumerate(net.anchors):
        if not torch.equal(anchor.generate(**batch, **long), net.generate(**batch, stitch_id=number, **long)):
            raise ValueError("an anchor generates other tokens than the model")
    for k in (*net.stitch_ids[2:5], net.stitch_ids[-1]):
        for beams in (1, 2):
            cached, not_cached = (
                net.generate(**batch, stitch_id=k, use_cache=c, num_beams=beams, **long) for c in (True, False)
            )
            if not torch.equal(cached, not_cached):
                raise ValueError(f"stitch {k} generates other tokens with a cache, {beams} beams")
    row["generates"] = True
    first, second = net.stitch_ids[-1], net.stitch_ids[2]
    half = net.generate(**batch, stitch_id=first, do_sample=False, max_new_tokens=3, min_new_tokens=3)
    mask = torch.cat([batch["attention_mask"], torch.ones(2, 3).long()], 1)
    expected = net.generate(
        input_ids=half, attention_mask=mask, stitch_id=second, do_sample=False, max_new_tokens=3, min_new_tokens=3
    )

    class Switch(StoppingCriteria):
        def __call__(self, ids: Any, scores: Any, **kwargs: Any) -> Any:
            net.stitch_id = first if ids.shape[1] < 12 else second
            return torch.zeros(len(ids)).bool()

    net.set_stitch(first)
    row["switches"] = torch.equal(net.generate(**batch, stopping_criteria=[Switch()], **long), expected)
