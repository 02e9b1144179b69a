"""The examples of dense prediction: a volume that is read and split without a leak, and both scripts in small."""

import gzip
import json
import struct
import sys
from functools import partial
from pathlib import Path

import dense_run
import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
SHAPE = (21, 30, 40)  # from left to right, from back to front, upwards
CODES = "1 Precentral_L 2001\n2 Precentral_R 2002\n9 Insula_L 3001\n40 Vermis_10 9170\n"


@pytest.fixture
def scripts(monkeypatch):
    for folder in ("examples", "benchmarks/science"):
        monkeypatch.syspath_prepend(str(ROOT / folder))
    import head_mri
    import head_mri_data
    import rendered_depth

    return head_mri, head_mri_data, rendered_depth


def write_nifti(path, volume, step=1.0, kind=2):
    header = bytearray(352)
    struct.pack_into("<i", header, 0, 348)
    struct.pack_into("<8h", header, 40, 3, *volume.shape, 1, 1, 1, 1)
    struct.pack_into("<h", header, 70, kind)
    struct.pack_into("<f", header, 108, 352.0)
    struct.pack_into("<4f", header, 280, step, 0, 0, -(volume.shape[0] // 2) * step)
    header[344:348] = b"n+1\0"
    path.write_bytes(gzip.compress(bytes(header) + volume.astype(np.uint8).tobytes(order="F")))


@pytest.fixture
def head(tmp_path):
    """A head whose left half is dark (below 100) and right half bright, with the middle plane of 100 between."""
    x = np.arange(SHAPE[0])[:, None, None]
    image = np.where(x < 10, 10 + x, np.where(x > 10, 190 - x, 100)) + np.zeros(SHAPE, int)
    regions = np.zeros(SHAPE, np.uint8)
    regions[:10, 5:25], regions[11:, 5:25], regions[8:13, 10:15] = 1, 2, 40
    regions[:, :, -1] = 0  # a slice without a region
    write_nifti(tmp_path / "ch2.nii.gz", image)
    write_nifti(tmp_path / "aal.nii.gz", regions)
    (tmp_path / "aal.nii.txt").write_text(CODES)
    return tmp_path


def test_a_volume_is_read_as_it_was_written(scripts, tmp_path):
    read = scripts[1].read_nifti
    volume = np.random.default_rng(0).integers(0, 256, (5, 4, 3))
    write_nifti(tmp_path / "a.nii.gz", volume)
    assert np.array_equal(read(tmp_path / "a.nii.gz"), volume)
    for wrong in ({"step": -1.0}, {"kind": 16}):  # right to left; floating point
        write_nifti(tmp_path / "b.nii.gz", volume, **wrong)
        with pytest.raises(ValueError, match="left to right"):
            read(tmp_path / "b.nii.gz")


def test_a_regions_class_is_the_first_digit_of_its_code(scripts, head):
    table = scripts[1].read_classes(head / "aal.nii.txt")
    assert [table[n] for n in (0, 1, 2, 9, 40)] == [0, 1, 1, 2, 8]
    assert len(scripts[1].CLASSES) == 9


def test_no_voxel_of_the_test_half_is_in_training(scripts, head, tmp_path):
    voxels = np.arange(np.prod(SHAPE)).reshape(SHAPE)
    left, right = scripts[1].halves(voxels)
    assert left.shape == right.shape == (10, *SHAPE[1:])
    assert not {*left.ravel()} & {*right.ravel()}
    assert {*left.ravel()} | {*right.ravel()} == {*voxels.ravel()} - {*voxels[10].ravel()}
    assert np.array_equal(left[0], voxels[9])  # both begin at the middle
    assert np.array_equal(right[0], voxels[11])
    folder = scripts[1].write_slices(head, tmp_path / "slices")
    for split, low, high in (("training", 0, 99), ("validation", 101, 255)):
        images = {path.name: np.asarray(Image.open(path)) for path in (folder / "images" / split).iterdir()}
        masks = {path.name: np.asarray(Image.open(path)) for path in (folder / "masks" / split).iterdir()}
        assert [*sorted(images)] == [*sorted(masks)] == [f"{n:03}.png" for n in range(SHAPE[2] - 1)]
        for name, image in images.items():
            mask = masks[name]
            assert image.shape == mask.shape == (32, 32)
            counts = mask != 255
            assert counts.sum() == 5 * 15  # every second voxel
            assert low <= image[counts].min() <= image[counts].max() <= high
            assert {*mask[counts].tolist()} == {0, 1, 8}
            assert np.argwhere(mask == 8).tolist() == [[8, 0], [9, 0]]  # the front is up, the middle on the left


def test_the_head_is_segmented_in_small(scripts, head, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(scripts[0], "SIZE", (32, 32))
    arguments = ["--data", head, "--output", tmp_path / "out", "--widths", 4, 8, "--anchor-epochs", 1, "--epochs", 1]
    monkeypatch.setattr(sys, "argv", ["head_mri.py", *map(str, arguments), "--seeds", "3"])
    scripts[0].main()
    rows = [json.loads(line) for line in (tmp_path / "out/results.jsonl").read_text().splitlines()]
    assert [row["network"] for row in rows].count("alone") == 3
    assert {row["seed"] for row in rows} == {3}
    assert all(row["images"] == SHAPE[2] - 1 for row in rows)
    assert (tmp_path / "out/curve.png").exists()
    assert Image.open(tmp_path / "out/slices.png").width == 2 * 5 * (5 + 6)
    assert "straight line" in capsys.readouterr().out


def test_depth_is_learnt_in_small_and_its_metrics_are_those_of_numpy(scripts, tmp_path, monkeypatch):
    monkeypatch.setattr(scripts[2], "DEEPEST", 8000.0)
    monkeypatch.setattr(dense_run, "scene", partial(dense_run.scene, size=40))  # resized for evaluation
    dense_run.write_scenes(tmp_path / "frames", "depth")
    arguments = [tmp_path / "frames", "--widths", 4, 8, "--epochs", 1, "--rows", tmp_path / "rows.jsonl"]
    monkeypatch.setattr(sys, "argv", ["rendered_depth.py", *map(str, arguments)])
    scripts[2].main()
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert len(rows) > 2
    assert max(row["checked"] for row in rows) < 1e-3
    assert all(0 <= row["delta1"] <= 100 and row["abs_rel"] > 0 for row in rows)
