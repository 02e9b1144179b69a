"""What do broken and hostile files do? Each is read in a process of its own, with limits, and watched.

    python benchmarks/robustness/fuzz.py --files 4000 --seed 0

Files of twelve kinds begin as those that the package writes and are changed at random (`fuzz_files.py`). Nothing may
be executed, fetched or opened outside of the folder; nothing may take more than `--seconds` or `--megabytes`; and what
this package refuses is refused by a ValueError or OSError of one line. Where timm or transformers read a file by code
of their own, their errors are counted and not judged. The exit status is 1 if anything was wrong.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
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
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_ENDPOINT", "http://127.0.0.1:9")  # what asks the Hub is noted, and fails

import torch
from fuzz_files import KINDS, VIT, Case, damage, hostile, make_good_files, mutate

import timm_stitch

sys.path.insert(0, str(Path(__file__).parents[1] / "shared"))
from command_line import make_parser, print_row

__all__ = ["VIT", "damage", "hostile", "mutate"]  # for `fuzz_requests.py`
WATCHED = ("os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "socket.connect", "socket.getaddrinfo",
           "ctypes.dlopen", "os.remove", "os.rename", "os.rmdir", "shutil.rmtree")  # fmt: skip


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


THEIRS = "too long in timm or transformers before they call us"  # which make a name for each of 10^18 classes


class TooLongError(BaseException):
    """A file took more CPU time than it may; no `except Exception` holds it up."""


def too_long(*_: Any) -> None:
    """Handle the signal at the limit of CPU time."""
    raise TooLongError


def judge(case: Case, folder: Path, seconds: float) -> dict[str, Any]:
    """Read a file in this process, which has no other task, and describe the outcome."""
    found: list[str] = []
    prefixes = {sys.prefix, sys.base_prefix, str(Path(timm_stitch.__file__).parents[1]), str(folder)}
    watch((*(os.path.realpath(p) for p in prefixes), "/proc/", "/sys/", "/dev/", "/usr/"), found)
    signal.signal(signal.SIGXCPU, too_long)
    resource.setrlimit(resource.RLIMIT_CPU, (int(seconds), int(seconds) + 5))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    printed, outcome, wrong = io.StringIO(), "read", False
    try:
        with contextlib.redirect_stderr(printed), contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            answer = case.read()
        if isinstance(answer, int) and answer:
            outcome, wrong = _describe_refusal(printed.getvalue(), answer)
    except SystemExit as error:
        outcome, wrong = _describe_refusal(printed.getvalue(), error.code)
    except TooLongError as error:
        frames = traceback.extract_tb(error.__traceback__)[:-1]
        package = Path(timm_stitch.__file__).parent.as_posix()
        wrong = case.ours or any(frame.filename.startswith(package) for frame in frames)
        outcome = f"hung in {Path(frames[-1].filename).name}:{frames[-1].lineno}" if wrong else THEIRS
    except Exception as error:
        lines = str(error).strip().splitlines()
        outcome = type(error).__name__
        plain = isinstance(error, (ValueError, OSError, timm_stitch.errors.WrongTypeError))
        if len(lines) > 1:
            outcome += f" of several lines: {str(error)!r:.300}"
        elif not plain:
            place = traceback.extract_tb(error.__traceback__)[-1]
            outcome += f" in {Path(place.filename).name}:{place.lineno}: {error!s:.120}"
        wrong = case.ours and (len(lines) > 1 or not plain)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    return {
        "outcome": outcome,
        "wrong": wrong,
        "touched": found[:5],
        "megabytes": 0 if outcome == THEIRS else round(grown),
    }


def _describe_refusal(printed: str, code: object) -> tuple[str, bool]:
    """Describe how a command refused a file, and whether that was wrong: in another number of lines than one."""
    lines = [line for line in printed.splitlines() if line.startswith(("error", "timm-stitch"))]
    return f"refused by the command: {len(lines)} lines ({code})", len(lines) != 1 or "Traceback" in printed


def alone(case: Case, folder: Path, seconds: float) -> dict[str, Any]:
    """Run `judge` in a child that is killed when it takes too long."""
    ask, answer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(ask)
        with os.fdopen(answer, "w") as file:
            file.write(json.dumps(judge(case, folder, seconds)))
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
        return {"outcome": "hung", "wrong": True, "touched": [], "megabytes": 0}
    with os.fdopen(ask) as file:
        answer_text = file.read()
    if not answer_text:
        outcome = f"died ({status})" if case.ours or status != signal.SIGKILL else THEIRS  # at the limit of CPU time
        return {"outcome": outcome, "wrong": outcome != THEIRS, "touched": [], "megabytes": 0}
    result: dict[str, Any] = json.loads(answer_text)
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """Make files, read them, print the outcomes; returns the exit status."""
    parser = make_parser(__doc__)
    parser.add_argument("--files", type=int, default=4000, help="number of files")
    parser.add_argument("--first", type=int, default=0, help="number of the first file, by which it is drawn")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), help="kinds of files")
    parser.add_argument("--seed", type=int, default=0, help="seed of the files")
    parser.add_argument("--seconds", type=float, default=20, help="CPU time for one file")
    parser.add_argument("--megabytes", type=float, default=1500, help="memory for one file")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        # What is changed lies in a folder of its own, next to which nothing may be opened.
        good, scratch = Path(name, "outside", "good"), Path(name, "here")
        scratch.mkdir()
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            make_good_files(good)
        outcomes: dict[str, Counter[str]] = {}
        wrong, most = 0, 0
        for number in range(args.first, args.first + args.files):
            draw = random.Random(f"{args.seed}-{number}")
            folder = scratch / "case"
            folder.mkdir()
            case = KINDS[draw.choice(args.kinds)](good, folder, draw)
            result = alone(case, folder if case.kind != "recipe" else Path(name), args.seconds)
            shutil.rmtree(folder)
            outcomes.setdefault(case.kind, Counter())[result["outcome"].split(":")[0]] += 1
            most = max(most, result["megabytes"])
            if result["wrong"] or result["touched"] or result["megabytes"] > args.megabytes:
                wrong += 1
                print_row({"number": number, "kind": case.kind, **result})
    for kind, counts in sorted(outcomes.items()):
        print(f"{kind}: {counts.total()}:", ", ".join(f"{n} {what}" for what, n in counts.most_common()))
    print(f"{args.files} files, {wrong} wrong, at most {most} MB")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
