"""How fast is a network on a GPU? Each figure is a ratio against something measured in the same run.

    python benchmarks/speed/gpu.py gpu.jsonl                        # snnet_deit_tsb at 224 pixels; some ten minutes
    python benchmarks/speed/gpu.py gpu.jsonl --only steps switching
    python benchmarks/speed/gpu.py cpu.jsonl --device cpu --size 32 --batch-size 4 --rounds 2   # to see that it runs

`steps`: a step of `timm_stitch.train` over timm's own of the same network, in each precision, eager and compiled.
`switching`: calls that change the stitch each time over calls that do not: eager, compiled, and by CUDA graphs.
`graphs`: the server's CUDA graphs over eager calls, images and logits on the CPU, for twelve stitches, three batch
sizes and each precision; the memory and the seconds that recording takes, and the largest difference of a logit.
`precisions`: bf16 and fp16 over fp32. `evaluation`: all stitches in one pass over one by one. `profile`: the time
that `profile` reports over that of a plain loop. `controller`: requests within a latency target while another process
loads the GPU, with the controller and with fixed stitches. `processes`: a step on all GPUs over
DistributedDataParallel's. Weights are random: only time counts. Each row names the device.
"""

from __future__ import annotations

import argparse
import multiprocessing
import platform
import random
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset
from training_step import ours, plain

import timm_stitch
from timm_stitch.choices import PRECISIONS
from timm_stitch.deployment.serving.backends.cuda_graphs import CudaGraphsBackend, CudaRecorder
from timm_stitch.deployment.serving.backends.torch_backend import TorchBackend
from timm_stitch.deployment.serving.latencies import spread
from timm_stitch.plan.prefix_sharing import shared_macs

sys.path.insert(0, str(Path(__file__).parents[1] / "shared"))
from command_line import Row, make_parser, print_row
from measuring import compare, medians, time_in_turns, time_result
from processes import run_script

MODEL = "snnet_deit_tsb"
STITCHES = (0, 24, 2)  # the smallest anchor, one between, the largest
BATCHES = (1, 8, 32)  # of the server's calls


def wait(device: torch.device) -> None:
    """Wait for everything that was sent to a device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def compare_calls(
    calls: Mapping[str, Callable[[], Any]], over: str, options: argparse.Namespace, rounds: int = 0, warm_up: int = 3
) -> Row:
    """Time calls in turns: the median milliseconds of each, and quartiles of the ratios of each to one of them."""
    times = time_in_turns(calls, rounds or options.rounds, warm_up, wait=partial(wait, options.device))
    return {
        "ms": {name: round(value, 3) for name, value in medians(times).items()},
        f"over {over}": {name: compare(times[name], times[over]).as_list() for name in times if name != over},
    }


def network(options: argparse.Namespace) -> timm_stitch.SNNet:
    """Make the network with random weights."""
    torch.manual_seed(0)
    return timm.create_model(MODEL, img_size=options.size).to(options.device).eval()


def images(options: argparse.Namespace, count: int | None = None) -> Tensor:
    """Make noise of the network's image size."""
    return torch.randn(count or options.batch_size, 3, options.size, options.size, device=options.device)


def steps(options: argparse.Namespace) -> Iterator[Row]:
    """Compare a training step of ours with timm's, of the same network on the same images."""
    count = 4 * options.batch_size
    data = TensorDataset(torch.randn(count, 3, options.size, options.size), torch.arange(count) % 1000)
    for precision in ("no", "bf16", "fp16") if options.device.type == "cuda" else ("no", "bf16"):
        for compiled in (False, True):
            for k in STITCHES:
                torch._dynamo.reset()
                size, more = options.batch_size, {"device": options.device, "precision": precision}
                calls = {
                    "timm's": plain(network(options).extract(k, copy=True), data, size, compiled=compiled, **more),
                    "ours": ours(network(options), data, k, batch_size=size, compile=compiled, precision=precision),
                    "ours, not fused": ours(
                        network(options), data, k, batch_size=size, compile=compiled, precision=precision, fused=False
                    ),
                }
                found = compare_calls(calls, "timm's", options)
                yield {"stitch_id": k, "precision": precision, "compiled": compiled, **found}


