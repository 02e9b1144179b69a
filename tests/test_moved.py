"""Modules are found by the paths that earlier versions had, as the modules that they are now."""

import importlib
import pickle
import sys

import pytest

import timm_stitch
from timm_stitch.moved import MOVED


@pytest.mark.parametrize("path", MOVED)
def test_a_former_path_is_the_module_at_its_new_one(path):
    if "transformers" in MOVED[path]:
        pytest.importorskip("transformers", minversion="5.20")
    module = importlib.import_module(path)
    assert module is importlib.import_module(MOVED[path])
    assert module.__name__ == module.__spec__.name == MOVED[path]


def test_former_paths_are_attributes_too_and_name_classes():
    assert timm_stitch.network.network.SNNet is timm_stitch.SNNet
    assert timm_stitch.network.task_names.names_of
    assert pickle.loads(b"ctimm_stitch.network.network\nSNNet\n.") is timm_stitch.SNNet
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        _ = timm_stitch.network.nonsense
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("timm_stitch.network.nonsense")
    assert "timm_stitch.network.nonsense" not in sys.modules
