"""Does one network of stitches learn depth, on rendered frames? Two small ConvNeXts are stitched under one head.

    pip install --no-deps --target vizdoom vizdoom && export PYTHONPATH=vizdoom
    python benchmarks/science/rendered_depth.py OUT

The frames are of no camera: ViZDoom renders them and their depth from the maps of Freedoom, which come with it. Its
depth is 8 bits without a unit, larger farther away, and so are the figures here. Maps 1 to 10 train, 11 to 14 test.
Each row is one stitch; `checked` is the largest difference of its metrics from those that plain numpy computes.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader

import timm_stitch
from timm_stitch.data.dataset import build_dataset

sys.path.insert(0, str(Path(__file__).parents[1] / "shared"))
from command_line import make_parser, print_row

TRAINING_MAPS, TEST_MAPS = range(1, 11), range(11, 15)
NEAREST = 8  # least median depth of a frame: nearer ones show a wall and nothing else
DEEPEST = 128.0


def render(folder: Path, training: int, test: int) -> Path:
    """Walk at random through the maps, and write frames and depths as PNGs, the depth in units of ViZDoom's buffer."""
    import vizdoom

    game = vizdoom.DoomGame()
    game.set_doom_game_path(str(Path(vizdoom.__file__).with_name("freedoom2.wad")))
    game.set_screen_format(vizdoom.ScreenFormat.RGB24)
    game.set_screen_resolution(vizdoom.ScreenResolution.RES_160X120)
    game.set_depth_buffer_enabled(True)
    game.set_doom_config_path(str(folder / "vizdoom.ini"))
    game.set_window_visible(False)
    for turn_off in (game.set_render_hud, game.set_render_weapon, game.set_render_crosshair):
        turn_off(False)
    button = vizdoom.Button
    game.set_available_buttons([button.MOVE_FORWARD, button.TURN_LEFT_RIGHT_DELTA, button.USE])
    game.set_seed(0)
    game.init()
    random = np.random.default_rng(0)
    for split, maps, count in (("training", TRAINING_MAPS, training), ("validation", TEST_MAPS, test)):
        for name in ("images", "depth"):
            (folder / name / split).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            if number % -(-count // len(maps)) == 0:
                game.set_doom_map(f"map{maps[number // -(-count // len(maps))]:02}")
                game.new_episode()
            state = _next_view(game, random)
            Image.fromarray(state.screen_buffer).save(folder / "images" / split / f"{number:04}.png")
            depth = Image.fromarray(state.depth_buffer.astype(np.uint16))
            depth.save(folder / "depth" / split / f"{number:04}.png")
    game.close()
    return folder


def _next_view(game: Any, random: np.random.Generator) -> Any:
    """Walk on, and turn away from walls, until a frame shows more than one."""
    for _ in range(200):
        if game.is_episode_finished() or game.is_player_dead():
            game.new_episode()
        game.make_action([1, random.normal(0, 10), 1], 15)
        state = game.get_state()
        if state is not None and np.median(state.depth_buffer) >= NEAREST:
            return state
        game.make_action([0, random.uniform(60, 300), 0], 1)
    raise RuntimeError("the walk is stuck: take another seed.")


def make_anchor(width: int) -> nn.Module:
    """Make a small ConvNeXt with random weights."""
    return timm.create_model(
        "convnext_atto", num_classes=0, depths=(2, 2, 4, 2), dims=[width * 2**stage for stage in range(4)],
        pretrained_cfg_overlay={"input_size": (3, 96, 160), "crop_pct": 1.0},
    )  # fmt: skip


def plain_metrics(predicted: np.ndarray, depth: np.ndarray) -> dict[str, float]:
    """Compute the metrics of frames (N, H, W) by their definitions."""
    rows = []
    for ours, theirs in zip(predicted.astype(np.float64), depth.astype(np.float64), strict=True):
        valid = (theirs > 0.5) & (theirs < DEEPEST)
        ours, theirs = ours[valid], theirs[valid]
        rows.append([
            np.mean(np.abs(ours - theirs) / theirs), 100 * np.mean(np.maximum(ours / theirs, theirs / ours) < 1.25),
            np.sqrt(np.mean((ours - theirs) ** 2)), 100 * np.std(np.log(ours) - np.log(theirs)),
        ])  # fmt: skip
    return dict(zip(("abs_rel", "delta1", "rmse", "silog"), np.mean(rows, axis=0).tolist(), strict=True))


def predict(net: timm_stitch.DenseNetwork, images: Tensor, stitch_id: int, size: Sequence[int]) -> Tensor:
    """Predict depths (N, H, W) at the size of the labels, to which `evaluate` resizes them too."""
    depth = net.predict(images, stitch_id=stitch_id)
    return nn.functional.interpolate(depth, tuple(size), mode="bilinear", align_corners=False)[:, 0]


def main() -> None:
    """Render, train and print a row for each stitch."""
    parser = make_parser(__doc__)
    parser.add_argument("out", type=Path, help="folder of the frames, which are rendered if they are missing")
    parser.add_argument("--frames", type=int, nargs=2, default=[320, 80], help="frames to train on and to test on")
    parser.add_argument("--widths", type=int, nargs=2, default=[12, 24], help="channels of the anchors' first stage")
    parser.add_argument("--epochs", type=int, default=8, help="passes of each anchor alone, then of all stitches")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights, order and stitches")
    parser.add_argument("--rows", type=Path, help="JSON-lines file to add the rows to")
    options = parser.parse_args()
    if not (options.out / "depth").is_dir():
        render(options.out, *options.frames)
    began = time.process_time()
    torch.manual_seed(options.seed)
    config = {
        "data_dir": str(options.out), "train_split": "training", "depth_scale": 1.0, "crop_size": (96, 128),
        "scale_range": (1.0, 1.0), "batch_size": 4, "epochs": options.epochs, "warmup_epochs": options.epochs / 8,
        "lr": 1e-3, "min_lr": 1e-5, "workers": 0, "trackers": None, "seed": options.seed,
    }  # fmt: skip
    anchors = [make_anchor(width) for width in options.widths]
    net = timm_stitch.dense(timm_stitch.stitch(anchors), head="linear", task="depth", min_depth=0.5, max_depth=DEEPEST)
    frames = [
        DataLoader(build_dataset(timm_stitch.TrainConfig(**config), net, training, augment=False), batch_size=16)
        for training in (True, False)
    ]
    alone = []
    for index in range(len(anchors)):
        one = net.extract(index, copy=True)
        timm_stitch.train(one, timm_stitch.TrainConfig(**config))
        net.load_state_dict(one.state_dict(), strict=False)  # the largest is the last, and brings the head
        alone += timm_stitch.evaluate(one, frames[1])
    timm_stitch.least_squares_init(net, frames[0])
    timm_stitch.train(net, timm_stitch.TrainConfig(**config, sampling="sandwich"))
    for row in timm_stitch.evaluate(net, frames[1]):
        batches = [(predict(net, x, row["stitch_id"], depth.shape[1:]), depth) for x, depth in frames[1]]
        predicted, depth = (torch.cat(parts).numpy() for parts in zip(*batches, strict=True))
        plain = plain_metrics(predicted, depth)
        kept = {name: row[name] for name in ("stitch_id", "name", "macs", "params", *plain)}
        checked = max(abs(row[name] - plain[name]) for name in plain)
        first = {name: alone[row["stitch_id"]][name] for name in plain} if row["stitch_id"] < len(alone) else {}
        seconds = round(time.process_time() - began)
        print_row(
            {**kept, "seed": options.seed, "checked": checked, "alone": first, "cpu_seconds": seconds}, options.rows
        )


if __name__ == "__main__":
    main()
