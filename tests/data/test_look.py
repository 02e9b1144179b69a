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


def save(root, *names):
    for n, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (n, 0, 0)).save(root / name)


def check(capsys, *words):
    code = main(["check", *map(str, words)])
    return code, capsys.readouterr()


SAME = "warning: validation has the same files as train, so its figures say nothing of other images"


def test_both_splits_of_the_same_files_are_reported(tmp_path, capsys):
    save(tmp_path, *(f"{split}/{c}/{n}.png" for split in ("train", "validation") for c in "ab" for n in range(2)))
    code, said = check(capsys, tmp_path)
    assert (code, "warning" in said.out) == (0, False)
    for folder in ("train", "validation"):
        code, said = check(capsys, tmp_path / folder)
        assert (code, SAME in said.out) == (0, True)
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked/train").symlink_to(tmp_path / "train")
    (tmp_path / "linked/validation").symlink_to(tmp_path / "train")
    assert SAME in check(capsys, tmp_path / "linked")[1].out


@pytest.mark.parametrize("links", [["train/a/up"], ["train/a/up", "train/b/up"], ["train/a/deep/up"]])
def test_links_that_lead_back_are_refused(tmp_path, capsys, links):
    save(tmp_path, "train/a/0.png", "train/b/0.png", "train/a/deep/1.png", "validation/a/0.png", "validation/b/0.png")
    for link in links:
        (tmp_path / link).symlink_to(tmp_path / "train")
    code, said = check(capsys, tmp_path)
    assert code == 1
    assert "the folder that it lies in, so its images would be read again and again: remove the link." in said.err


def test_folders_that_are_no_class_are_reported(tmp_path, capsys):
    save(tmp_path, "train/a/0.png", "train/a/2020/1.png", "train/b/2020/2.png", "train/3.png", "validation/a/0.png")
    (tmp_path / "train/notes").mkdir()
    (tmp_path / "train/.cache").mkdir()
    (tmp_path / "train/c").symlink_to(tmp_path / "train/a")
    out = check(capsys, tmp_path)[1].out
    for line in (
        "train: 1 images lie in no class folder: move them into one.",
        "and their class is the innermost, '2020': move them up.",
        "train: no class, for want of images: 'notes'.",
        "train: 2 images are read more than once, through links between the folders.",
    ):
        assert line in out
