"""Folders of images with masks or depths: pairs, refusals, joint transforms, and the look before work."""

import json
import random

import numpy as np
import pytest
import torch
from PIL import Image

from timm_stitch.cli.entry import main
from timm_stitch.data import label_files
from timm_stitch.data.config import DataConfig
from timm_stitch.data.images import ImageError
from timm_stitch.data.joint_transforms import EvaluationTransform, ToTensors, TrainingTransform, resize_both
from timm_stitch.data.label_files import read_depth, read_mask
from timm_stitch.data.look import check_unreadable, find_warnings, inspect_split, summary
from timm_stitch.data.pairs import PairedImages, pair_files

PLAIN = ToTensors((0.0,) * 3, (1.0,) * 3)


def write(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    (pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)).save(path, **options)


def picture(height=8, width=10, value=100):
    return np.full((height, width, 3), value, np.uint8)


@pytest.fixture
def folder(tmp_path):
    """Two training pairs, one in a folder below, and a validation pair, as in ADE20K."""
    for name, split in (("a", "training"), ("more/b", "training"), ("c", "validation")):
        write(tmp_path / "images" / split / f"{name}.jpg", picture())
        write(tmp_path / "masks" / split / f"{name}.png", np.arange(80, dtype=np.uint8).reshape(8, 10) % 3)
    return tmp_path


def opened(folder, classes=3, training=True, **fields):
    config = DataConfig(data_dir=str(folder), **fields)
    return PairedImages(pair_files(config, training), config, classes)


def test_pairs_are_found_by_their_stems(folder):
    data = opened(folder)
    assert [pair.label.removeprefix(f"{folder}/masks/training/") for pair in data.folder.pairs] == [
        "a.png",
        "more/b.png",
    ]
    image, mask = data[0]
    assert image.size == (10, 8)
    assert np.array_equal(mask, np.arange(80).reshape(8, 10) % 3)
    assert len(opened(folder, training=False)) == 1


def test_a_folder_without_splits_is_one_split(tmp_path):
    write(tmp_path / "images" / "a.png", picture())
    write(tmp_path / "annotations" / "a.png", np.zeros((8, 10), np.uint8))
    assert len(opened(tmp_path)) == len(opened(tmp_path, training=False)) == 1


def test_a_folder_of_splits_with_both_kinds_of_files(tmp_path):
    for split in ("train", "validation"):
        write(tmp_path / split / "images" / "a.jpg", picture())
        write(tmp_path / split / "masks" / "a.png", np.zeros((8, 10), np.uint8))
    write(tmp_path / "train" / "images" / "b.jpg", picture())
    assert len(opened(tmp_path)) == len(opened(tmp_path, training=False)) == 1
    assert opened(tmp_path).folder.alone == [str(tmp_path / "train" / "images" / "b.jpg")]
    assert inspect_split(DataConfig(data_dir=str(tmp_path)), training=True)["images"] == 1
    with pytest.raises(ValueError, match="there is no split 'test'"):
        opened(tmp_path, train_split="test")


def test_palettes_are_read_as_indices(tmp_path):
    mask = Image.new("P", (4, 4), 2)
    mask.putpalette([0, 0, 0, 200, 30, 30, 90, 90, 0])
    write(tmp_path / "a.png", mask)
    assert (read_mask(str(tmp_path / "a.png")) == 2).all()
    write(tmp_path / "b.png", Image.fromarray(np.full((4, 4), 700, np.uint16)))
    assert (read_mask(str(tmp_path / "b.png")) == 700).all()


def test_depths_are_metres(tmp_path):
    write(tmp_path / "images" / "a.png", picture(2, 2))
    write(tmp_path / "depth" / "a.png", Image.fromarray(np.array([[0, 1000], [2500, 65535]], np.uint16)))
    data = opened(tmp_path, depth_scale=0.001)
    assert data.folder.kind == "depth"
    assert np.allclose(data[0][1], [[0, 1], [2.5, 65.535]])
    assert data[0][1].dtype == np.float32


def test_zero_is_no_class_if_it_is_reduced(folder):
    mask = opened(folder, classes=2, reduce_zero_label=True)[0][1]
    assert np.array_equal(mask[0, :6], [255, 0, 1, 255, 0, 1])


