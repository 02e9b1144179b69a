"""Does an anchor do what its owner made of it? timm models changed in 22 ways, before stitching and after.

    python benchmarks/robustness/model_changes.py ROWS [--names 64] [--minutes 60]

For one small name of each of timm's modules, two copies are stitched and changed, or changed and stitched. An anchor's
stitch is then compared with the changed model, by a call, by `forward_each`, with an id for each image and extracted; a
stitch of both is compared between these doors, and both with what is saved and loaded. Each change, and its saving, is
`right`, `refused` by a ValueError or TypeError of one line, `not possible` where the model itself does not run then, or
`WRONG`. Prints a JSON line for each, adds it to ROWS, and skips those that ROWS has; the exit status
is 1 if one is wrong.
"""

from __future__ import annotations

import copy
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import MethodType
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "shared"))
sys.path.insert(0, str(Path(__file__).parents[1] / "coverage"))
import timm
import torch
from command_line import make_parser, print_row, read_rows
from timm.models._registry import _model_to_module
from timm_checks import build
from torch import Tensor, nn

import timm_stitch

Models = list[Any]


class NotPossibleError(Exception):
    """The model has nothing that this would change."""


# ── changes ───────────────────────────────────────────────────────────────────────────────────────────


class _Normalised(nn.Module):
    def forward(self, x: Tensor) -> Any:
        return super().forward((x - 0.45) / 0.225)


class _Halved(nn.Sequential):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x) * 0.5


def subclass(model: Any) -> None:
    model.__class__ = type("Normalised", (_Normalised, type(model)), {})


def patched_forward(model: Any) -> None:
    plain = type(model).forward
    model.forward = MethodType(lambda self, x: plain(self, x * 0.5), model)


def patched_forward_features(model: Any) -> None:
    plain = type(model).forward_features
    model.forward_features = MethodType(lambda self, x, **more: plain(self, x * 0.5, **more), model)


def _last_container(model: Any) -> str:
    rows = [n for n, m in model.named_modules() if n and type(m) is nn.Sequential and len(m) > 1 and "head" not in n]
    return _or_not_possible(rows, key=lambda name: -name.count("."))


def container(model: Any) -> None:
    owner, _, leaf = _last_container(model).rpartition(".")
    inside = model.get_submodule(owner)
    setattr(inside, leaf, _Halved(*getattr(inside, leaf).children()))


def hook_on_container(model: Any) -> None:
    model.get_submodule(_last_container(model)).register_forward_hook(lambda m, args, out: out * 0.5)


def pre_hook_on_container(model: Any) -> None:
    model.get_submodule(_last_container(model)).register_forward_pre_hook(lambda m, args: (args[0] * 0.5, *args[1:]))


def hook_on_model(model: Any) -> None:
    model.register_forward_hook(lambda m, args, out: -out)


def pre_hook_on_model(model: Any) -> None:
    model.register_forward_pre_hook(lambda m, args: args[0] * 0.5)


def classifier(model: Any) -> None:
    model.reset_classifier(7)


def pooling(model: Any) -> None:
    model.reset_classifier(model.num_classes, global_pool="max")


def activation(model: Any) -> None:
    kinds = (nn.ReLU, nn.GELU, nn.SiLU, nn.Hardswish)
    _replace(model, [n for n, m in model.named_modules() if isinstance(m, kinds)], nn.Tanh())


def identity(model: Any) -> None:
    _replace(
        model, [n for n, m in model.named_modules() if isinstance(m, (nn.LayerNorm, nn.BatchNorm2d))], nn.Identity()
    )


def epsilon(model: Any) -> None:
    norms = [m for m in model.modules() if hasattr(m, "eps") and isinstance(m.eps, float)]
    _or_not_possible(norms).eps = 0.5


def padding_mode(model: Any) -> None:
    convs = [m for m in model.modules() if isinstance(m, nn.Conv2d) and m.padding not in ((0, 0), 0, "same", "valid")]
    conv = _or_not_possible(convs)
    conv.padding_mode = "reflect"


def reparameterized(model: Any) -> None:
    timm.utils.reparameterize_model(model, inplace=True)


def frozen_norms(model: Any) -> None:
    norms = [n for n, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)]
    timm.utils.freeze_batch_norm_2d(model.get_submodule(_or_not_possible(norms).rpartition(".")[0]))


