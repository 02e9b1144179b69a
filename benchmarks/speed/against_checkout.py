"""Is this version of the package faster than another one? Any statement, in processes of two checkouts that alternate.

    git worktree add ../before v0.1.0
    python benchmarks/speed/against_checkout.py ../before "import timm_stitch"
    python benchmarks/speed/against_checkout.py ../before "model(x)" --calls 99 --setup "import timm, torch, timm_stitch
    model, x = timm.create_model('snnet_deit_tsb').eval().requires_grad_(False), torch.randn(1, 3, 224, 224)"

Prints one JSON line: milliseconds and peak memory of each (minimum, median and maximum over the processes), and the
quartiles of the ratios of neighbours, this version over the other.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "shared"))
from command_line import make_parser, print_row
from measuring import compare_checkouts


def main():
    """Compare."""
    parser = make_parser(__doc__)
    parser.add_argument("theirs", type=Path, help="root of the other checkout")
    parser.add_argument("statement", help="Python code to time")
    parser.add_argument("--setup", default="", help="Python code to run before, once a process")
    parser.add_argument("--ours", type=Path, default=Path(__file__).parents[2], help="root of this checkout")
    parser.add_argument("--rounds", type=int, default=5, help="processes of each version")
    parser.add_argument("--calls", type=int, default=1, help="calls a process, of which the median counts")
    options = parser.parse_args()
    setup = "\n".join(line.strip() for line in options.setup.splitlines())
    print_row(compare_checkouts(options.ours, options.theirs, options.statement, setup, options.rounds, options.calls))


if __name__ == "__main__":
    main()
