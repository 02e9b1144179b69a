"""Tiny networks and inputs for all tests, made on the spot with fixed weights.

`NETWORKS` lists what `test_contract.py` holds every network to: a new family adds its makers there.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

LABELS = 10  # of images
TEXT_LABELS, WORDS = 3, 99

# ── timm's models ─────────────────────────────────────────────────────────────────────────────────────

DEIT_SIZES = {"deit_tiny_patch16_224": (32, 1), "deit_small_patch16_224": (64, 2), "deit_base_patch16_224": (96, 3)}
DEIT = {"img_size": 32, "patch_size": 8, "num_classes": LABELS, "depth": 6}


def deit_specs(**more):
    """Three DeiTs of six blocks on images of 32 pixels, as `anchors=` of `create_model("snnet")` takes them."""
    return [
        {"architecture": name, "embed_dim": width, "num_heads": heads, **DEIT, **more}
        for name, (width, heads) in DEIT_SIZES.items()
    ]


def models(*specs, seed=0, **more):
    """timm's models by their names, or by mappings with an `architecture`."""
    torch.manual_seed(seed)
    options = [{"architecture": spec} if isinstance(spec, str) else dict(spec) for spec in specs]
    return [timm.create_model(o.pop("architecture"), **{"num_classes": LABELS, **o, **more}).eval() for o in options]


def deits(**more):
    return models(*deit_specs(**more))


def vits(**more):
    sizes = {"num_heads": 2, "depth": 4, "img_size": 32, "patch_size": 8}
    return models(*({"architecture": "vit_tiny_patch16_224", "embed_dim": w, **sizes, **more} for w in (32, 64)))


def vits_of_depths(*depths):
    return [vits(depth=depth, embed_dim=16)[0] for depth in depths]


def vits_of_two_kinds():
    return models("test_vit", "test_vit2", img_size=64)


def convnexts(widths=((16, 24, 32, 48), (24, 32, 48, 64))):
    """ConvNeXts of two blocks a stage, which meet between blocks."""
    return models(*({"architecture": "convnext_atto", "dims": dims, "depths": (2, 2, 2, 2)} for dims in widths))


def convnexts_of_one_block():
    """ConvNeXts of one block a stage, which meet between stages."""
    return models("test_convnext", "test_convnext2")


def resnets(channels=((16, 32, 48, 64), (24, 48, 64, 96))):
    return models(*({"architecture": "resnet18", "channels": c} for c in channels))


def swins():
    sizes = {"img_size": 56, "depths": (2, 2, 2)}
    tiny = {"architecture": "swin_tiny_patch4_window7_224", "embed_dim": 32, "num_heads": (1, 2, 4), **sizes}
    return models(tiny, tiny | {"architecture": "swin_small_patch4_window7_224", "embed_dim": 48})


ON_64_PIXELS: dict[str, dict[str, Any]] = {
    "swin": {"architecture": "swin_tiny_patch4_window7_224", "img_size": 64, "window_size": 2, "embed_dim": 16,
             "num_heads": (1, 2, 2, 2)},
    "resnet": {"architecture": "resnet18", "channels": (8, 16, 24, 32)},
    "levit": {"architecture": "levit_128s", "img_size": 64, "embed_dim": (32, 48, 64), "depth": (2, 2, 2),
              "num_heads": (2, 2, 2)},
    "vit": {"architecture": "deit_tiny_patch16_224", "img_size": 64, "embed_dim": 32, "num_heads": 2, "depth": 4},
    "vit without class token": {"architecture": "deit_tiny_patch16_224", "img_size": 64, "embed_dim": 24,
                                "num_heads": 2, "depth": 4, "class_token": False, "global_pool": "avg"},
    "vit with registers": {"architecture": "deit_tiny_patch16_224", "img_size": 64, "embed_dim": 32, "num_heads": 2,
                           "depth": 4, "reg_tokens": 2, "no_embed_class": True},
}  # fmt: skip


def on_64_pixels(*names):
    """Models whose activations have different layouts, all on images of 64 pixels."""
    return [model for name in names for model in models(ON_64_PIXELS[name])]


def images(count=2, size=32, seed=0):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


# ── transformers' models ──────────────────────────────────────────────────────────────────────────────


def _transformers():
    pytest.importorskip("transformers", minversion="5.20")  # networks of texts need its configurations
    with warnings.catch_warnings():  # of what transformers imports, where that is installed
        warnings.simplefilter("ignore")
        import transformers
        import transformers.modeling_utils
        import transformers.trainer
    return transformers


