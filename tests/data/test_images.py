"""Images are what is in their files: upright, with 8 bits; one that cannot be read is an error that names it."""

import os
import random
import stat
import struct
import sys
import warnings
import zlib

import numpy as np
import pytest
import timm
import torch
from PIL import Image, ImageOps
from timm.data import ImageDataset, auto_augment
from tiny import deit_specs
from torch.utils.data import DataLoader

from timm_stitch.data import dataset as datasets
from timm_stitch.data import decoding
from timm_stitch.data.augmentation import patch_posterize
from timm_stitch.data.config import DataConfig
from timm_stitch.data.dataset import build_dataset
from timm_stitch.data.images import ImageError, Images, Labels, open_image


@pytest.fixture
def folder(tmp_path):
    generator = np.random.default_rng(0)
    for label in "ab":
        (tmp_path / "train" / label).mkdir(parents=True)
        for n in range(3):
            pixels = generator.integers(0, 256, (32, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / f"train/{label}/{n}.png")
    return tmp_path


@pytest.fixture
def two_classes():
    return timm.create_model("snnet", anchors=deit_specs(depth=2, num_classes=2))


def built(folder, model, **values):
    return build_dataset(
        DataConfig(data_dir=str(folder), auto_augment=None, **values), model, training=True, augment=False
    )


def test_plain_images_are_those_of_timm(folder, two_classes):
    ours, theirs = built(folder, two_classes), ImageDataset(str(folder / "train"))
    theirs.transform = ours.transform
    assert len(ours) == len(theirs) == 6
    for i in range(6):
        (a, label), (b, other) = ours[i], theirs[i]
        assert label == other
        assert torch.equal(a, b)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_on_its_side_is_turned_upright(tmp_path, orientation):
    image = Image.fromarray(np.arange(96, dtype=np.uint8).reshape(4, 8, 3))
    exif = image.getexif()
    exif[0x0112] = orientation
    image.save(tmp_path / "a.png", exif=exif)
    upright = ImageOps.exif_transpose(Image.open(tmp_path / "a.png"))
    assert np.array_equal(open_image(str(tmp_path / "a.png")), upright)
    assert upright.size == ((8, 4) if orientation < 5 else (4, 8))


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
def test_16_bit_grey_is_scaled_to_8(tmp_path, suffix):
    pixels = np.array([[0, 257, 32896, 65535]], np.uint16)
    Image.fromarray(pixels).save(tmp_path / f"a.{suffix}")
    for mode in ("L", "RGB"):
        seen = np.asarray(open_image(str(tmp_path / f"a.{suffix}"), mode)).reshape(4, -1)
        assert (seen == [[0], [1], [128], [255]]).all()


def test_deep_images_are_scaled_in_strips(tmp_path, monkeypatch):
    pixels = np.random.default_rng(0).integers(0, 65536, (37, 5), dtype=np.uint16)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    monkeypatch.setattr(decoding, "_STRIP", 15)
    assert np.array_equal(open_image(str(tmp_path / "a.png"), "L"), np.rint(pixels / 257))


def test_numbers_without_a_known_white_are_refused(tmp_path):
    Image.fromarray(np.array([[-5, 70000]], np.int32)).save(tmp_path / "a.tif")
    with pytest.raises(ImageError, match=r"a\.tif' has pixels from -5 to 70000 in Pillow's mode 'I'"):
        open_image(str(tmp_path / "a.tif"))
    Image.fromarray(np.array([[0, 0.5, 1]], np.float32)).save(tmp_path / "b.tif")
    assert np.asarray(open_image(str(tmp_path / "b.tif"), "L")).tolist() == [[0, 128, 255]]


def huge_png(path):
    def chunk(kind, data):
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    size = (20_000).to_bytes(4, "big") * 2
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", size + b"\x08\x00\x00\x00\x00")
        + chunk(b"IDAT", b"")
        + chunk(b"IEND", b"")
    )


def truncate(path):
    path.write_bytes(path.read_bytes()[:600])


@pytest.mark.parametrize("damage", [truncate, huge_png, lambda path: path.write_bytes(b""), lambda path: path.unlink()])
@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_image_is_named_not_replaced(folder, two_classes, damage, workers):
    data = built(folder, two_classes)
    damage(folder / "train/a/1.png")
    with pytest.raises(ImageError, match=r"^the image '[^\n]*train/a/1\.png' cannot be read \([^\n]*$"):
        list(DataLoader(data, 2, num_workers=workers))


SPECIAL = {
    "fifo": os.mkfifo,
    "socket": lambda path: os.mknod(path, stat.S_IFSOCK | 0o600),
    "device": lambda path: path.symlink_to("/dev/zero"),
    "broken link": lambda path: path.symlink_to("nowhere.png"),
    "link to itself": lambda path: path.symlink_to(path.name),
    "text": lambda path: path.write_text("no image"),
}


@pytest.mark.skipif(sys.platform != "linux", reason="there are no such files")
@pytest.mark.parametrize("name", SPECIAL)
def test_what_is_no_image_file_is_named_at_once(folder, two_classes, name):
    path = folder / "train/a/3.png"
    SPECIAL[name](path)
    data = built(folder, two_classes)
    assert len(data) == 7
    with pytest.raises(ImageError, match=r"train/a/3\.png' cannot be read \([^<\n]*$"):
        data[3]
    with pytest.raises(ImageError, match=r"train/a/3\.png' cannot be read \([^<\n]*$"):
        open_image(str(path))


