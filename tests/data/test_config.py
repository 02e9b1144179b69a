"""The images' half of a configuration, and fields that are declared once."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Literal, get_args, get_origin

import pytest

from timm_stitch import TrainConfig
from timm_stitch.data.config import DataConfig
from timm_stitch.data.fields import about, check, option, options, read, read_text, type_hints


def test_every_field_says_what_it_is():
    assert [f.name for f in fields(TrainConfig)] == list(options(TrainConfig))
    for name, field in options(TrainConfig).items():
        assert field.metadata["help"], name
        assert field.metadata["group"], name
    assert set(options(DataConfig)) < set(options(TrainConfig))


def test_choices_are_those_of_the_types():
    literals = {n: hint for n, hint in type_hints(TrainConfig).items() if get_origin(hint) is Literal}
    assert {n for n, field in options(TrainConfig).items() if field.metadata["choices"]} == set(literals)
    for name, hint in literals.items():
        assert options(TrainConfig)[name].metadata["choices"] == get_args(hint), name
    with pytest.raises(TypeError, match="sched must be of type str, got 3"):
        TrainConfig(sched=3)
    with pytest.raises(TypeError, match=r"resume must be of type bool \| str, got 3"):
        TrainConfig(resume=3, output="run")
    assert TrainConfig.from_dict({"precision": False}).precision == "no"  # YAML's reading of `no`


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ({"workers": -1}, ValueError, "workers must be 0 or more, got -1"),
        ({"crop_mode": "five"}, ValueError, "crop_mode must be one of rrc, rkrc, rkrr, got 'five'"),
        ({"dataset_args": {"input_key": ["a"]}}, TypeError, "dataset_args must be of type dict"),
        ({"dataset_args": {"name": "a"}}, ValueError, "dataset_args must have names of download.*, got name"),
        ({"dataset": "wsd/x"}, ValueError, "dataset must begin with torch/…, hfds/….*, got 'wsd/x'"),
        (
            {"dataset": "folder"},
            ValueError,
            "dataset must begin with .*, got 'folder': leave it out",
        ),
        ({"crop_ratio": [2, 1]}, ValueError, r"crop_ratio must be two positive numbers.*, got \(2, 1\)"),
        ({"epochs": 3}, ValueError, "unknown fields epochs: the fields are accumulate, auto_augment"),
    ],
)
def test_bad_values_are_refused_by_name(values, error, message):
    with pytest.raises(error, match=message):
        DataConfig.from_dict(values)


def test_images_of_a_process_at_a_time():
    assert DataConfig(batch_size=48, accumulate=2).micro_batch(3) == 8
    assert DataConfig(batch_size=2).micro_batch(3) == 1


@dataclass(frozen=True, kw_only=True)
class Small:
    rate: float = option(1e-4, "how fast", group="all", range=(0, 1))
    kind: str | None = option(None, "which", group="all", choices=(None, "a", "b"))
    name: str = option(help="whose", group="all")
    more: Mapping[str, int] = option(help="what else", group="all", factory=dict)
    note: str = "not declared"

    def __post_init__(self):
        check(self)


def test_a_field_is_declared_once():
    assert list(options(Small)) == ["rate", "kind", "name", "more"]
    assert about(options(Small)["rate"]) == "float, 0 to 1, default 0.0001"
    assert about(options(Small)["kind"]) == "null or a or b, default null"
    assert Small(**read(Small, {"rate": "1e-2", "name": "x"})) == Small(rate=0.01, name="x", more={})
    with pytest.raises(ValueError, match="rate must be 0 to 1, got 2"):
        Small(rate=2, name="x")
    with pytest.raises(ValueError, match=r"kind must be one of .*, got 'c'"):
        Small(kind="c", name="x")
    with pytest.raises(TypeError, match="name must be of type str, got None"):
        Small(name=None)
    with pytest.raises(ValueError, match="unknown fields note"):
        read(Small, {"note": "x"})


def test_words_of_the_command_line_become_values_of_the_fields_type():
    assert read_text("2012", 2012, str | None) == "2012"
    assert read_text("null", None, str | None) is None
    assert read_text("1e-4", "1e-4", float) == 1e-4
    assert read_text("auto", "auto", bool | str) == "auto"


def test_configurations_need_no_torch():
    code = """
import importlib.util, sys, types
package = importlib.util.find_spec("timm_stitch").submodule_search_locations
for name in ("timm_stitch", "timm_stitch.data", "timm_stitch.training"):
    sys.modules[name] = module = types.ModuleType(name)
    module.__path__ = [package[0] + name.removeprefix("timm_stitch").replace(".", "/")]
import timm_stitch.training.config
assert not {"torch", "timm", "numpy"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