def _model(cls, config, seed):
    torch.manual_seed(seed)
    return cls(config).eval()


def bert(width=32, depth=3, cls=None, seed=0, **more):
    hf = _transformers()
    config = hf.BertConfig(
        vocab_size=WORDS, hidden_size=width, num_hidden_layers=depth, num_attention_heads=2,
        intermediate_size=2 * width, max_position_embeddings=64, **({"num_labels": TEXT_LABELS} | more),
    )  # fmt: skip
    return _model(cls or hf.BertForSequenceClassification, config, seed)


def llama(width=32, depth=3, cls=None, seed=0, **more):
    hf = _transformers()
    config = hf.LlamaConfig(
        vocab_size=WORDS, hidden_size=width, num_hidden_layers=depth, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=2 * width, num_labels=TEXT_LABELS, pad_token_id=0, max_position_embeddings=64, **more,
    )  # fmt: skip
    return _model(cls or hf.LlamaForCausalLM, config, seed)


def gpt2(width=32, depth=3, seed=0, **more):
    hf = _transformers()
    config = hf.GPT2Config(
        vocab_size=WORDS, n_embd=width, n_layer=depth, n_head=2, n_positions=64, pad_token_id=0, bos_token_id=1,
        eos_token_id=2, **more,
    )  # fmt: skip
    return _model(hf.GPT2LMHeadModel, config, seed)