def test_archives_and_empty_folders_with_names_of_images_are_no_images(folder, two_classes):
    (folder / "train/a/3.png").mkdir()
    (folder / "train/a/4.tar").write_bytes(b"")
    assert len(built(folder, two_classes)) == 6


def exif_of_many_entries(count=5000):
    """EXIF data whose entries all lie about their size, but the last, which is the orientation."""
    entries = b"".join(struct.pack("<HHLL", 500 + n, 7, 1 << 20, 8) for n in range(count))
    entries += struct.pack("<HHLL", 0x0112, 3, 1, 6)
    return b"Exif\0\0II*\0" + struct.pack("<LH", 8, count + 1) + entries + bytes(4)


def test_exif_data_that_lies_is_read_in_silence(folder, two_classes, recwarn):
    Image.new("RGB", (40, 20)).save(folder / "train/a/0.jpg", exif=exif_of_many_entries())
    data = built(folder, two_classes)
    (index,) = [n for n in range(7) if data.name(n).endswith("jpg")]
    size = data.image(index)[0].size
    assert not recwarn.list
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert size == ImageOps.exif_transpose(Image.open(folder / "train/a/0.jpg")).size  # as this Pillow reads it


def test_labels_outside_of_the_classes_are_named(folder, two_classes):
    data = built(folder, two_classes)
    data.reader.samples[1] = (data.reader.samples[1][0], 7)
    with pytest.raises(ImageError, match=r"train/a/1\.png': its label must be from 0 to 1, got 7"):
        data[1]
    with pytest.raises(ImageError, match="its label must be the number of a class, got None"):
        Labels(3)(None)
    with pytest.raises(ImageError, match="its label must be from 0 to 2, got -1"):
        Labels(3)(-1)
    assert [Labels(3, [2, 0])(label) for label in (0, torch.tensor(1))] == [2, 0]


def test_a_missing_column_is_said_in_words():
    class Reader:
        def __len__(self):
            return 5

        def __getitem__(self, index):
            return {}["label"]

    with pytest.raises(ImageError, match=r"'number 3' has no 'label': name the columns of image and label"):
        Images(Reader(), "RGB")[3]


@pytest.mark.parametrize("error", [KeyError("name"), AssertionError(), IndexError("x")])
def test_what_a_reader_trips_over_is_said_in_words(folder, two_classes, monkeypatch, error):
    def fails(*args, **kwargs):
        raise error

    monkeypatch.setattr(datasets, "create_dataset", fails)
    with pytest.raises(ValueError, match=rf"\(split 'train'\), {type(error).__name__}.*check data_dir"):
        built(folder, two_classes)


POLICIES = [
    "original",
    "originalr",
    "v0",
    "v0r",
    "3a",
    "rand-m9-mstd0.5-inc1",
    "rand-m15-mstd101-mmax20",
    "augmix-m5-w4",
]


@pytest.mark.parametrize("policy", POLICIES)
def test_no_policy_of_timm_fails_on_any_image(folder, two_classes, monkeypatch, policy):
    """As with Pillow 13, which refuses to keep no bits."""
    original = ImageOps.posterize

    def strict(image, bits):
        if not 1 <= bits <= 8:
            raise ValueError("bits must be 1 to 8")
        return original(image, bits)

    monkeypatch.setattr(auto_augment.ImageOps, "posterize", strict)
    config = DataConfig(data_dir=str(folder), auto_augment=policy)
    steps = build_dataset(config, two_classes, training=True).transform.transforms
    (step,) = [step for step in steps if type(step).__module__ == auto_augment.__name__]
    operations = step.ops if hasattr(step, "ops") else [operation for group in step.policy for operation in group]
    assert all(operation.aug_fn is not auto_augment.posterize for operation in operations)
    image = Image.new("RGB", (16, 16), (200, 90, 40))
    for seed in range(1500):
        random.seed(seed)
        np.random.seed(seed)
        step(image)


def test_no_bits_give_the_black_image_that_they_gave_before():
    step = patch_posterize(type("Steps", (), {"transforms": [auto_augment.rand_augment_transform("rand-m9", {})]})())
    operation = next(one for one in step.transforms[0].ops if one.name == "PosterizeIncreasing" or "Poster" in one.name)
    image = Image.new("RGB", (4, 4), (200, 90, 40))
    assert np.asarray(operation.aug_fn(image, 0)).max() == 0
    assert np.array_equal(operation.aug_fn(image, 2), ImageOps.posterize(image, 2))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("interpolation", "nonsense"),
        ("interpolation", [1]),
        ("mean", [0.5, "a", None]),
        ("mean", [0.5, 0.5]),
        ("std", [0, 0, 0]),
        ("std", "abc"),
        ("crop_pct", 1e-9),  # an image of billions of pixels
        ("crop_pct", "x"),
    ],
)
def test_a_preparation_that_there_is_not_is_named(two_classes, field, value):
    two_classes.pretrained_cfg = {**two_classes.pretrained_cfg, field: value}
    with pytest.raises(ValueError, match=rf"^this network's pretrained_cfg must have {field} [^\n]*, got [^\n]*$"):
        datasets.image_config(two_classes)
