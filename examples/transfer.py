"""From somebody's SN-Net to yours in three steps: pull it for your classes, train it on a folder of images, push it.

    python examples/transfer.py --from user/name --images my-images --to me/name

The folder has `train` and `validation`, and in each a folder of images for each class. `--from` may be a folder that
`timm_stitch.save_pretrained` wrote; without `--to` the result stays in `--output`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from torch.utils.data import DataLoader

import timm_stitch
from timm_stitch.data.classes import folder_classes
from timm_stitch.data.dataset import build_dataset


def main() -> None:
    """Pull, train, push."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--from", dest="source", required=True, help="user/name on the Hub, or a folder")
    parser.add_argument("--images", type=Path, required=True, help="a folder with train/CLASS and validation/CLASS")
    parser.add_argument("--to", help="user/name on the Hub")
    parser.add_argument("--output", type=Path, default=Path("transferred"), help="a folder for the result")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    classes = folder_classes(options.images / "train")

    print(f"1. Pull {options.source} with new heads for {len(classes)} classes.")
    model = timm_stitch.from_hub(options.source, num_classes=len(classes))

    print("2. Train all stitches, and evaluate each on the validation images.")
    config = timm_stitch.TrainConfig(
        data_dir=str(options.images), epochs=options.epochs, batch_size=options.batch_size, lr=options.lr,
        warmup_epochs=0, mixup=0, cutmix=0, workers=options.workers,
    )  # fmt: skip
    timm_stitch.train(model, config)
    validation = DataLoader(build_dataset(config, model, training=False), batch_size=options.batch_size)
    results = timm_stitch.evaluate(model, validation, progress=True)
    for row in timm_stitch.pareto_frontier(results):
        print(f"   stitch {row['stitch_id']:>3}: {row['top1']:5.1f} % at {row['macs'] / 1e6:,.0f} MMACs")

    print("3. Keep it with its card.")
    # training has let the network know the names of its classes
    about = {"dataset": options.images.name, "split": "validation"}
    folder = timm_stitch.save_pretrained(model, options.output, results=results, **about)
    print(f"   in {folder}")
    if options.to:
        print(f"   at {timm_stitch.push_to_hub(model, options.to, results=results, **about)}")


if __name__ == "__main__":
    main()
