"""Does a checkpoint, or a saved network, with one bit changed load? 500 flips of each file, whole and with extract=.

    python benchmarks/robustness/bit_flips.py [--flips 500] [--first 0] [--files weights config]

The checkpoint is that of a small run, the networks are two small ones, of timm's and of transformers' models. A flip is
`refused` by a ValueError or OSError of one line, `equal` if what loads is what was saved (of a stitch: the bit was not
its own), `warned` if the JSON files are reported as damaged, and else `SILENT`. Prints one JSON line for each file; the
exit status is 1 if a flip loaded something else in silence, or gave another error.
"""

import collections
import json
import logging
import random
import sys
import tempfile
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "shared"))
sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
import timm
import torch
from command_line import make_parser
from tiny import bert, deit_specs
from training_run import go

import timm_stitch
from timm_stitch.training.checkpointing import Checkpoints

FILES = {"checkpoint": "*.pt", "weights": "model.safetensors", "config": "config.json", "stitches": "stitches.json"}


class Warned(logging.Handler):
    """Counts what is warned of."""

    count = 0

    def emit(self, record):
        self.count += record.levelno >= logging.WARNING


def try_flips(file, seeds, load, expected, warned):
    """What became of each flip of a file, by name."""
    content, outcomes = file.read_bytes(), collections.Counter()
    for seed in seeds:
        rng, changed = random.Random(seed), bytearray(content)
        changed[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        file.write_bytes(changed)
        warned.count = 0
        try:
            same = same_values(load(), expected)
            outcomes["warned" if warned.count else "equal" if same else "SILENT"] += 1
        except (ValueError, OSError) as error:
            outcomes["refused" if len(str(error).splitlines()) == 1 else "SEVERAL LINES"] += 1
        except Exception as error:
            outcomes[f"RAW {type(error).__name__}"] += 1
    file.write_bytes(content)
    return outcomes


def same_values(value, other):
    if isinstance(value, torch.Tensor):
        return isinstance(other, torch.Tensor) and torch.equal(value, other)
    if isinstance(value, dict):
        return value.keys() == other.keys() and all(same_values(value[key], other[key]) for key in value)
    if isinstance(value, (list, tuple)):
        return len(value) == len(other) and all(map(same_values, value, other))
    return value == other or value != value


def state_of(folder, extract):
    """The weights and logits of a network, or of one stitch."""
    network = timm_stitch.from_hub(folder, extract=extract)
    torch.manual_seed(0)
    with torch.no_grad():
        output = network.call(network.example(1), network.stitch_id)
    return {"weights": dict(network.state_dict()), "logits": getattr(output, "logits", output)}


def main():
    parser = make_parser(__doc__)
    parser.add_argument("--flips", type=int, default=500, help="number of flips of each file")
    parser.add_argument("--first", type=int, default=0, help="number of the first flip, by which it is drawn")
    parser.add_argument("--files", nargs="+", choices=FILES, default=list(FILES), help="files to change")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    warned, logger = Warned(), logging.getLogger("timm_stitch")
    logger.addHandler(warned)
    logger.propagate = False
    failed = False
    with tempfile.TemporaryDirectory() as root:
        root = Path(root)
        go({"epochs": 1, "batch_size": 16, "images": 32, "output": str(root / "run")})
        networks = {
            "timm": timm.create_model("snnet", anchors=deit_specs(depth=2)[:2]),
            "transformers": timm_stitch.stitch([bert(16, 2), bert(32, 2)]),
        }
        store = Checkpoints(root / "run" / "checkpoints")
        tries = [("checkpoint", store.last, store.load)]
        for name, network in networks.items():
            folder = timm_stitch.save_pretrained(network, root / name)
            for file in ("model.safetensors", "config.json", "stitches.json"):
                for extract in (None, network.stitch_ids[len(network.plan) // 2]):
                    how = name if extract is None else f"{name}, one stitch"
                    tries.append((how, folder / file, lambda folder=folder, extract=extract: state_of(folder, extract)))
        chosen = [FILES[name] for name in options.files]
        for name, file, load in tries:
            if not any(file.match(pattern) for pattern in chosen):
                continue
            outcomes = try_flips(file, range(options.first, options.first + options.flips), load, load(), warned)
            failed |= any(outcome[:3].isupper() for outcome in outcomes)
            print(json.dumps({"what": name, "file": file.name, "flips": options.flips, **outcomes}), flush=True)
    raise SystemExit(failed)


if __name__ == "__main__":
    main()
