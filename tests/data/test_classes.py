"""Labels follow the names of classes, and a split that is not there is an error."""

import logging

import numpy as np
import pytest
import timm
from PIL import Image
from tiny import deit_specs

from timm_stitch.data.classes import check_split, ordered, positions
from timm_stitch.data.config import DataConfig
from timm_stitch.data.dataset import build_dataset, name_classes


def network(classes, names=None):
    model = timm.create_model("snnet", anchors=deit_specs(depth=2, num_classes=classes))
    if names:
        model.pretrained_cfg["label_names"] = list(names)
    return model


def images(root, **splits):
    for split, classes in splits.items():
        for name in classes:
            (root / split / name).mkdir(parents=True)
            Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(root / split / name / "0.png")


def labels(root, model, training=False, **values):
    data = build_dataset(DataConfig(data_dir=str(root), **values), model, training=training)
    return [data[i][1] for i in range(len(data))]


def test_a_missing_class_shifts_no_label(tmp_path, caplog):
    images(tmp_path, train="abc", validation="bc")
    assert labels(tmp_path, network(3)) == [1, 2]
    assert "the evaluation images have no 'a'" in caplog.text
    assert labels(tmp_path, network(3, "cab")) == [2, 0]  # the network's own names come first
    assert labels(tmp_path / "validation", network(3)) == [1, 2]


def test_classes_are_never_told_by_position_alone(tmp_path, caplog):
    images(tmp_path, validation="bc", valid="xyz")
    with pytest.raises(ValueError, match=r"have 2 classes, the network 3 with no names"):
        labels(tmp_path, network(3))
    assert labels(tmp_path, network(3, "abc")) == [1, 2]
    with pytest.raises(ValueError, match=r"does not know: 'c'; they lack of its own: 'a', 'd'"):
        labels(tmp_path, network(3, "abd"))
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        assert labels(tmp_path, network(3, "abc"), val_split="valid") == [0, 1, 2]
    assert "the evaluation images have other classes than the network's (x, not a)" in caplog.text


def test_numbers_are_in_their_order_and_alike_names_in_one(tmp_path):
    names = ["1", "2", "10", "A", "a"]
    images(tmp_path, train=names)
    model = network(5)
    data = build_dataset(DataConfig(data_dir=str(tmp_path)), model, training=True)
    for i in range(5):
        folder = data.name(i).split("/")[-2]
        assert names[data[i][1]] == folder
    assert ordered(["a", "10", "A", "2"]) == ["2", "10", "A", "a"]


def test_a_missing_split_is_named_with_those_that_exist(tmp_path):
    images(tmp_path, train="ab", validation="ab")
    with pytest.raises(ValueError, match=r"there is no split 'nosuch' in .*: there are train, validation\. Set"):
        labels(tmp_path, network(2), val_split="nosuch")
    with pytest.raises(ValueError, match="there is no split 'test' in"):
        labels(tmp_path, network(2), val_split="test")
    assert labels(tmp_path, network(2), val_split="val") == [0, 1]
    assert labels(tmp_path / "train", network(2)) == [0, 1]
    with pytest.raises(ValueError, match=r"there is no split 'other' in .*: there are a, b"):
        labels(tmp_path / "train", network(2), val_split="other")
    check_split("torch/cifar10", "validation")
    with pytest.raises(ValueError, match=r"'torch/cifar10' has no split 'nosuch': expected one of train"):
        check_split("torch/cifar10", "nosuch")


def test_images_beside_the_class_folders_are_no_class(tmp_path):
    images(tmp_path, train="ab")
    Image.new("RGB", (32, 32)).save(tmp_path / "train" / "stray.png")
    with pytest.raises(ValueError, match=r"the training images in .* are not all in class folders"):
        labels(tmp_path, network(3), training=True)


def test_classes_are_matched_by_their_names():
    assert positions("bc", "abc", "x") == [1, 2]
    assert positions("xyz", "abc", "x") is None


def test_training_names_the_classes(tmp_path):
    images(tmp_path, train=["1", "2", "10"])
    model = network(3)
    name_classes(model, build_dataset(DataConfig(data_dir=str(tmp_path)), model, training=True))
    assert model.pretrained_cfg["label_names"] == ["1", "2", "10"]
    model = network(3, ["10", "1", "2"])  # keeps the order of its outputs
    name_classes(model, build_dataset(DataConfig(data_dir=str(tmp_path)), model, training=True))
    assert model.pretrained_cfg["label_names"] == ["10", "1", "2"]