@torch.inference_mode()
def switching(options: argparse.Namespace) -> Iterator[Row]:
    """Compare calls that change the stitch each time with the same calls stitch by stitch."""
    model = network(options)
    for batch in (1, options.batch_size):
        x, some = images(options, batch), random.Random(0).choices(model.stitch_ids, k=32)
        yield {"batch_size": batch, "how": "eager", **switched(lambda k, x=x: model(x, stitch_id=k), some, options)}
        if options.device.type == "cuda":
            recorder, out = CudaRecorder(options.device), torch.zeros(batch, model.num_classes, device=options.device)
            replays = {k: recorder.record(partial(write, model, k), x, out) for k in sorted(set(some))}
            yield {
                "batch_size": batch, "how": "CUDA graphs",
                **switched(lambda k, replays=replays: replays[k](), some, options),
            }  # fmt: skip
    compiled = network(options)
    compiled.compile()
    x = images(options, 1)
    yield {"batch_size": 1, "how": "compiled", **switched(lambda k: compiled(x, stitch_id=k), some, options)}


def switched(call: Callable[[int], Any], ids: list[int], options: argparse.Namespace) -> Row:
    """Time the same calls in an order that switches at each, and in one that switches as seldom as possible."""
    for k in sorted(set(ids)):
        call(k)
    orders = {"one after another": sorted(ids), "switching": ids}
    calls = {name: (lambda order=order: [call(k) for k in order]) for name, order in orders.items()}
    return compare_calls(calls, "one after another", options)


def write(model: timm_stitch.SNNet, stitch_id: int, x: Tensor, out: Tensor) -> None:
    """Compute logits into a buffer, as a CUDA graph does."""
    out.copy_(model(x, stitch_id=stitch_id))


@torch.inference_mode()
def graphs(options: argparse.Namespace) -> Iterator[Row]:
    """Compare the server's CUDA graphs with its eager calls, in each precision."""
    if options.device.type != "cuda":
        yield {"not run": "no GPU"}
        return
    model = network(options)
    ids, exact = spread(model.stitch_ids), TorchBackend(model)
    for precision in PRECISIONS:
        eager = TorchBackend(model, precision)
        recorded, began = CudaGraphsBackend(eager), time.perf_counter()
        recorded.prepare(ids, BATCHES)
        seconds, megabytes = time.perf_counter() - began, recorded.recorder.used_bytes() / 1e6
        yield {"precision": precision, "seconds": round(seconds, 1), "memory_mb": round(megabytes, 1)}
        for batch in BATCHES:
            x = images(options, batch).cpu()
            for k in ids:
                calls = {"eager fp32": partial(exact.run, x, k), "graphs": partial(recorded.run, x, k)}
                if precision != "fp32":
                    calls["eager"] = partial(eager.run, x, k)
                difference = float((recorded.run(x, k) - eager.run(x, k)).abs().max())
                found = compare_calls(calls, "eager fp32", options)
                row = {"precision": precision, "batch_size": batch, "stitch_id": k, "recorded": k in recorded.ready}
                yield {**row, **found, "largest difference from eager": difference}
        recorded.close()


@torch.inference_mode()
def precisions(options: argparse.Namespace) -> Iterator[Row]:
    """Compare half precision with float32, and count the images that keep their class."""
    model, x = network(options), images(options)
    for k in STITCHES:

        def run(dtype: torch.dtype | None, k: int = k) -> Tensor:
            with torch.autocast(options.device.type, dtype, enabled=dtype is not None):
                return model(x, stitch_id=k)

        half = {"bf16": torch.bfloat16, "fp16": torch.float16}
        calls: dict[str, Callable[[], Tensor]] = {"fp32": lambda: run(None)}
        calls |= {name: (lambda dtype=dtype: run(dtype)) for name, dtype in half.items()}
        whole = run(None).argmax(-1)
        same = {
            name: round(100 * float((run(dtype).argmax(-1) == whole).float().mean()), 1) for name, dtype in half.items()
        }
        found = compare_calls(calls, "fp32", options)
        yield {"stitch_id": k, "batch_size": len(x), **found, "keep their class %": same}


