"""The golden figures of the authors' segmentation networks: weights by a rule, images, and how far ours are from them.

The figures were made by the authors' public code on weights that are a function of the key alone (README.md of the
folder). They lie beside the repository, or where TIMM_STITCH_GOLDEN_DENSE says.
"""

import copy
import json
import math
import os
import zlib
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch.nn import functional

from timm_stitch.families.timm_models.pyramid import Pyramid

FOLDER = Path(
    os.environ.get("TIMM_STITCH_GOLDEN_DENSE", Path(__file__).parents[2].resolve() / "shared" / "golden_dense")
)
TOLERANCE = 1e-4
NAMES = {  # the files, and the names of the networks
    "snnetv2_setr_ade20k_sl": "snnetv2_setr_deit3_sl.ade20k",
    "snnetv2_setr_ade20k_bl": "snnetv2_setr_deit3_bl.ade20k",
    "snnetv2_setr_coco_stuff10k_sl": "snnetv2_setr_deit3_sl.coco_stuff10k",
    "snnetv2_setr_coco_stuff10k_bl": "snnetv2_setr_deit3_bl.coco_stuff10k",
}


def value(name, shape, salt=""):
    """The weights of a tensor, by its name in the authors' layout."""
    z = torch.randn(shape, generator=torch.Generator().manual_seed(zlib.crc32((salt + name).encode())))
    leaf = name.rsplit(".", 1)[-1]
    if leaf == "running_var":
        return 1 + 0.1 * z.abs()
    if leaf == "running_mean":
        return 0.1 * z
    if leaf in ("pos_embed", "cls_token"):
        return 0.5 * z
    if leaf in ("gamma_1", "gamma_2"):
        return 0.3 + 0.1 * z
    if z.ndim == 1 and leaf == "weight":
        return 1 + 0.1 * z
    if z.ndim == 1:
        return 0.1 * z
    return z / math.sqrt(z[0].numel())


def fill(shapes, parameters, salt=""):
    """Weights in the authors' layout: parameters, and the statistics of batch norm."""
    names = [name for name in shapes if name in parameters or name.endswith(("running_mean", "running_var"))]
    return {name: value(name, shapes[name], salt) for name in names}


class Golden:
    """One network's keys and figures.

    Args:
        name: the name of its file.
    """

    def __init__(self, name):
        facts = json.loads((FOLDER / f"{name}.json").read_text())
        self.shapes, self.parameters = facts["state_dict"], set(facts["parameters"])
        self.ids, self.slide_ids = facts["ids"], facts["slide_ids"]
        self.figures = load_file(FOLDER / f"{name}.safetensors")

    def weights(self, salt=""):
        return fill(self.shapes, self.parameters, salt)


def image(seed, height=512, width=512):
    return torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def differences(network, golden, stitch_id, slide=True):
    """The largest difference of each kind of figure for one stitch.

    Args:
        network: our network, in evaluation mode.
        golden: the authors' figures.
        stitch_id: the stitch.
        slide: whether to run sliding windows where there are figures.
    """
    figures, worst = golden.figures, {}
    maps = all_maps(network, image(0), stitch_id)
    for level, features in enumerate(maps):
        compare(worst, "features", features[0, ::64, 3::8, 5::8], figures[f"features.{stitch_id}.{level}"])
    head = network.head(maps)
    compare(worst, "head", head[0, :, 3::16, 5::16], figures[f"head.{stitch_id}"])
    logits = network(image(0), stitch_id=stitch_id)
    compare(worst, "logits", logits[0, :, 5::64, 9::64], figures[f"logits.{stitch_id}"])
    for number, out in enumerate(network.head.auxiliary(maps)):
        if f"aux.{stitch_id}.{number}" in figures:
            out = functional.interpolate(out, (512, 512), mode="bilinear", align_corners=False)
            compare(worst, "aux", out[0, :, 5::64, 9::64], figures[f"aux.{stitch_id}.{number}"])
    if slide and stitch_id in golden.slide_ids:
        out = network.predict(image(1, 512, 640), stitch_id=stitch_id)
        compare(worst, "slide", out[0, :, 5::64, 9::64], figures[f"slide.{stitch_id}"])
    return worst


def all_maps(network, x, stitch_id):
    """All levels, of which the head reads the last alone in evaluation."""
    pyramid = copy.copy(network)
    pyramid.__class__ = Pyramid
    return pyramid(x, stitch_id=stitch_id)


def compare(worst, kind, ours, authors):
    worst[kind] = max(worst.get(kind, 0.0), (ours - authors).abs().max().item())
