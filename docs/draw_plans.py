"""Draw stitch plans as SVG: a row of blocks per anchor, a line per stitch, a colour per stitching layer.

    python docs/draw_plans.py

writes the pictures of docs/plans. Each comes from the plan that `enumerate_stitches` makes, so it shows what the
options do. The site puts them into its pages, where they take the page's colours. Elsewhere they follow the system's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from timm_stitch import Anchor, LayerSpec, Segment, Stitch, StitchPlan, enumerate_stitches

FOLDER = Path(__file__).parent / "plans"
WIDTH, LEFT, BLOCK, ROW = 640, 92, 24, 88
STYLE = (
    "svg.plan{--ink:#222;--block:#e4e7ef;--paper:#fff;font:13px system-ui,sans-serif}"
    "@media(prefers-color-scheme:dark){svg.plan{--ink:#ddd;--block:#3b4252;--paper:#1b1e26}}"
)
COLOURS = ("#3b6fd4", "#d9730d", "#1f9d7a", "#c2408f", "#8a63d2", "#b08900", "#2a9db5", "#d64545")


def _anchors(*depths: int) -> list[Anchor]:
    names = ("tiny", "small", "base") if len(depths) == 3 else ("small", "large")
    return [
        Anchor(name, (32 * 2**i,) * (depth + 1), (16,) * (depth + 1))
        for i, (name, depth) in enumerate(zip(names, depths, strict=True))
    ]


def own_plan(anchors: Sequence[Anchor]) -> StitchPlan:
    """Make a plan of one's own: the anchors, and the large anchor's first blocks before the small one's last."""
    small, large = anchors
    layers, stitches = [], [Stitch(i, (Segment(i, 0, anchor.depth),)) for i, anchor in enumerate(anchors)]
    for block in (2, 4):
        layers.append(LayerSpec(1, 0, large.widths[block], small.widths[block]))
        segments = Segment(1, 0, block), Segment(0, block, small.depth)
        stitches.append(Stitch(len(stitches), segments, (len(layers) - 1,)))
    return StitchPlan(tuple(anchors), tuple(layers), tuple(stitches))


def pictures() -> dict[str, str]:
    """Draw every picture: `{file name: SVG}`."""
    six, unequal, three = _anchors(6, 6), _anchors(4, 8), _anchors(4, 4, 4)
    two_way = enumerate_stitches(six, "two_way")
    back_and_forth = next(s.stitch_id for s in two_way if [g.anchor for g in s.segments] == [0, 1, 0])
    one = enumerate_stitches(six, kernel_size=1)
    plans = {
        "one_stitch": (one, one.stitches[4].stitch_id),
        "fast_to_slow": (enumerate_stitches(six), None),
        "slow_to_fast": (enumerate_stitches(six, "slow_to_fast"), None),
        "two_way": (two_way, None),
        "two_way_return": (two_way, back_and_forth + 3),
        "kernel_1": (one, None),
        "kernel_3": (enumerate_stitches(six, kernel_size=3), None),
        "stride_2": (enumerate_stitches(six, kernel_size=2, stride=2), None),
        "unequal": (enumerate_stitches(unequal), None),
        "nearest": (enumerate_stitches(three), None),
        "all_pairs": (enumerate_stitches(three, nearest=False), None),
        "own": (own_plan(six), None),
    }
    return {f"{name}.svg": draw(plan, stitch_id) for name, (plan, stitch_id) in plans.items()}


def draw(plan: StitchPlan, stitch_id: int | None = None) -> str:
    """Draw a plan, or with `stitch_id` the path of one stitch in it."""
    path = plan[stitch_id] if stitch_id is not None else None
    height = ROW * (len(plan.anchors) - 1) + BLOCK + 20
    title = _title(plan) if path is None else f"The path of stitch {path.stitch_id}: {path.name}"
    parts = [
        f'<svg class="plan" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img">',
        f"<title>{title}</title><style>{STYLE}</style>",
        *(_joints(plan, [path] if path else plan.stitches, thick=path is not None)),
        *(part for number in range(len(plan.anchors)) for part in _row(plan, number, path)),
        "</svg>",
    ]
    return "".join(parts) + "\n"


def _title(plan: StitchPlan) -> str:
    return f"{len(plan)} stitches of {' and '.join(plan.anchor_names)}, with {len(plan.layers)} stitching layers"


def _row(plan: StitchPlan, number: int, path: Stitch | None) -> Iterator[str]:
    """Yield an anchor's name and blocks; blocks that a path leaves out are pale."""
    anchor, top = plan.anchors[number], 10 + ROW * number
    yield f'<text x="0" y="{top + 17}" fill="var(--ink)">{anchor.name}</text>'
    runs = {b for s in path.segments if s.anchor == number for b in range(s.start, s.stop)} if path else None
    for block in range(anchor.depth):
        left, pale = _middle(anchor, block) - _size(anchor) / 2, runs is not None and block not in runs
        yield (
            f'<rect x="{left:.1f}" y="{top}" width="{_size(anchor):.1f}" height="{BLOCK}" rx="4" '
            f'fill="var(--block)" stroke="var(--ink)" opacity="{0.25 if pale else 1}"/>'
            f'<text x="{left + _size(anchor) / 2:.1f}" y="{top + 17}" text-anchor="middle" '
            f'fill="var(--ink)" opacity="{0.4 if pale else 1}">{block}</text>'
        )


def _joints(plan: StitchPlan, stitches: Sequence[Stitch], thick: bool) -> Iterator[str]:
    """Yield a line for each joint: from below or above the last front block to the first back block."""
    joints = {(layer, a.anchor, a.stop, b.anchor, b.start) for s in stitches for layer, a, b in s.joints}
    for layer, front, stop, back, start in sorted(joints):
        down = back > front
        x1, x2 = _middle(plan.anchors[front], stop - 1), _middle(plan.anchors[back], start)
        y1, y2 = 10 + ROW * front + BLOCK * down, 10 + ROW * back + BLOCK * (not down)
        if {(back, front)} & {(f, b) for _, f, _, b, _ in joints}:  # both ways: side by side
            x1, x2 = x1 + (5 if down else -5), x2 + (5 if down else -5)
        colour = COLOURS[layer % len(COLOURS)]
        end = y2 - 7 if down else y2 + 7
        yield (
            f'<path d="M{x1:.1f} {y1}L{x2:.1f} {end}" stroke="{colour}" stroke-width="{3 if thick else 1.8}"/>'
            f'<path d="M{x2 - 4:.1f} {end}h8L{x2:.1f} {y2}z" fill="{colour}"/>'
        )


def _size(anchor: Anchor) -> float:
    return min(44.0, (WIDTH - LEFT) / anchor.depth - 8)


def _middle(anchor: Anchor, block: int) -> float:
    return LEFT + (WIDTH - LEFT) * (block + 0.5) / anchor.depth


def main() -> None:
    """Write all pictures."""
    FOLDER.mkdir(exist_ok=True)
    for name, picture in pictures().items():
        (FOLDER / name).write_text(picture, encoding="utf-8")


if __name__ == "__main__":
    main()
