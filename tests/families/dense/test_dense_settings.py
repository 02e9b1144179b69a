"""Each check of a dense network's saved settings, which may be a stranger's, refuses by itself."""

import pytest

from timm_stitch.families.dense.family import DenseFamily
from timm_stitch.families.dense.settings import DenseSettings

GOOD = {
    "task": "segmentation", "num_classes": 2, "head": "linear", "head_options": {"features": 8, "scale": 0.5},
    "ends": [[-1, 1, 2], [1, 2, 3]], "channels": [8, 8, 8], "tie": True, "min_depth": 0.1, "max_depth": 10,
    "ignore_index": -1, "inference": {"crop": 32}, "label_names": ["a", "b"],
}  # fmt: skip
NOT_WRITTEN = "has settings of a dense network that timm_stitch does not write"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"more": 1}, "has no settings of a dense network under 'dense'"),
        ({"task": "normals"}, "task must be one of"),
        ({"num_classes": True}, "num_classes must be from 1"),
        ({"num_classes": 2.0}, "num_classes must be from 1"),
        ({"num_classes": 0}, "num_classes must be from 1"),
        ({"num_classes": 10_001}, "num_classes must be from 1"),
        ({"num_classes": 1, "label_names": []}, "num_classes must be 2 or more"),
        ({"task": "depth"}, "a depth network has one output"),
        ({"label_names": ["a"]}, "label_names has 1 names"),
        ({"label_names": "ab"}, NOT_WRITTEN),
        ({"label_names": ["a", 2]}, NOT_WRITTEN),
        ({"channels": []}, NOT_WRITTEN),
        ({"channels": {8: 8, 9: 9, 10: 10}}, NOT_WRITTEN),
        ({"channels": 8}, NOT_WRITTEN),
        ({"channels": [8, 8, 0]}, NOT_WRITTEN),
        ({"channels": [8, 8, 65_537]}, NOT_WRITTEN),
        ({"channels": [8, 8, True]}, NOT_WRITTEN),
        ({"channels": [8, 8, 8.0]}, NOT_WRITTEN),
        ({"channels": [8] * 65, "ends": [[1] * 65]}, NOT_WRITTEN),
        ({"ends": 3}, NOT_WRITTEN),
        ({"ends": [[1, 2, 3]] * 65}, NOT_WRITTEN),
        ({"ends": [[1, 2]]}, NOT_WRITTEN),
        ({"ends": [[-2, 1, 2]]}, NOT_WRITTEN),
        ({"ends": [[1, 2, 70_000]]}, NOT_WRITTEN),
        ({"head": {"a": 1}}, NOT_WRITTEN),
        ({"head_options": [1]}, NOT_WRITTEN),
        ({"head_options": {str(n): n for n in range(33)}}, NOT_WRITTEN),
        ({"head_options": {1: 1}}, NOT_WRITTEN),
        ({"head_options": {"a": [1]}}, NOT_WRITTEN),
        ({"head_options": {"a": -1}}, NOT_WRITTEN),
        ({"head_options": {"a": 65_537}}, NOT_WRITTEN),
        ({"min_depth": True}, NOT_WRITTEN),
        ({"max_depth": "10"}, NOT_WRITTEN),
        ({"min_depth": 0}, "min_depth must be positive"),
        ({"min_depth": 20}, "min_depth must be positive"),
        ({"max_depth": float("inf")}, "min_depth must be positive"),
        ({"tie": 1}, NOT_WRITTEN),
        ({"ignore_index": "a"}, NOT_WRITTEN),
        ({"ignore_index": -2}, NOT_WRITTEN),
        ({"ignore_index": 65_536}, NOT_WRITTEN),
        ({"inference": {"more": 1}}, NOT_WRITTEN),
        ({"inference": {"flip": "yes"}}, "flip must be True or False"),
        ({"inference": {"stride": 64, "crop": 32}}, "stride=64 would skip pixels"),
    ],
)
def test_settings_are_plain_and_bounded(change, message):
    depth = GOOD | {"task": "depth", "num_classes": 1, "label_names": []}
    assert DenseSettings.from_dict(depth).num_classes == 1
    assert DenseSettings.from_dict(GOOD).ends == ((-1, 1, 2), (1, 2, 3))
    with pytest.raises(ValueError, match=f"^[^\n]*{message}[^\n]*$"):
        DenseSettings.from_dict(GOOD | change)


@pytest.mark.parametrize("data", [None, [1], "dense"])
def test_settings_are_an_object(data):
    with pytest.raises(ValueError, match="has no settings of a dense network under 'dense'"):
        DenseSettings.from_dict(data)


@pytest.mark.parametrize("network", [None, {}, {"architecture": "snnet"}])
def test_the_network_inside_is_described(network):
    with pytest.raises(ValueError, match=r"config\.json does not describe the network of a dense network"):
        DenseFamily().check_config({"dense": GOOD, "network": network})
    parts = {"architecture": "os.system", "model_args": {}, "pretrained_cfg": {}}
    with pytest.raises(ValueError, match=r"^[^\n]+$"):
        DenseFamily().check_config({"dense": GOOD, "network": parts})