def gemma3(width=32, depth=4, seed=0):
    hf = _transformers()
    config = hf.Gemma3TextConfig(
        vocab_size=WORDS, hidden_size=width, num_hidden_layers=depth, num_attention_heads=4, num_key_value_heads=2,
        head_dim=8, intermediate_size=64, sliding_window=4,
        layer_types=["sliding_attention", "full_attention"] * (depth // 2),
        max_position_embeddings=64,
    )  # fmt: skip
    return _model(hf.Gemma3ForCausalLM, config, seed)


def mamba(width=32, depth=3, seed=0):
    hf = _transformers()
    config = hf.MambaConfig(vocab_size=WORDS, hidden_size=width, num_hidden_layers=depth, state_size=4, pad_token_id=0)
    return _model(hf.MambaForCausalLM, config, seed)


def mpt(width=32, depth=3, seed=0):
    hf = _transformers()
    config = hf.MptConfig(vocab_size=WORDS, d_model=width, n_layers=depth, n_heads=2, max_seq_len=64, pad_token_id=0)
    return _model(hf.MptForCausalLM, config, seed)


def hf_vit(width=32, depth=3, seed=0):
    hf = _transformers()
    config = hf.ViTConfig(
        hidden_size=width, num_hidden_layers=depth, num_attention_heads=2, intermediate_size=64, image_size=32,
        patch_size=8, num_labels=TEXT_LABELS,
    )  # fmt: skip
    return _model(hf.ViTForImageClassification, config, seed)


def texts(rows=4, length=10, left=False, seed=0, labels=False):
    """A batch of token ids whose second text is padded, on the right or the left."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, WORDS, (rows, length), generator=generator)
    mask = torch.ones_like(ids)
    if rows > 1:
        padded = slice(0, 4) if left else slice(-4, None)
        ids[1, padded], mask[1, padded] = 0, 0
    batch = {"input_ids": ids, "attention_mask": mask}
    return batch | ({"labels": torch.randint(TEXT_LABELS, (rows,), generator=generator)} if labels else {})


def rows_of(batch, index):
    """Some rows of a batch, a tensor or a mapping of tensors."""
    return {name: value[index] for name, value in batch.items()} if isinstance(batch, Mapping) else batch[index]


# ── what the contract runs over ───────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Network:
    """Makers of anchors and of a batch for them, and how else than by `from_hub` a saved folder is loaded.

    `wrap` makes another network of the stitched one, whose output is no anchor's own.
    """

    anchors: Callable[[], list[nn.Module]]
    batch: Callable[[], Tensor | dict[str, Tensor]]
    load: Callable[[Any], nn.Module]
    options: dict[str, Any] = field(default_factory=dict)
    wrap: Callable[[nn.Module], nn.Module] | None = None


def first_of(output):
    """The tensor that a model gives, or the first of several."""
    return next(iter(output.values())) if isinstance(output, Mapping) else output


def run(model, batch, **more):
    """The first output of a model or network for a batch."""
    return first_of(model(**batch, **more) if isinstance(batch, Mapping) else model(batch, **more))


def _of_timm(anchors, size=64, **options):
    def load(folder):
        return timm.create_model(f"local-dir:{folder}", pretrained=True).eval()

    return Network(anchors, lambda: images(4, size), load, options)


def _of_transformers(anchors, auto, left=False, batch=None):
    def load(folder):
        return getattr(_transformers(), auto).from_pretrained(folder)

    return Network(anchors, batch or (lambda: texts(left=left)), load)


def _berts(task, **more):
    return lambda: [bert(w, d, getattr(_transformers(), f"Bert{task}"), **more) for w, d in ((32, 2), (48, 3))]


def _pair(maker, small=3, large=4, **more):
    return lambda: [maker(32, small, **more), maker(48, large, seed=1, **more)]


TIMM_NETWORKS = {
    "deits": _of_timm(deits, 32),
    "vits": _of_timm(vits, 32),
    "vits of two kinds": _of_timm(vits_of_two_kinds),
    "convnexts": _of_timm(convnexts),
    "convnexts of one block": _of_timm(convnexts_of_one_block),
    "resnets": _of_timm(resnets),
    "resnet to swin": _of_timm(lambda: on_64_pixels("resnet", "swin")),
    "swin to vit": _of_timm(lambda: on_64_pixels("swin", "vit")),
    "levit to vit": _of_timm(lambda: on_64_pixels("levit", "vit")),
    "no class token to one": _of_timm(lambda: on_64_pixels("vit without class token", "vit")),
    "class token to none": _of_timm(lambda: on_64_pixels("vit", "vit without class token")),
    "no tokens to registers": _of_timm(lambda: on_64_pixels("vit without class token", "vit with registers")),
    "two-way low-rank": _of_timm(vits, 32, direction="two_way", rank=4),
}


def _dense(anchors, size=64, **options):
    def wrap(network):
        import timm_stitch

        return timm_stitch.dense(network, **options)

    return Network(anchors, lambda: images(4, size), _from_folder, wrap=wrap)


def _from_folder(folder):
    import timm_stitch

    return timm_stitch.load(str(folder))


DENSE_NETWORKS = {
    "segmenting vits": _dense(vits, 32, head="linear", num_classes=5),
    "segmenting resnets": _dense(resnets, head="linear", num_classes=5, levels=2),
    "segmenting convnexts": _dense(convnexts, head="dpt", num_classes=5, head_options={"features": 16}),
    "vits for depth": _dense(lambda: on_64_pixels("vit", "vit with registers"), head="dpt", task="depth",
                             head_options={"features": 16, "readout": "project"}),
}  # fmt: skip
TRANSFORMERS_NETWORKS = {
    "bert": _of_transformers(_pair(bert, 3, 5), "AutoModelForSequenceClassification"),
    "bert for tokens": _of_transformers(_berts("ForTokenClassification"), "AutoModelForTokenClassification"),
    "bert for answers": _of_transformers(_berts("ForQuestionAnswering", num_labels=2), "AutoModelForQuestionAnswering"),
    "masked bert": _of_transformers(_berts("ForMaskedLM"), "AutoModelForMaskedLM"),
    "bert without head": _of_transformers(_berts("Model"), "AutoModel"),
    "llama": _of_transformers(_pair(llama), "AutoModelForCausalLM", left=True),
    "tied llama": _of_transformers(_pair(llama, tie_word_embeddings=True), "AutoModelForCausalLM", left=True),
    "classifying llama": _of_transformers(
        lambda: [llama(w, 3, _transformers().LlamaForSequenceClassification) for w in (32, 48)],
        "AutoModelForSequenceClassification",
    ),
    "gpt2": _of_transformers(_pair(gpt2), "AutoModelForCausalLM", left=True),
    "gemma3": _of_transformers(_pair(gemma3, 4, 6), "AutoModelForCausalLM", left=True),
    "mamba": _of_transformers(_pair(mamba), "AutoModelForCausalLM", left=True),
    "mpt": _of_transformers(_pair(mpt), "AutoModelForCausalLM", left=True),  # a configuration inside another
    "transformers' vit": _of_transformers(
        _pair(hf_vit), "AutoModelForImageClassification", batch=lambda: {"pixel_values": images(4).abs()}
    ),
}
NETWORKS = TIMM_NETWORKS | TRANSFORMERS_NETWORKS | DENSE_NETWORKS