@pytest.mark.parametrize(
    ("name", "pixels", "message"),
    [
        ("masks", np.full((8, 10), 3, np.uint8), "has the label 3, and labels must be from 0 to 2, or 255"),
        ("masks", np.zeros((8, 9), np.uint8), r"has 9 x 8 pixels, and its image .* 10 x 8 \(upright\)"),
        ("masks", picture(), r"has colours \(Pillow's mode 'RGB'\) instead of class numbers"),
        ("images", None, "the image .*a.jpg' cannot be read"),
        ("masks", None, "the image .*a.png' cannot be read"),
    ],
)
def test_a_pair_that_does_not_fit_is_named(folder, name, pixels, message):
    path = folder / name / "training" / ("a.jpg" if name == "images" else "a.png")
    if pixels is None:
        path.write_bytes(b"no image")
    else:
        write(path, pixels)
    with pytest.raises(ImageError, match=message):
        opened(folder)[0]


def test_depth_of_8_bits_is_refused(tmp_path):
    write(tmp_path / "a.png", np.zeros((2, 2), np.uint8))
    with pytest.raises(ImageError, match="must be a PNG of 16 bits and one channel, got Pillow's mode 'L'"):
        read_depth(str(tmp_path / "a.png"), 0.001)


def test_large_and_narrow_files_are_refused_by_their_headers(folder, monkeypatch):
    write(folder / "masks" / "training" / "a.png", np.zeros((1, 201), np.uint8))
    with pytest.raises(ImageError, match="201 x 1 pixels: a side may be 200 times the other"):
        read_mask(str(folder / "masks" / "training" / "a.png"))
    monkeypatch.setattr(label_files, "MOST_PIXELS", 79)
    with pytest.raises(ImageError, match="has 80 pixels: at most 79 are read"):
        opened(folder)[0]


def test_folders_that_are_no_pairs_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        opened(tmp_path / "none")
    with pytest.raises(ValueError, match="has no folder 'images' with 'masks'"):
        opened(tmp_path)
    write(tmp_path / "images" / "a.jpg", picture())
    write(tmp_path / "masks" / "b.png", np.zeros((8, 10), np.uint8))
    with pytest.raises(ValueError, match=r"no image in .* has a PNG of its name"):
        opened(tmp_path)
    write(tmp_path / "masks" / "a.png", np.zeros((8, 10), np.uint8))
    write(tmp_path / "images" / "a.png", picture())
    with pytest.raises(ValueError, match="have one name: rename or remove"):
        opened(tmp_path)
    (tmp_path / "depth").mkdir()
    with pytest.raises(ValueError, match="has several folders of labels"):
        opened(tmp_path)


def test_an_unknown_split_is_refused(folder):
    with pytest.raises(ValueError, match=r"no split 'test' .* to a folder of 'images' and 'masks' or 'depth'"):
        opened(folder, train_split="test")


# ── joint transforms ──────────────────────────────────────────────────────────────────────────────


