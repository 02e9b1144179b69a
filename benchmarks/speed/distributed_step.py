"""How long does a step on several processes take, against DDP with `find_unused_parameters=True`?

    python benchmarks/speed/distributed_step.py [--rounds 30] [--images 64] [--batch-size 8]
    python benchmarks/speed/distributed_step.py --device cuda --processes 8 --images 224 --batch-size 64

Both train the same stitch of the same network on the same images in the same step, a different stitch each step.
Ours averages the gradients of what was used alone. Steps take turns. Prints the median step of each, the ratio of
neighbours, and the bytes that each sends.
"""

import os
import statistics
import subprocess
import sys
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from training_step import network

from timm_stitch.training.data_parallel import GradientAverage, broadcast_weights
from timm_stitch.training.sampling import uniform

sys.path.insert(0, str(Path(__file__).parents[1] / "shared"))
from command_line import make_parser, print_row
from measuring import compare, time_result
from processes import rank_environments


def work(options):
    """Be one of the processes."""
    torch.set_num_threads(1)
    cuda = options.device == "cuda"
    dist.init_process_group("nccl" if cuda else "gloo")
    device = torch.device(options.device, dist.get_rank() if cuda else None)
    torch.set_default_device(device)
    one, two = (network(options.images).train() for _ in range(2))
    two.load_state_dict(one.state_dict())
    broadcast_weights(one)
    average = GradientAverage(one)
    wrapped = DistributedDataParallel(two, find_unused_parameters=True)
    optimizers = [torch.optim.AdamW(model.parameters(), lr=1e-4) for model in (one, two)]
    generator = torch.Generator(device).manual_seed(dist.get_rank())
    times, sent = {"ours": [], "ddp": []}, []
    wait = torch.cuda.synchronize if cuda else lambda: None

    def step(name, images, labels, k):
        model, optimizer = (one, optimizers[0]) if name == "ours" else (wrapped, optimizers[1])
        loss = torch.nn.functional.cross_entropy(model(images, stitch_id=k), labels)
        if name == "ours":
            average.begin([k], loss)
        loss.backward()
        if name == "ours":
            sent.append(average.finish())
        optimizer.step()
        optimizer.zero_grad()

    for number in range(options.rounds + 2):
        images = torch.randn(options.batch_size, 3, options.images, options.images, generator=generator)
        labels = torch.randint(10, (options.batch_size,), generator=generator)
        k = uniform(one.stitch_ids, 0, number)
        for name in ("ours", "ddp") if number % 2 else ("ddp", "ours"):
            dist.barrier()
            _, seconds = time_result(partial(step, name, images, labels, k), wait=wait)
            if number >= 2:
                times[name].append(1e3 * seconds)
    apart = max((a - b).abs().max().item() for a, b in zip(one.parameters(), two.parameters(), strict=True))
    if dist.get_rank() == 0:
        ours, ddp = (statistics.median(times[name]) for name in ("ours", "ddp"))
        whole = sum(p.numel() * p.element_size() for p in one.parameters())
        row = {"ours_ms": round(ours, 1), "ddp_find_unused_ms": round(ddp, 1)}
        row |= {"quartiles_of_ratio": compare(times["ours"], times["ddp"]).as_list()}
        row |= {"ours_mb_a_step": round(statistics.mean(sent) / 1e6, 1), "ddp_mb_a_step": round(whole / 1e6, 1)}
        print_row(row | {"largest_difference_of_weights": apart})
    dist.destroy_process_group()


def main():
    """Start the processes, or be one of them."""
    parser = make_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=30, help="steps of each side")
    parser.add_argument("--images", type=int, default=64, help="pixels along a side")
    parser.add_argument("--batch-size", type=int, default=8, help="images in a step of one process")
    parser.add_argument("--processes", type=int, default=2, help="number of processes")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"], help="device of all processes")
    options = parser.parse_args()
    if "RANK" in os.environ:
        return work(options)
    started = [
        subprocess.Popen([sys.executable, *sys.argv], env=os.environ | own)
        for own in rank_environments(options.processes)
    ]
    return max(process.wait() for process in started)


if __name__ == "__main__":
    sys.exit(main())
