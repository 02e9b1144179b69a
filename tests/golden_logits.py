"""A few logits of every stitch of the authors' networks, small enough to lie in the repository.

`golden_logits.json` holds, for each of seven networks, what `test_golden_logits` compares ours with. The figures are
the authors' own: their public code (ziplab/SN-Net c2dcf30, ziplab/SN-Netv2 dd17607) was run on a CPU in float32 with
weights that are a function of the state-dict key alone (`value`), on `images()`. Of the 1000 logits that a stitch gives
for the first image the file has the sixteen that `classes_of` names, rounded to five decimals. From the whole figures
(see `test_golden`) it is made again by

    python tests/golden_logits.py [FOLDER]

The file is one object a network:

- `state_dict`: names and shapes in the authors' layout, as a tree by the parts of a name; parts that lead to the same
  share a branch ("0,1,2"). A shape in brackets is of a tensor that is not filled and keeps what a new network has.
- `logits`: sixteen numbers by stitch id.
"""

import json
import math
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from safetensors.torch import load_file

FILE = Path(__file__).with_suffix(".json")
DECIMALS = 5


def images():
    return torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))


def classes_of(stitch_id):
    """Sixteen classes spread over all thousand, others for each stitch."""
    return [(62 * n + 7 * stitch_id) % 1000 for n in range(16)]


def value(name, shape):
    """What the tensor of this name is filled with."""
    z = torch.randn(shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))
    if name.endswith("running_var"):
        return z.abs_().mul_(0.1).add_(1)
    if name.endswith("running_mean"):
        return z.mul_(0.1)
    if z.ndim == 1:
        return z.mul_(0.1).add_(1) if name.endswith("weight") else z.mul_(0.1)
    return z.div_(math.sqrt(z[0].numel()))


def fill(shapes, filled):
    """Weights in the authors' layout: `shapes` by name; the others than `filled` are zero."""
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        made = pool.map(
            lambda name: value(name, shapes[name]) if name in filled else torch.zeros(shapes[name], dtype=torch.long),
            shapes,
        )
        return dict(zip(shapes, made, strict=True))


def is_filled(name, parameters):
    return name in parameters or name.endswith(("running_mean", "running_var"))


# ── the tree of names ─────────────────────────────────────────────────────────────────────────────────


def pack(leaves):
    """Names and what they stand for, as a tree in which equal branches are there once."""
    tree = {}
    for name, leaf in leaves.items():
        first, _, rest = name.partition(".")
        tree.setdefault(first, {})[rest] = leaf
    merged = {}
    for part, below in tree.items():
        merged.setdefault(json.dumps(below[""] if "" in below else pack(below)), []).append(part)
    return {",".join(parts): json.loads(branch) for branch, parts in merged.items()}


def unpack(tree, prefix=""):
    """`pack`, backwards."""
    leaves = {}
    for parts, below in tree.items():
        for part in parts.split(","):
            leaves |= unpack(below, f"{prefix}{part}.") if isinstance(below, dict) else {prefix + part: below}
    return leaves


def read_shape(text):
    return [int(size) for size in text.strip("()").split("x") if size]


# ── the file ──────────────────────────────────────────────────────────────────────────────────────────


def read():
    """By network: weights in the authors' layout (a function that makes them), and logits by stitch id."""

    def weights_of(tree):
        leaves = unpack(tree)
        filled = {name for name, text in leaves.items() if not text.startswith("(")}
        return lambda: fill({name: read_shape(text) for name, text in leaves.items()}, filled)

    return {
        name: (weights_of(network["state_dict"]), {int(k): torch.tensor(row) for k, row in network["logits"].items()})
        for name, network in json.loads(FILE.read_text()).items()
    }


def compact(golden, logits):
    """What the file has of one network."""
    parameters = set(golden["parameters"])
    leaves = {}
    for name, shape in golden["state_dict"].items():
        text = "x".join(map(str, shape))
        leaves[name] = text if is_filled(name, parameters) else f"({text})"
    tree = pack(leaves)
    assert unpack(tree) == leaves
    rows = {}
    for stitch_id in sorted(int(key.split(".")[1]) for key in logits):
        first = logits[f"logits.{stitch_id}"][0]
        rows[stitch_id] = [round(first[c].item(), DECIMALS) for c in classes_of(stitch_id)]
    return {"state_dict": tree, "logits": rows}


def write(folder):
    """Make the file, one line a stitch."""
    networks = []
    for file in sorted(folder.glob("snnet*.json")):
        made = compact(json.loads(file.read_text()), load_file(file.with_suffix(".logits.safetensors")))
        rows = ",\n".join(f'"{k}": {json.dumps(row)}' for k, row in made["logits"].items())
        networks.append(f'"{file.stem}": {{\n"state_dict": {json.dumps(made["state_dict"])},\n"logits": {{\n{rows}}}}}')
    FILE.write_text("{\n" + ",\n".join(networks) + "\n}\n")


if __name__ == "__main__":
    write(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[2] / "shared" / "golden")
    print(f"{FILE}: {FILE.stat().st_size} bytes")
