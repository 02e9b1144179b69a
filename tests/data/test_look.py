"""A look at images says in words what one would not see: parts that are transparent, and what lies beneath them."""

import numpy as np
import pytest
from PIL import Image

from timm_stitch.cli.entry import main
from timm_stitch.data.config import DataConfig
from timm_stitch.data.images import open_image
from timm_stitch.data.look import find_warnings, inspect_split


def palette_image(transparency):
    image = Image.new("P", (8, 8), 1)
    image.putpalette([10, 20, 30, 200, 90, 40])
    return image, {"transparency": transparency}


def see_through(mode, alpha):
    image = Image.new(mode, (8, 8))
    image.putalpha(Image.fromarray(np.full((8, 8), alpha, np.uint8)))
    return image, {}


IMAGES = {
    "bytes": (*palette_image(b"\x80\x40"), True),
    "opaque bytes": (*palette_image(b"\xff\xff"), False),
    "number": (*palette_image(1), True),
    "RGBA": (*see_through("RGBA", 254), True),
    "opaque RGBA": (*see_through("RGBA", 255), False),
    "LA": (*see_through("LA", 0), True),
    "RGB": (Image.new("RGB", (8, 8)), {"transparency": (0, 0, 0)}, True),
    "plain": (Image.new("RGB", (8, 8)), {}, False),
}


@pytest.mark.parametrize("name", IMAGES)
def test_images_with_transparent_parts_are_counted(tmp_path, name):
    image, options, transparent = IMAGES[name]
    (tmp_path / "train" / "a").mkdir(parents=True)
    image.save(tmp_path / "train/a/0.png", **options)
    found = inspect_split(DataConfig(data_dir=str(tmp_path)), training=True)
    assert found["transparent"] == transparent
    assert found["modes"] == {Image.open(tmp_path / "train/a/0.png").mode: 1}
    told = [line for line in find_warnings([found]) if "transparent" in line]
    assert len(told) == transparent
    assert all("train: images with transparent parts: 1. The network sees the colours" in line for line in told)


@pytest.mark.parametrize("name", IMAGES)
@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.filterwarnings("ignore:Palette images with Transparency")
def test_transparent_images_are_those_of_timm(tmp_path, name, mode):
    image, options, _ = IMAGES[name]
    image.save(tmp_path / "0.png", **options)
    theirs = np.asarray(Image.open(tmp_path / "0.png").convert(mode))
    assert np.array_equal(open_image(str(tmp_path / "0.png"), mode), theirs)


def test_check_has_no_stray_warnings(tmp_path, capsys, recwarn):
    for label, (image, options, _) in enumerate(IMAGES.values()):
        for split in ("train", "validation"):
            (tmp_path / split / f"{label}").mkdir(parents=True)
            image.save(tmp_path / split / f"{label}" / "0.png", **options)
    assert main(["check", str(tmp_path)]) == 0
    told = capsys.readouterr()
    assert "warning: validation: images with transparent parts: 5." in told.out
    assert not told.err
    assert not [str(warning.message) for warning in recwarn]