def input_size(model: Any) -> None:
    if not hasattr(model, "set_input_size"):
        raise NotPossibleError
    model.set_input_size(img_size=(SIZE, SIZE))


def data(model: Any) -> None:
    list(model.parameters())[-3].data.mul_(1.5)


def weight_norm(model: Any) -> None:
    linears = [m for m in model.modules() if isinstance(m, nn.Linear)]
    torch.nn.utils.parametrizations.weight_norm(_or_not_possible(linears))
    with torch.no_grad():
        linears[-1].parametrizations.weight.original0.mul_(1.5)


def dropped_block(model: Any) -> None:
    name = _last_container(model)
    owner, _, leaf = name.rpartition(".")
    inside = model.get_submodule(owner)
    setattr(inside, leaf, nn.Sequential(*list(getattr(inside, leaf).children())[:-1]))


def bfloat16(model: Any) -> None:
    model.bfloat16()


def attribute(model: Any) -> None:
    model.note = "of the owner"
    model.drop_rate = 0.1


CHANGES: dict[str, Callable[[Any], None]] = {
    f.__name__: f
    for f in (
        subclass, patched_forward, patched_forward_features, container, hook_on_container, pre_hook_on_container,
        hook_on_model, pre_hook_on_model, classifier, pooling, activation, identity, epsilon, padding_mode,
        reparameterized, frozen_norms, input_size, data, weight_norm, dropped_block, bfloat16, attribute,
    )
}  # fmt: skip
SIZE = 128  # of the images after `input_size`


def _or_not_possible(values: list[Any], key: Callable[[Any], Any] | None = None) -> Any:
    if not values:
        raise NotPossibleError
    return max(values, key=key) if key else values[-1]


def _replace(model: Any, names: list[str], module: nn.Module) -> None:
    owner, _, leaf = _or_not_possible(names).rpartition(".")
    setattr(model.get_submodule(owner), leaf, module)


# ── the comparison ────────────────────────────────────────────────────────────────────────────────────


def compare(anchors: Models, change: Callable[[Any], None], before: bool, x: Tensor, saving: bool) -> tuple[str, str]:
    """What became of a change, and of saving it, in a word and a reason."""
    anchors = copy.deepcopy(anchors)
    net: Any = None
    try:
        if not before:
            net = timm_stitch.stitch(anchors, kernel_size=1).eval()
            net(x, stitch_id=0)
        for anchor in anchors:
            change(anchor)
        if net is not None and change is bfloat16:
            net.bfloat16()  # its stitching layers, too
        if change is input_size:
            x = nn.functional.interpolate(x, (SIZE, SIZE))
        x = x.to(next(anchors[1].parameters()).dtype)
        expected = anchors[1](x)
    except NotPossibleError:
        return "not possible", ""
    except Exception as error:
        return f"not possible: the model itself raises {type(error).__name__}", ""
    if not (isinstance(expected, Tensor) and torch.isfinite(expected).all()):
        return "not possible: the model itself gives no finite logits", ""
    try:
        net = net or timm_stitch.stitch(anchors, kernel_size=1).eval()
    except (ValueError, TypeError) as error:
        return _refusal("stitch", error), ""
    outcomes: list[str] = []
    stitched = next((s.stitch_id for s in net.plan if s.anchors == (0, 1)), None)
    for k in (net.plan.anchor_id(1), stitched):
        if k is not None:
            outcomes += list(_by_doors(net, x, k, expected if k != stitched else None))
    return _worst(outcomes), "" if not saving else _worst(list(_saved(net, x, [net.plan.anchor_id(1), stitched])))


def _worst(outcomes: list[str]) -> str:
    order = ("WRONG", "refused")
    return next((o for word in order for o in outcomes if o.startswith(word)), "right")


def _saved(net: Any, x: Tensor, ids: list[int | None]) -> Iterator[str]:
    """Compare what is loaded again with what was saved."""
    try:
        with tempfile.TemporaryDirectory() as folder:
            loaded = timm_stitch.from_hub(timm_stitch.save_pretrained(net, Path(folder) / "net")).eval()
    except (ValueError, TypeError) as error:
        yield _refusal("save", error)
        return
    except Exception as error:
        yield f"WRONG: save: {type(error).__name__}: {str(error).splitlines()[:1]}"
        return
    like = next(loaded.parameters())  # saved in bfloat16, timm loads it in float32
    for k in ids:
        if k is not None and not _agree(net(x, stitch_id=k), loaded(x.to(like.dtype), stitch_id=k).to(x.dtype)):
            yield f"WRONG: stitch {k} loaded differs"


