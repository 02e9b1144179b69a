"""What do broken and hostile files do? Each is read in a process of its own, with limits, and watched.

    python benchmarks/robustness/fuzz.py --files 4000 --seed 0

Files of six kinds begin as those that the package writes and are changed at random: config.json, stitches.json,
weights, the authors' layout, recipes, rows. Nothing may be executed, fetched or opened outside of the folder; nothing
may take more than `--seconds` or `--megabytes`; and what is refused is refused in one line. What transformers does
with a config.json before it calls this package is counted apart (it makes a name for each of 10^18 classes).
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import os
import pickle
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
import transformers

import timm_stitch
from timm_stitch import cli

sys.path.insert(0, str(Path(__file__).parents[1] / "shared"))
from command_line import make_parser, print_row

VIT = {"architecture": "vit_tiny_patch16_224", "num_heads": 2, "depth": 2, "img_size": 32, "patch_size": 8}
HOSTILE: list[Any] = [
    None, True, 0, -1, 1, 2**31, 10**18, -(10**18), 1e308, float("nan"), float("inf"), "", "a" * 5000, "a\nb",
    "../../x", "/etc/passwd", "http://127.0.0.1:9/x", "hf-hub:acme/net", "local-dir:/etc", "resnet18", "snnet",
    "__import__('os')",
    [], [[]], {}, {"file": "/etc/passwd"}, {"architecture": "resnet18", "pretrained": True}, [1] * 5000, "\x00",
    "é" * 300,
    {"url": "http://127.0.0.1:9/x"}, {"__class__": "x"}, [None] * 3, "NaN", -0.0, 3.5,
]  # fmt: skip
KEYS = [
    "pretrained",
    "checkpoint_path",
    "file",
    "url",
    "pretrained_cfg",
    "anchors",
    "depth",
    "embed_dim",
    "x\ny",
    "hub_id",
]
WATCHED = ("os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "socket.connect", "socket.getaddrinfo",
           "ctypes.dlopen", "os.remove", "os.rename", "os.rmdir", "shutil.rmtree")  # fmt: skip


class Bomb:
    """Runs a program when it is unpickled."""

    def __reduce__(self) -> Any:
        return os.system, ("touch /tmp/executed-by-a-pickle",)


def hostile(draw: random.Random) -> Any:
    """Draw a value that no file should have; a copy, so that a change stays in its own file."""
    return copy.deepcopy(draw.choice(HOSTILE))


def mutate(value: Any, draw: random.Random) -> Any:
    """Change a JSON value in one to three places."""
    value = json.loads(json.dumps(value))
    for _ in range(draw.randint(1, 3)):
        holder, key, here = None, None, value
        while isinstance(here, (dict, list)) and here and draw.random() < 0.8:
            holder, key = here, draw.choice(list(here) if isinstance(here, dict) else range(len(here)))
            here = holder[key]
        change = draw.random()
        if holder is None:
            value = hostile(draw) if change < 0.1 else value
        elif change < 0.6:
            holder[key] = hostile(draw)
        elif change < 0.75:
            del holder[key]
        elif change < 0.9 and isinstance(holder, dict):
            holder[draw.choice(KEYS)] = hostile(draw)
        elif isinstance(holder, list):
            holder.extend([here] * draw.choice([1, 3, 2000]))
        else:
            holder[key] = [here]
    return value


def damage(raw: bytes, draw: random.Random) -> bytes:
    """Cut, flip, double or replace bytes."""
    data = bytearray(raw)
    for _ in range(draw.randint(1, 4)):
        at = draw.randrange(min(len(data), 4096)) if data else 0
        how = draw.randrange(5)
        if how == 0:
            del data[at:]
        elif how == 1 and data:
            data[at] = draw.randrange(256)
        elif how == 2:
            data[at:at] = draw.randbytes(draw.randint(1, 64))
        elif how == 3:
            data[at : at + 8] = draw.choice([0, 2**63 - 1, 10**9, 2**32]).to_bytes(8, "little")
        else:
            data[at:at] = b"[" * draw.choice([1, 100_000])
    return bytes(data)


def encode(value: Any, draw: random.Random) -> bytes:
    """Write a value as JSON, and sometimes damage it."""
    raw = json.dumps(value).encode(errors="replace")
    return damage(raw, draw) if draw.random() < 0.25 else raw


def cases(good: Path, draw: random.Random) -> tuple[str, Callable[[Path], Callable[[], Any]]]:
    """Draw a kind of file, and a function that writes one into a folder and returns what reads it."""
    kind = draw.choice(["config", "rows of the network", "weights", "authors", "recipe", "rows"])
    doors: list[Callable[[Path], Any]] = [
        timm_stitch.from_hub,
        lambda folder: timm_stitch.from_hub(folder, extract=1),
        lambda folder: timm.create_model(f"local-dir:{folder}", pretrained=True),
        transformers.AutoModelForImageClassification.from_pretrained,
    ]

    def write(folder: Path) -> Callable[[], Any]:
        if kind in ("config", "rows of the network", "weights"):
            shutil.copytree(good, folder, dirs_exist_ok=True)
            file = {"config": "config.json", "weights": "model.safetensors"}.get(kind, "stitches.json")
            raw = (folder / file).read_bytes()
            if kind == "weights":
                length = int.from_bytes(raw[:8], "little")
                header = encode(mutate(json.loads(raw[8 : 8 + length]), draw), draw)
                raw = len(header).to_bytes(8, "little") + header + raw[8 + length :]
                raw = damage(raw, draw) if draw.random() < 0.5 else raw
            else:
                raw = encode(mutate(json.loads(raw), draw), draw)
            (folder / file).write_bytes(raw)
            door = draw.choice(doors)
            return lambda: door(folder)
        if kind == "authors":
            names = ["stitch_layers.0.weight", "anchors.0.blocks.0.norm1.weight", "model", "x", "a\nb"]
            values = [torch.zeros(3), torch.zeros(2, 2), *HOSTILE[:12], Bomb(), {"a": Bomb()}]
            content: Any = {draw.choice(names): draw.choice(values) for _ in range(draw.randint(0, 4))}
            content = {"model": content} if draw.random() < 0.5 else content
            file, stream = folder / "theirs.pth", io.BytesIO()
            torch.save(content, stream)
            raw = pickle.dumps(content) if draw.random() < 0.2 else stream.getvalue()
            file.write_bytes(damage(raw, draw) if draw.random() < 0.4 else raw)
            return lambda: timm_stitch.convert_checkpoint(file, "snnet_levit_192_256")
        if kind == "recipe":
            base = {"network": str(good), "data_dir": str(folder / "none"), "output": str(folder / "out"), "epochs": 1}
            file = folder / "recipe.yaml"
            file.write_bytes(encode(mutate(base, draw), draw))
            return lambda: cli.main(["train", str(file)])
        rows = [{"stitch_id": k, "top1": 50.0 + k, "macs": 10**6 * (k + 1)} for k in range(3)]
        file = folder / "rows.jsonl"
        file.write_bytes(b"\n".join(encode(mutate(row, draw), draw) for row in rows))
        return lambda: cli.main(["frontier", str(file)])

    return kind, write


def watch(allowed: tuple[str, ...], found: list[str]) -> None:
    """Note everything that a file makes the process execute, fetch, or open outside of what is allowed."""

    def hook(event: str, args: Any) -> None:
        if event == "open" and isinstance(args[0], (str, bytes)):
            path = os.path.realpath(os.fsdecode(args[0]))
            if not path.startswith(allowed):
                found.append(f"open {path}")
        elif event in WATCHED and not (args and str(os.path.realpath(str(args[0]))).startswith(allowed)):
            found.append(f"{event} {args!r:.120}")

    sys.addaudithook(hook)


class TooLongError(Exception):
    """A file took more CPU time than it may."""


def too_long(*_: Any) -> None:
    """Handle the signal at the limit of CPU time."""
    raise TooLongError


def judge(read: Callable[[], Any], folder: Path, seconds: float) -> dict[str, Any]:
    """Read a file in this process, which has no other task, and describe the outcome."""
    found: list[str] = []
    prefixes = {sys.prefix, sys.base_prefix, str(Path(timm_stitch.__file__).parents[1]), str(folder)}
    watch((*(os.path.realpath(p) for p in prefixes), "/proc/", "/sys/", "/dev/", "/usr/"), found)
    signal.signal(signal.SIGXCPU, too_long)
    resource.setrlimit(resource.RLIMIT_CPU, (int(seconds), int(seconds) + 5))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    said, outcome = io.StringIO(), "read"
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            answer = read()
            code = answer if isinstance(answer, int) else 0
        lines = [line for line in said.getvalue().splitlines() if line.startswith(("error", "timm-stitch"))]
        outcome = f"refused by the command: {len(lines)} lines" if code else "read"
    except SystemExit as error:
        outcome = f"refused by the command: {len(said.getvalue().strip().splitlines())} lines ({error.code})"
    except TooLongError as error:  # with no frame of ours it is transformers' own reading of what it takes
        ours = Path(timm_stitch.__file__).parent.as_posix()
        called = any(frame.filename.startswith(ours) for frame in traceback.extract_tb(error.__traceback__))
        outcome = "hung" if called else "too long in transformers before it calls us"
    except Exception as error:
        lines = str(error).strip().splitlines()
        outcome = f"{type(error).__name__}{' of several lines: ' + repr(str(error))[:300] if len(lines) > 1 else ''}"
        if type(error).__name__ == "StrictDataclassFieldValidationError":
            outcome = "refused by transformers before it calls us"
        elif not isinstance(error, (ValueError, OSError)):
            where = traceback.extract_tb(error.__traceback__)[-1]
            outcome += f" in {Path(where.filename).name}"
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    return {"outcome": outcome, "touched": found[:5], "megabytes": round(grown)}


def alone(read: Callable[[], Any], folder: Path, seconds: float) -> dict[str, Any]:
    """Run `judge` in a child that is killed when it takes too long."""
    ask, answer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(ask)
        with os.fdopen(answer, "w") as file:
            file.write(json.dumps(judge(read, folder, seconds)))
        os._exit(0)
    os.close(answer)
    deadline, status = time.monotonic() + 10 * seconds, 0  # of a machine that does other things too
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            break
        time.sleep(0.005)
    else:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return {"outcome": "hung", "touched": [], "megabytes": 0}
    with os.fdopen(ask) as file:
        said = file.read()
    return json.loads(said) if said else {"outcome": f"died ({status})", "touched": [], "megabytes": 0}


def main() -> None:
    """Make files, read them, print the outcomes."""
    parser = make_parser(__doc__)
    parser.add_argument("--files", type=int, default=4000, help="number of files")
    parser.add_argument("--seed", type=int, default=0, help="seed of the files")
    parser.add_argument("--seconds", type=float, default=20, help="CPU time for one file")
    parser.add_argument("--megabytes", type=float, default=1500, help="memory for one file")
    args = parser.parse_args()
    torch.set_num_threads(1)
    os.environ["HF_HUB_OFFLINE"] = "0"
    scratch = Path(tempfile.mkdtemp())
    with contextlib.redirect_stdout(io.StringIO()):
        network = timm.create_model("snnet", anchors=[{**VIT, "embed_dim": w, "num_classes": 10} for w in (32, 64)])
        good = timm_stitch.save_pretrained(network, scratch / "good", results=[{"stitch_id": 0, "top1": 50.0}])
        transformers.AutoModelForImageClassification.from_pretrained(good)  # imports what it needs
        timm_stitch.from_hub(good, extract=1)
        timm.create_model("snnet_levit_192_256", device="meta")
    outcomes: dict[str, Counter[str]] = {}
    wrong, most = [], 0
    for number in range(args.files):
        draw = random.Random(f"{args.seed}-{number}")
        kind, write = cases(good, draw)
        folder = scratch / "case"
        folder.mkdir()
        result = alone(write(folder), scratch, args.seconds)
        shutil.rmtree(folder)
        outcomes.setdefault(kind, Counter())[result["outcome"].split(" of several")[0]] += 1
        theirs = result["outcome"].endswith("before it calls us")
        most = max(most, 0 if theirs else result["megabytes"])
        bad = result["outcome"].startswith(("hung", "died")) or "several lines" in result["outcome"]
        if bad or result["touched"] or (result["megabytes"] > args.megabytes and not theirs):
            wrong.append({"number": number, "kind": kind, **result})
            print_row(wrong[-1])
    for kind, counts in sorted(outcomes.items()):
        print(f"{kind}: {counts.total()}:", ", ".join(f"{n} {what}" for what, n in counts.most_common()))
    print(f"{args.files} files, {len(wrong)} wrong, at most {most} MB")
    shutil.rmtree(scratch)


if __name__ == "__main__":
    main()
