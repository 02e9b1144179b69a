"""One segmentation head for all stitches of an SN-Net: `make quickstart`, then `python examples/dense_head.py`.

Scenes are four Fashion-MNIST images on one canvas, and each pixel is to be told its garment or the background.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import timm
import torch
from quickstart import CLASSES, load_images
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

import timm_stitch

BACKGROUND = len(CLASSES)


def scenes(images: Tensor, labels: Tensor, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Four images in a square each, (count, 1, 56, 56), and the class of every pixel, (count, 56, 56)."""
    chosen = torch.randint(len(images), (count, 4), generator=torch.Generator().manual_seed(seed))
    tiles = images[chosen]  # (count, 4, 1, 28, 28)
    dark = images.min()
    classes = torch.where(tiles[:, :, 0] > dark + 0.1, labels[chosen][:, :, None, None], BACKGROUND)

    def square(parts: Tensor) -> Tensor:
        return torch.cat([torch.cat([parts[:, 0], parts[:, 1]], -1), torch.cat([parts[:, 2], parts[:, 3]], -1)], -2)

    return square(tiles), square(classes)


def main() -> None:
    """Put a head on the network, train it for all stitches, and compare them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="local-dir:quickstart-output/snnet")
    parser.add_argument("--scenes", type=int, default=9600, help="to train on")
    parser.add_argument("--test-scenes", type=int, default=500)
    options = parser.parse_args()
    torch.manual_seed(0)
    images, labels, test_images, test_labels = load_images(Path(__file__).parent / "data/fashion_mnist_10k.npz")
    model = timm.create_model(options.model, pretrained=True)
    model.set_input_size((56, 56))
    net = timm_stitch.dense(
        model, head="dpt", num_classes=BACKGROUND + 1, label_names=[*CLASSES, "background"],
        head_options={"features": 32},
    )  # fmt: skip
    train = scenes(images, labels, options.scenes, seed=0)
    timm_stitch.least_squares_init(net, train[0][:200], layers="projections")
    config = timm_stitch.TrainConfig(
        epochs=1, batch_size=32, lr=2e-3, anchor_lr_scale=0.1, warmup_epochs=0.1, workers=0, sampling="sandwich",
        trackers=None,
    )  # fmt: skip
    timm_stitch.train(net, config, train_data=TensorDataset(*train))
    test = DataLoader(TensorDataset(*scenes(test_images, test_labels, options.test_scenes, seed=1)), batch_size=100)
    print(f"mean intersection over union on {options.test_scenes} scenes of the test images, one head for all:")
    for row in timm_stitch.pareto_frontier(timm_stitch.evaluate(net, test)):
        print(f"  stitch {row['stitch_id']:>2}  {row['macs'] / 1e6:6.1f} MMACs  {row['miou']:5.1f} %  {row['name']}")


if __name__ == "__main__":
    main()
