"""Run a script with the `snnet_*` models registered: `python -m timm_stitch.run validate.py --model snnet_deit …`.

For scripts that have no option to import a plugin, such as timm's `validate.py`, `benchmark.py` and
`inference.py`. (timm's `train.py` has one: `--device-modules timm_stitch`.)
"""

import runpy
import sys

import timm_stitch  # noqa: F401 registers the models


def main() -> None:
    """Run the script named first on the command line, with the rest as its arguments."""
    if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help"):
        print(__doc__)
        raise SystemExit(0 if len(sys.argv) > 1 else 2)
    sys.argv = sys.argv[1:]
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
