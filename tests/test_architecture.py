"""What the import contracts in pyproject.toml (`make check`) do not say of the package's layout."""

from pathlib import Path

import timm_stitch

ROOT = Path(timm_stitch.__file__).parent


def test_no_module_has_the_name_of_a_public_function():
    modules = {path.stem for path in ROOT.iterdir()}
    for name in timm_stitch.__all__:
        assert name not in modules, name
