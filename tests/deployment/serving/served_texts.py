"""Networks of texts with a tokenizer, and with figures as if they had been evaluated and profiled here."""

import pytest
import tiny
import torch

import timm_stitch
from timm_stitch.evaluation.profiling import name_of

SERVED = {0: (70.0, 2.0), 1: (80.0, 4.0), 3: (75.0, 3.0)}  # stitch: accuracy, milliseconds
WORDS = ["[PAD]", "[UNK]", *(f"w{n}" for n in range(tiny.WORDS - 2))]


def tokenizer(words=WORDS):
    """Make a tokenizer of words."""
    pytest.importorskip("transformers", minversion="5.20")
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]")


def stitched(make=tiny.bert, seed=0, **more):
    """Stitch two networks of texts that have a tokenizer."""
    anchors = [make(32, 2, seed=seed, **more), make(48, 3, seed=seed + 1, **more)]
    network = timm_stitch.stitch(anchors, tokenizers=[tokenizer()] * 2).eval()
    with torch.no_grad():
        for parameter in network.parameters():  # so that texts differ in their logits
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed)))
    return network


def known(network):
    """Add figures as if it had been evaluated and profiled here."""
    here = name_of(torch.device("cpu")) + ", texts of 16 tokens"
    network.results.add(
        {
            "stitch_id": k, "top1": top1, "latency_ms": ms, "batch_size": 1, "profiled_on": here, "precision": "fp32",
            "latency_ms_batch_1": ms, "latency_ms_batch_16": 8 * ms,
        }
        for k, (top1, ms) in SERVED.items()
    )  # fmt: skip
    return network


def text(count, start=0):
    """Make a text of some words."""
    return " ".join(f"w{(start + 7 * n) % (tiny.WORDS - 2)}" for n in range(count))
