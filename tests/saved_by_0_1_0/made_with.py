"""What made the folders here, run once on version 0.1.0 (commit 0d1393e) and kept to say what they are.

A later version saves in its own way, so running this again would make other files.
"""

from pathlib import Path

import timm
import torch
from safetensors.torch import save_file

import timm_stitch

HERE = Path(__file__).parent
DEIT = {"img_size": 16, "patch_size": 4, "num_classes": 10, "depth": 3}
RESNET = {"in_chans": 1, "num_classes": 10, "layers": [1, 2, 2, 1]}
MADE_OF = {
    # Both ways, low-rank, and without the final norm on stitched paths.
    "deit_two_way_without_norm": {
        "anchors": [
            {"architecture": "deit_tiny_patch16_224", "embed_dim": 8, "num_heads": 1, **DEIT},
            {"architecture": "deit_small_patch16_224", "embed_dim": 16, "num_heads": 2, **DEIT},
        ],
        "direction": "two_way", "rank": 2, "stitched_norm": False,
    },
    "resnet": {
        "anchors": [
            {"architecture": "resnet18", "channels": [4, 4, 8, 8], **RESNET},
            {"architecture": "resnet34", "channels": [4, 6, 8, 12], **RESNET},
        ],
    },
}  # fmt: skip


def make(name):
    torch.manual_seed(0)
    model = timm.create_model("snnet", **MADE_OF[name])
    size = (3, 16, 16) if name.startswith("deit") else (1, 32, 32)
    for tensor in model.parameters():
        tensor.data.add_(torch.randn_like(tensor), alpha=0.1)  # biases, scales and LoRA's zeros too
    with torch.no_grad():
        for k in model.stitch_ids:
            model.train()(torch.randn(8, *size), stitch_id=k)  # statistics of BatchNorm
    images, labels = torch.randn(64, *size), torch.randint(10, (64,))
    rows = timm_stitch.evaluate(model.eval(), [(images, labels)])
    folder = timm_stitch.save_pretrained(model, HERE / name, results=rows, dataset="acme/noise", split="test")
    (folder / "README.md").unlink()
    (folder / "curve.png").unlink(missing_ok=True)
    with torch.no_grad():
        logits = {f"logits.{k}": model(images[:2], stitch_id=k).contiguous() for k in model.stitch_ids}
    save_file({"images": images[:2].contiguous(), **logits}, folder / "expected.safetensors")


if __name__ == "__main__":
    for name in MADE_OF:
        make(name)
