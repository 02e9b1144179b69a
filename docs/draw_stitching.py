"""Draw the pictures of README.md: what stitching is, in light and dark, and the badges.

`python docs/draw_stitching.py` writes `docs/stitching-light.svg`, `docs/stitching-dark.svg` and `docs/badges/*.svg`.
Figures come from the authors' results in `hub_cards/`, versions from `pyproject.toml`. A test compares the files with
what is drawn.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
FONT = "font-family=\"system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif\""
LIGHT = {"paper": "#ffffff", "ink": "#1f2328", "faint": "#8c959f", "block": "#eef1f5", "edge": "#b6bfc9",
         "small": "#0969da", "stitch": "#1a7f37", "large": "#bc4c00"}  # fmt: skip
DARK = {"paper": "#0d1117", "ink": "#e6edf3", "faint": "#7d8590", "block": "#1c2230", "edge": "#465060",
        "small": "#58a6ff", "stitch": "#56d364", "large": "#f0883e"}  # fmt: skip

# The network that is drawn, and the stitch of it: seven blocks of DeiT-Ti, a stitching layer, five of DeiT-S.
NETWORK, SMALL, LARGE, STITCH, CUT = "snnet_deit_tsb", 0, 1, 22, 7
BLOCKS, LEFT, STEP, WIDTH = 12, 150, 46, 34
TOP, BOTTOM = 84, 196  # the middle of each anchor's blocks
HEIGHTS = {TOP: 40, BOTTOM: 60}


def stitching(colors: dict[str, str]) -> str:
    """The two anchors as rows of blocks, the stitching layers between them, and three paths."""
    end = LEFT + BLOCKS * STEP
    parts = [
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 860 372" role="img" aria-labelledby="title">',
        '<title id="title">Two anchors, the stitching layers between them, and three of the paths</title>',
        f'<rect width="860" height="372" rx="10" fill="{colors["paper"]}"/>',
        _text(LEFT, 40, "DeiT-Ti, the small anchor", colors["ink"], "bold"),
        _text(LEFT, 252, "DeiT-S, the large anchor", colors["ink"], "bold"),
    ]
    for row in (TOP, BOTTOM):
        for block in range(BLOCKS):
            height = HEIGHTS[row]
            parts.append(
                f'<rect x="{LEFT + block * STEP}" y="{row - height / 2}" width="{WIDTH}" height="{height}" rx="5" '
                f'fill="{colors["block"]}" stroke="{colors["edge"]}"/>'
            )
    for block in range(1, BLOCKS):
        x, color = _gap(block), colors["faint"]
        parts += [_line([(x, TOP), (x, BOTTOM)], color, 1, 'stroke-dasharray="2 4"'), _diamond(x, 136, 5, color)]
    cut = _gap(CUT)
    for name, points in {
        "small": [(90, 124), (120, TOP - 7), (end + 10, TOP - 7)],
        "large": [(90, 156), (120, BOTTOM + 9), (end + 10, BOTTOM + 9)],
        "stitch": [(90, 140), (120, TOP + 7), (cut, TOP + 7), (cut, BOTTOM - 9), (end + 10, BOTTOM - 9)],
    }.items():
        parts.append(_line(points, colors[name], 3.5, 'stroke-linejoin="round"'))
        x, y = points[-1]
        parts.append(f'<path d="M{x} {y - 6}l11 6l-11 6z" fill="{colors[name]}"/>')
    parts += [
        _diamond(cut, 136, 9, colors["stitch"]),
        _text(end + 28, 141, "stitching layers", colors["ink"]),
        f'<rect x="30" y="112" width="60" height="56" rx="5" fill="{colors["block"]}" stroke="{colors["edge"]}"/>',
        _text(60, 145, "image", colors["ink"], anchor="middle"),
        _text(end + 28, 82, "classes", colors["ink"]),
        _text(end + 28, 201, "classes", colors["ink"]),
        *_legend(colors),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _legend(colors: dict[str, str]) -> list[str]:
    rows = {row["stitch_id"]: row for row in _published()}
    paths = {"small": ("small anchor alone", SMALL), "stitch": (f"stitch {STITCH}", STITCH),
             "large": ("large anchor alone", LARGE)}  # fmt: skip
    parts = []
    for number, (name, (label, stitch_id)) in enumerate(paths.items()):
        y, row = 296 + 26 * number, rows[stitch_id]
        parts += [
            _line([(LEFT, y - 5), (LEFT + 34, y - 5)], colors[name], 3.5),
            _text(LEFT + 48, y, label, colors["ink"]),
            _text(LEFT + 250, y, f"{row['macs'] / 1e9:.2f} GMACs", colors["ink"]),
            _text(LEFT + 380, y, f"{row['top1']:.1f} % top-1 on ImageNet", colors["ink"]),
        ]
    return parts


def _published() -> list[dict[str, float]]:
    text = (ROOT / "hub_cards" / NETWORK / "stitches.json").read_text(encoding="utf-8")
    return list(json.loads(text)["stitches"])


def _gap(block: int) -> float:
    """The middle of the gap before a block."""
    return LEFT + block * STEP - (STEP - WIDTH) / 2


def _text(x: float, y: float, text: str, color: str, weight: str = "normal", anchor: str = "start") -> str:
    return (
        f'<text x="{x}" y="{y}" {FONT} font-size="15" font-weight="{weight}" fill="{color}" '
        f'text-anchor="{anchor}">{text}</text>'
    )


def _line(points: list[tuple[float, float]], color: str, width: float, more: str = "") -> str:
    path = " ".join(f"{x},{y}" for x, y in points)
    return f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="{width}" {more}/>'


def _diamond(x: float, y: float, size: float, color: str) -> str:
    return f'<path d="M{x} {y - size}l{size} {size}l-{size} {size}l-{size} -{size}z" fill="{color}"/>'


def badges() -> dict[str, str]:
    """Badges by their file's name: what the package needs, its license and paper."""
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")

    def minimum(name: str) -> str:
        match = re.search(rf'"?{name}(?: = ")?>=([\d.]+)', project)
        assert match, name
        return f"{match[1]}+"

    return {
        "python": _badge("Python", minimum("requires-python"), "#0a58a8"),
        "torch": _badge("PyTorch", minimum("torch"), "#0a58a8"),
        "timm": _badge("timm", minimum("timm"), "#0a58a8"),
        "license": _badge("license", "Apache-2.0", "#2b6a30"),
        "paper": _badge("paper", "arXiv 2302.06586", "#8f1414"),
    }


def _badge(label: str, value: str, color: str) -> str:
    left, right = (round(7 * len(text)) + 14 for text in (label, value))
    text = f'{FONT} font-size="11" fill="#ffffff" text-anchor="middle"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + right}" height="20" role="img" '
        f'aria-label="{label}: {value}">\n<title>{label}: {value}</title>\n'
        f'<rect width="{left + right}" height="20" rx="3" fill="{color}"/>\n'
        f'<path d="M3 0h{left - 3}v20h-{left - 3}a3 3 0 0 1 -3 -3v-14a3 3 0 0 1 3 -3z" fill="#4b5159"/>\n'
        f'<text x="{left / 2}" y="14" {text}>{label}</text>\n'
        f'<text x="{left + right / 2}" y="14" {text}>{value}</text>\n'
        "</svg>\n"
    )


def pictures() -> dict[Path, str]:
    """Each picture's text by its file."""
    docs = ROOT / "docs"
    drawn = {docs / "stitching-light.svg": stitching(LIGHT), docs / "stitching-dark.svg": stitching(DARK)}
    return drawn | {docs / "badges" / f"{name}.svg": text for name, text in badges().items()}


if __name__ == "__main__":
    for path, text in pictures().items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
        print(path.relative_to(ROOT))