def striped(height, width):
    """An image whose red channel is its mask, in 20 steps of 10."""
    mask = (np.indices((height, width)).sum(0) // 8 % 20).astype(np.int64)
    return Image.fromarray(np.stack([mask * 10] * 3, -1).astype(np.uint8)), mask


@pytest.mark.parametrize("size", [(24, 24), (80, 16)])
def test_labels_move_with_their_pixels(size):
    config = DataConfig(color_jitter=0.0, scale_range=(0.5, 2.0), cat_max_ratio=1.0)
    transform = TrainingTransform(config, size, 255, PLAIN)
    moved = 0
    for seed in range(20):
        random.seed(seed)
        image, mask = transform(*striped(40, 56))
        assert image.shape == (3, *size)
        assert mask.shape == size
        inside = mask != 255
        assert (image[:, ~inside] == 0).all()
        near = (image[0] * 255 - mask * 10).abs()[inside] <= 10  # bilinear and nearest differ at edges
        moved += float(near.float().mean()) > 0.85
    assert moved == 20


def test_padding_is_no_label_and_no_depth():
    config = DataConfig(color_jitter=0.0, scale_range=(1.0, 1.0))
    _, mask = TrainingTransform(config, (16, 16), 77, PLAIN)(*striped(8, 16))
    assert (mask[8:] == 77).all()
    assert mask[:8].max() < 20
    depth = np.ones((8, 16), np.float32)
    _, depth = TrainingTransform(config, (16, 16), 0, PLAIN)(striped(8, 16)[0], depth)
    assert (depth[8:] == 0).all()
    assert (depth[:8] == 1).all()


def test_colours_change_the_image_alone():
    config = DataConfig(color_jitter=0.5, scale_range=(1.0, 1.0), hflip=0.0)
    image, mask = striped(16, 16)
    torch.manual_seed(0)
    pixels, labels = TrainingTransform(config, (16, 16), 255, PLAIN)(image, mask)
    assert not torch.equal(pixels, PLAIN(image, mask)[0])
    assert np.array_equal(labels, mask)


def test_a_crop_of_one_class_is_avoided():
    mask = np.zeros((64, 64), np.int64)
    mask[:, 48:] = 1
    config = DataConfig(color_jitter=0.0, scale_range=(1.0, 1.0))
    transform = TrainingTransform(config, (8, 8), 255, PLAIN)
    shares = []
    for seed in range(30):
        random.seed(seed)
        shares.append(float(transform(Image.new("RGB", (64, 64)), mask)[1].eq(0).float().mean()))
    assert sum(0 < share < 0.75 for share in shares) > 10


def test_evaluation_keeps_the_labels_and_resizes_the_image():
    image, mask = striped(30, 50)
    x, y = EvaluationTransform(60, 16, None, PLAIN)(image, mask)
    assert x.shape == (3, 64, 96)
    assert np.array_equal(y, mask)
    assert EvaluationTransform(None, 1, (32, 32), PLAIN)(image, mask)[0].shape == (3, 32, 32)


def test_nearest_labels_of_a_doubled_image():
    image, mask = striped(4, 6)
    _, doubled = resize_both(image, mask, (12, 8))
    assert np.array_equal(doubled, mask.repeat(2, 0).repeat(2, 1))


def test_batches_of_evaluation_have_one_size(folder):
    data = opened(folder)
    assert data.batch_size(8) == 8
    write(folder / "masks" / "training" / "a.png", np.zeros((9, 9), np.uint8))
    assert data.batch_size(8) == 1


# ── the look ──────────────────────────────────────────────────────────────────────────────────────


def test_a_look_says_what_is_there(folder):
    split = inspect_split(DataConfig(data_dir=str(folder)), training=True)
    assert (split["images"], split["classes"], split["read"]) == (2, ["0", "1", "2"], 2)
    assert split["labels"]["0"] == pytest.approx(100 * 27 / 80, abs=1e-3)
    assert summary(split) == "train: 2 images of 3 classes; sizes 10x8 (2)"
    assert find_warnings([split]) == []


def test_a_look_finds_the_problems(folder):
    write(folder / "masks" / "training" / "more" / "b.png", np.full((8, 10), 255, np.uint8))
    write(folder / "images" / "training" / "alone.jpg", picture())
    large = np.zeros((8, 10), np.uint16)
    large[0, 0] = 300
    write(folder / "masks" / "training" / "a.png", Image.fromarray(large))
    config = DataConfig(data_dir=str(folder))
    warnings = "\n".join(find_warnings([inspect_split(config, training=True)]))
    assert "train: 1 files have no pair and are left out" in warnings
    assert "train: 1 images have no label that counts" in warnings
    assert "train: labels above 254 (300) are unlike class numbers" in warnings
    split = inspect_split(config, training=True, classes=2)
    assert "labels must be from 0 to 1" in split["unreadable"][0]
    with pytest.raises(ValueError, match="1 images or their labels cannot be used: correct or remove them"):
        check_unreadable([split])


def test_check_prints_the_look(folder, capsys):
    main(["check", str(folder), "--json", "--num-classes", "3"])
    printed = json.loads(capsys.readouterr().out)
    assert [split["images"] for split in printed["splits"]] == [2, 1]
    assert main(["check", str(folder), "--num-classes", "2"]) != 0
