"""What does the package cost before it does anything, beside `import timm`? Processor seconds of new processes.

`--help`, `--version`, `list` and `import timm_stitch` run in turns with `import timm`, each in a process of its own,
user and system time together. A ratio is that of neighbours in one round. With `--theirs CHECKOUT` an earlier version
of the package takes part in the same rounds.

    python benchmarks/speed/starting.py --rounds 7
    python benchmarks/speed/starting.py --rounds 5 --theirs ../earlier
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "shared"))
from command_line import make_parser, print_row
from measuring import compare, spread, time_in_turns

ROOT = Path(__file__).parents[2]
CALLS = {
    "import timm_stitch": ["-c", "import timm_stitch"],
    "--version": ["-m", "timm_stitch", "--version"],
    "--help": ["-m", "timm_stitch", "--help"],
    "train --help": ["-m", "timm_stitch", "train", "--help"],
    "list": ["-m", "timm_stitch", "list"],
}


def processor_seconds(arguments: list[str], checkout: Path) -> float:
    """The user and system time of a new Python process."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    env = os.environ | {"PYTHONPATH": str(checkout.resolve())}
    command, is_own = [sys.executable, *arguments], checkout == ROOT
    subprocess.run(command, cwd=checkout, env=env, stdout=subprocess.DEVNULL, check=is_own)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=7, help="rounds of processes (default: 7)")
    parser.add_argument("--theirs", type=Path, help="root of an earlier checkout to measure in the same rounds")
    options = parser.parse_args()
    seconds: dict[str, list[float]] = {}

    def take(name: str, arguments: list[str], checkout: Path) -> None:
        seconds.setdefault(name, []).append(processor_seconds(arguments, checkout))

    calls: dict[str, Callable[[], object]] = {"import timm": partial(take, "import timm", ["-c", "import timm"], ROOT)}
    for label, checkout in {"": ROOT, **({"theirs: ": options.theirs} if options.theirs else {})}.items():
        for name, arguments in CALLS.items():
            calls[label + name] = partial(take, label + name, arguments, checkout)
    time_in_turns(calls, options.rounds)
    kept = {name: values[1:] for name, values in seconds.items()}  # the first round warms the disk's cache
    for name, values in kept.items():
        ratio = compare(values, kept["import timm"]).as_list()
        print_row({"call": name, "processor_seconds": spread(values), "quartiles_of_ratio_to_import_timm": ratio})


if __name__ == "__main__":
    main()