def _by_doors(net: Any, x: Tensor, k: int, expected: Tensor | None) -> Iterator[str]:
    other = next(i for i in net.stitch_ids if i != k)
    kind = "anchor" if expected is not None else "stitch"
    doors: dict[str, Callable[[], Tensor]] = {
        "call": lambda: net(x, stitch_id=k),
        "forward_each": lambda: dict(net.forward_each(x, [other, k]))[k],
        "ids by image": lambda: net(torch.cat([x, x[:1]]), stitch_id=[k] * len(x) + [other])[: len(x)],
        "extract": lambda: net.extract(k)(x),
    }
    for door, call in doors.items():
        try:
            y = call()
        except (ValueError, TypeError) as error:
            yield _refusal(f"{kind}, {door}", error)
            continue
        except Exception as error:
            yield f"WRONG: {kind}, {door}: {type(error).__name__}: {str(error).splitlines()[:1]}"
            continue
        expected = y if expected is None else expected
        if not _agree(y, expected):
            yield f"WRONG: {kind}, {door} differs"


def _agree(a: Tensor, b: Tensor) -> bool:
    tolerance = 2e-2 if a.dtype == torch.bfloat16 else 1e-4
    return a.shape == b.shape and torch.allclose(a, b, rtol=tolerance, atol=tolerance)


def _refusal(where: str, error: Exception) -> str:
    lines = str(error).splitlines()
    return f"refused: {where}: {lines[0]:.160}" if len(lines) == 1 else f"WRONG: {where}: {len(lines)} lines"


def names(count: int) -> list[str]:
    """The smallest model of each of timm's modules, small ones first."""
    smallest: dict[str, tuple[int, str]] = {}
    for row in read_rows(Path(__file__).parents[1] / "coverage" / "anchor_coverage.jsonl"):
        module, size = _model_to_module.get(row["name"], ""), row.get("params")
        if module and size and (module not in smallest or size < smallest[module][0]):
            smallest[module] = size, row["name"]
    return [name for _, name in sorted(smallest.values())[:count]]


def main() -> None:
    """Try the changes on all names."""
    parser = make_parser(__doc__)
    parser.add_argument("rows", type=Path, help="the JSON-lines file that keeps the rows")
    parser.add_argument("--names", type=int, default=64, help="the number of timm's modules to take a name of")
    parser.add_argument("--minutes", type=float, default=60, help="the time after which to stop")
    parser.add_argument("--save-every", type=int, default=8, help="save the networks of every N-th name only")
    parser.add_argument(
        "--when",
        nargs="+",
        default=["before", "after"],
        choices=["before", "after"],
        help="changes before stitching or after",
    )
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    rows, began = read_rows(args.rows), time.monotonic()
    done = {(row["name"], row["change"], row["when"]) for row in rows}
    for number, name in enumerate(names(args.names)):
        saving = number % args.save_every == 0
        todo = [(c, w) for c in CHANGES for w in args.when if (name, c, w) not in done]
        if not todo or time.monotonic() - began > 60 * args.minutes:
            continue
        anchors: Models = []
        try:
            first, size = build(name)
            torch.manual_seed(1)
            second = copy.deepcopy(first)
            with torch.no_grad():
                for parameter in second.parameters():
                    parameter.mul_(1 + 0.1 * torch.rand_like(parameter))
            anchors = [first, second]
        except Exception as error:
            print(f"{name}: {error}", file=sys.stderr)
            continue
        x = torch.randn(2, 3, *size)
        for change, when in todo:
            with torch.no_grad():
                outcome, saved = compare(anchors, CHANGES[change], when == "before", x, saving and when == "after")
            row = {"name": name, "change": change, "when": when, "outcome": outcome, "saved": saved}
            rows.append(row)
            print_row(row, args.rows)
    counts = {of: Counter(row[of].split(":")[0] for row in rows if row[of]) for of in ("outcome", "saved")}
    print(f"{len({row['name'] for row in rows})} names:", {of: dict(c) for of, c in counts.items()}, file=sys.stderr)
    raise SystemExit(any(c["WRONG"] for c in counts.values()))


if __name__ == "__main__":
    main()
