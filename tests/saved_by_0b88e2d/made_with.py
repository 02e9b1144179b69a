"""What made the folder here, run once on commit 0b88e2d (27 November 2026) and kept to say what it is.

A later version saves in its own way, so running this again would make other files.
"""

from pathlib import Path

import torch
import transformers as hf
from safetensors.torch import save_file

import timm_stitch

HERE = Path(__file__).parent


def make_bert(width, depth):
    config = hf.BertConfig(
        vocab_size=50, hidden_size=width, num_hidden_layers=depth, num_attention_heads=2, intermediate_size=2 * width,
        max_position_embeddings=16, num_labels=3,
    )  # fmt: skip
    return hf.BertForSequenceClassification(config)


def make():
    torch.manual_seed(0)
    network = timm_stitch.stitch([make_bert(8, 3), make_bert(16, 4)], stitch_id=3)
    for parameter in network.parameters():
        parameter.data.add_(torch.randn_like(parameter), alpha=0.1)  # biases and scales too
    network.eval()
    ids = torch.randint(5, 50, (64, 10))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    batch["attention_mask"][1, 6:] = 0
    rows = timm_stitch.evaluate(network, [batch | {"labels": torch.randint(3, (64,))}])
    names = ["bad", "fair", "good"]
    folder = timm_stitch.save_pretrained(
        network, HERE / "bert", results=rows, dataset="acme/noise", split="test", label_names=names
    )
    (folder / "README.md").unlink()
    (folder / "curve.png").unlink(missing_ok=True)
    few = {name: tensor[:8].contiguous() for name, tensor in batch.items()}
    with torch.no_grad():
        logits = {f"logits.{k}": network(**few, stitch_id=k).logits.contiguous() for k in network.stitch_ids}
    save_file({**few, **logits}, folder / "expected.safetensors")


if __name__ == "__main__":
    make()