@torch.inference_mode()
def evaluation(options: argparse.Namespace) -> Iterator[Row]:
    """Compare one pass of all stitches that shares fronts with one pass each."""
    model, x = network(options), images(options)
    loader = DataLoader(TensorDataset(x.cpu(), torch.arange(len(x)) % 1000), batch_size=len(x))
    calls = {
        "together": lambda: timm_stitch.evaluate(model, loader),
        "one by one": lambda: [timm_stitch.evaluate(model, loader, [k]) for k in model.stitch_ids],
    }
    costs = model.costs()
    allowed = shared_macs(model.plan, costs) / sum(costs.cost(s).macs for s in model.plan)
    found = compare_calls(calls, "one by one", options, max(1, options.rounds // 5), warm_up=1)
    yield {**found, "multiply-adds allow": round(allowed, 3)}


@torch.inference_mode()
def profile(options: argparse.Namespace) -> Iterator[Row]:
    """Compare the time that `profile` reports with that of a plain loop."""
    model = network(options)
    for batch in (1, options.batch_size):
        x = images(options, batch)
        rows = timm_stitch.profile(model, batch, options.device, stitch_ids=STITCHES, repeats=options.rounds)
        calls = {str(k): (lambda k=k, x=x: model(x, stitch_id=k)) for k in STITCHES}
        direct = medians(time_in_turns(calls, options.rounds, 3, wait=partial(wait, options.device)))
        found = {row["stitch_id"]: round(row["latency_ms"] / direct[str(row["stitch_id"])], 3) for row in rows}
        yield {"batch_size": batch, "profile over a loop": found}


def burn(device: str, busy: Any) -> None:
    """Load a device while `busy` is set."""
    a = torch.randn(
        4096 if device.startswith("cuda") else 512, 4096 if device.startswith("cuda") else 512, device=device
    )
    while busy.wait(timeout=60):
        for _ in range(8):
            a = torch.tanh(a @ a)
        wait(torch.device(device))


@torch.inference_mode()
def controller(options: argparse.Namespace) -> Iterator[Row]:
    """Count requests within a latency target while another process loads the device; top-1 is the published one."""
    model, x = network(options), images(options, min(16, options.batch_size))
    rows = timm_stitch.profile(model, len(x), options.device, repeats=options.rounds)
    rows = [row | {"top1": known["published_top1"]} for row, known in zip(rows, model.stitch_table(), strict=True)]
    target = 1.25 * max(row["latency_ms"] for row in rows)
    ours_ = timm_stitch.LatencyController(model, target, rows=rows)
    top1, frontier = {row["stitch_id"]: row["top1"] for row in rows}, ours_.table.stitch_ids
    fixed = [frontier[0], frontier[len(frontier) // 2], frontier[-1]]
    within = dict.fromkeys(["controller", *fixed], 0)
    score = dict.fromkeys(["controller", *fixed], 0.0)
    context = multiprocessing.get_context("spawn")
    busy = context.Event()
    load = context.Process(target=burn, args=(str(options.device), busy), daemon=True)
    load.start()
    requests = 20 * options.rounds
    for number in range(requests):
        if number % (requests // 4) == 0:
            (busy.set if number // (requests // 4) % 2 else busy.clear)()
            time.sleep(1)
        for who in ("controller", *fixed):
            k = ours_.stitch_id if who == "controller" else who
            _, seconds = time_result(partial(model, x, stitch_id=k), wait=partial(wait, options.device))
            spent = 1e3 * seconds
            within[who] += spent <= target
            score[who] += top1[k] * (spent <= target)
            if who == "controller":
                ours_.observe(spent, images=len(x))
    load.kill()
    yield {
        "target_ms": round(target, 2), "batch_size": len(x),
        "within %": {str(who): round(100 * count / requests, 1) for who, count in within.items()},
        "accuracy times within": {str(who): round(total / requests, 2) for who, total in score.items()},
    }  # fmt: skip


def processes(options: argparse.Namespace) -> Iterator[Row]:
    """Compare a step on several GPUs, where there are, with DistributedDataParallel's."""
    count = torch.cuda.device_count() if options.device.type == "cuda" else 2
    if count < 2:
        yield {"not run": "one device"}
        return
    script = Path(__file__).with_name("distributed_step.py")
    arguments = ("--rounds", options.rounds, "--processes", count, "--images", options.size)
    yield run_script(script, *arguments, "--device", options.device.type)


SECTIONS = {f.__name__: f for f in (steps, switching, graphs, precisions, evaluation, profile, controller, processes)}


def main() -> None:
    """Measure, and append a line for each row."""
    parser = make_parser(__doc__)
    parser.add_argument("rows", type=Path, help="JSON-lines file to append to")
    parser.add_argument("--only", nargs="+", default=list(SECTIONS), choices=list(SECTIONS), help="sections to run")
    parser.add_argument("--device", type=torch.device, default=torch.device("cuda"), help="device to measure")
    parser.add_argument("--size", type=int, default=224, help="pixels along a side")
    parser.add_argument("--batch-size", type=int, default=128, help="images of a batch")
    parser.add_argument("--rounds", type=int, default=20, help="runs of each call")
    options = parser.parse_args()
    cuda = options.device.type == "cuda"
    name = torch.cuda.get_device_name(options.device) if cuda else platform.processor() or "CPU"
    for section in options.only:
        began = time.perf_counter()
        for row in SECTIONS[section](options):
            print_row({"section": section, "device": name, "torch": torch.__version__, **row}, options.rows)
        print(f"{section}: {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
