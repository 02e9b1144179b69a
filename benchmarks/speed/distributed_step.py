"""A step's time on several processes: gradients of what was used, against DDP with `find_unused_parameters=True`.

    python benchmarks/speed/distributed_step.py [--rounds 30] [--images 64] [--batch-size 8]
    python benchmarks/speed/distributed_step.py --device cuda --processes 8 --images 224 --batch-size 64

Both train the same stitch of the same network on the same images in the same step, a different stitch each step.
Steps of the two are interleaved. Prints the median step of each and the bytes that each sends.
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import time

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from timm_stitch.training.data_parallel import GradientAverage, broadcast_weights
from timm_stitch.training.sampling import uniform

ANCHORS = ("deit_tiny_patch16_224", "deit_small_patch16_224")


def work(options):
    import timm

    import timm_stitch  # noqa: F401 (registers the networks)

    torch.set_num_threads(1)
    cuda = options.device == "cuda"
    dist.init_process_group("nccl" if cuda else "gloo")
    device = torch.device(options.device, dist.get_rank() if cuda else None)
    torch.set_default_device(device)
    torch.manual_seed(0)
    specs = [{"architecture": n, "img_size": options.images, "num_classes": 10} for n in ANCHORS]
    one, two = (timm.create_model("snnet", anchors=specs).train() for _ in range(2))
    two.load_state_dict(one.state_dict())
    broadcast_weights(one)
    average = GradientAverage(one)
    wrapped = DistributedDataParallel(two, find_unused_parameters=True)
    optimizers = [torch.optim.AdamW(model.parameters(), lr=1e-4) for model in (one, two)]
    generator = torch.Generator(device).manual_seed(dist.get_rank())
    times, sent = {"ours": [], "ddp": []}, []

    wait = torch.cuda.synchronize if cuda else lambda: None

    def step(name, images, labels, k):
        dist.barrier()
        wait()
        began = time.perf_counter()
        model, optimizer = (one, optimizers[0]) if name == "ours" else (wrapped, optimizers[1])
        loss = torch.nn.functional.cross_entropy(model(images, stitch_id=k), labels)
        if name == "ours":
            average.begin([k], loss)
        loss.backward()
        if name == "ours":
            sent.append(average.finish())
        optimizer.step()
        optimizer.zero_grad()
        wait()
        return time.perf_counter() - began

    for number in range(options.rounds + 2):
        images = torch.randn(options.batch_size, 3, options.images, options.images, generator=generator)
        labels = torch.randint(10, (options.batch_size,), generator=generator)
        k = uniform(one.stitch_ids, 0, number)
        for name in ("ours", "ddp") if number % 2 else ("ddp", "ours"):
            taken = step(name, images, labels, k)
            if number >= 2:
                times[name].append(taken)
    apart = max((a - b).abs().max().item() for a, b in zip(one.parameters(), two.parameters(), strict=True))
    if dist.get_rank() == 0:
        ours, ddp = (1e3 * statistics.median(times[name]) for name in ("ours", "ddp"))
        whole = sum(p.numel() * p.element_size() for p in one.parameters())
        row = {"ours_ms": round(ours, 1), "ddp_find_unused_ms": round(ddp, 1), "ratio": round(ours / ddp, 3)}
        row |= {"ours_mb_a_step": round(statistics.mean(sent) / 1e6, 1), "ddp_mb_a_step": round(whole / 1e6, 1)}
        print(json.dumps(row | {"largest_difference_of_weights": apart}))
    dist.destroy_process_group()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--images", type=int, default=64, help="pixels along a side")
    parser.add_argument("--batch-size", type=int, default=8, help="of one process")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    options = parser.parse_args()
    if "RANK" in os.environ:
        return work(options)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        env = os.environ | {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(free.getsockname()[1]),
            "WORLD_SIZE": str(options.processes),
        }
    started = [
        subprocess.Popen([sys.executable, *sys.argv], env=env | {"RANK": str(rank)})
        for rank in range(options.processes)
    ]
    return max(process.wait() for process in started)


if __name__ == "__main__":
    sys.exit(main())
