"""Runs timm's own model tests on our models: `make timm-tests`, or `python tests/timm_suite.py 'snnet_*'`.

Fetches timm's source distribution, whose `tests/test_models.py` parametrises over `timm.list_models()`, and
narrows that to our names. `touch_unused` is switched on: two of the tests want a gradient for every parameter.
"""

import fnmatch
import subprocess
import sys
import tarfile
from pathlib import Path

import timm

WORK = Path(__file__).parent / ".timm-suite"
PLUGIN = """
import fnmatch, timm, timm.models, timm_stitch
timm_stitch.SNNet.touch_unused = True
PATTERNS, SKIP = {patterns!r}, {skip!r}
original = timm.list_models
OURS = {{m for p in PATTERNS for m in original(p)}} - {{m for p in SKIP for m in original(p)}}
TOKENS = {{m for m in OURS if timm.create_model(m, device="meta").views[-1].layout == "NLC"}}
MODULES = sorted({{timm.models._registry._model_to_module[m] for m in OURS}})

def listed(value):
    return isinstance(value, (list, tuple)) and "vit_*" in value

def list_models(filter="", module="", pretrained=False, exclude_filters="", name_matches_cfg=False, include_tags=None):
    # timm sorts its own models into those that give tokens and those that give maps by these lists of patterns.
    filter = [*filter, *TOKENS] if listed(filter) else filter
    exclude_filters = [*exclude_filters, *TOKENS] if listed(exclude_filters) else exclude_filters
    module = [*module, *MODULES] if isinstance(module, (list, tuple)) and "vision_transformer" in module else module
    out = original(filter, module, pretrained, exclude_filters, name_matches_cfg, include_tags)
    return [m for m in out if m.split(".")[0] in OURS]

timm.list_models = list_models
timm.list_pretrained = lambda filter="", exclude_filters="": list_models(
    filter, pretrained=True, exclude_filters=exclude_filters, include_tags=True)

def pytest_collection_modifyitems(config, items):
    name = lambda item: getattr(item, "callspec", None) and item.callspec.params.get("model_name")
    items[:] = [i for i in items if isinstance(name(i), str) and name(i).split(".")[0] in OURS]
"""


def main():
    # The generic snnet has no anchors of its own to make a default model of; segmentation has no classifier.
    patterns, skip = sys.argv[1:] or ["snnet*"], ["snnet", "snnetv2_setr_*"]
    WORK.mkdir(exist_ok=True)
    name = f"timm-{timm.__version__}"
    if not (WORK / name).exists():
        command = ["download", "--quiet", "--no-deps", "--no-binary", "timm", f"timm=={timm.__version__}", "-d", WORK]
        subprocess.run([sys.executable, "-m", "pip", *command], check=True)
        with tarfile.open(WORK / f"{name}.tar.gz") as archive:
            wanted = [m for m in archive.getmembers() if fnmatch.fnmatch(m.name, f"{name}/tests/*")]
            archive.extractall(WORK, members=wanted, filter="data")
    (WORK / "timm_suite_plugin.py").write_text(PLUGIN.format(patterns=patterns, skip=skip))
    options = ["-p", "timm_suite_plugin", "-c", "/dev/null", "-p", "no:cacheprovider", "-q", "-rs", "--durations=5"]
    tests = WORK / name / "tests" / "test_models.py"
    return subprocess.run(
        [sys.executable, "-m", "pytest", *options, "-W", "ignore", str(tests)],
        env={**__import__("os").environ, "PYTHONPATH": str(WORK), "GITHUB_ACTIONS": "1"},
    ).returncode


if __name__ == "__main__":
    raise SystemExit(main())
