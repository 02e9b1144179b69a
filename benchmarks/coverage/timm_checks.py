"""What every anchor of timm must do: built with random weights, opened, stitched, saved, initialised, trained."""

from __future__ import annotations

import copy
import dataclasses
import tempfile
import time
import warnings
from difflib import SequenceMatcher
from typing import Any

import timm
import torch
from timm.models._registry import _model_to_module
from torch import nn
from torch.overrides import TorchFunctionMode

import timm_stitch
from timm_stitch import SNNet, stitch
from timm_stitch.anchors.macs import Macs
from timm_stitch.anchors.view import ImageInputs, View
from timm_stitch.families.timm_models.traced_view import TracedView
from timm_stitch.families.timm_models.views import view_of

SIZES = (64, 96, 128, 192)


class QuickNoise(TorchFunctionMode):
    """Takes random values from a table: the generator would take most of the time of building a large model."""

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.rand((1 << 20) + 7)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Fill large uniform tensors from the table."""
        if func is not torch.Tensor.uniform_ or args[0].numel() < 4096 or args[0].device.type != "cpu":
            return func(*args, **(kwargs or {}))
        low, high = [*args[1:3], *((kwargs or {}).get(end, value) for end, value in (("from", 0.0), ("to", 1.0)))][:2]
        start = int(torch.randint(len(self.table), ()))
        filled = torch.roll(self.table, start).repeat(-(-args[0].numel() // len(self.table)))[: args[0].numel()]
        return args[0].copy_(filled.view(args[0].shape)).mul_(high - low).add_(low)


def build(name: str, size: int | None = None, **kwargs: Any) -> tuple[nn.Module, tuple[int, int]]:
    """Build the model with random weights that let every path matter, at the smallest image size that it takes."""
    cfg = timm.get_pretrained_cfg(name)
    native = tuple(cfg.input_size[-2:])
    sizes = [*((s, s) for s in SIZES if s < min(native)), native] if size is None else [(size, size)]
    problem: Exception | None = None
    for side in sizes:
        try:
            torch.manual_seed(0)
            with QuickNoise():
                try:
                    model = timm.create_model(name, img_size=side, **kwargs)
                except TypeError:
                    model = timm.create_model(name, **kwargs)
            with torch.no_grad():
                model.eval()(torch.zeros(1, cfg.input_size[0], *side))
            return randomize_constants(model), side
        except Exception as error:
            problem = error
    raise RuntimeError(f"the model itself does not run: {problem!r:.150}")


@torch.no_grad()
def randomize_constants(model: nn.Module) -> nn.Module:
    """Give constant parameters and running statistics random values: zeros would hide a wrong path."""
    for parameter in model.parameters():
        if parameter.numel() > 1 and parameter.is_floating_point() and float(parameter.std()) < 1e-3:
            parameter.add_(torch.randn_like(parameter) * 0.05)
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(0, 0.1)
    return model


def run_parts(part: View, x: torch.Tensor) -> Any:
    """Run stem, all blocks, norm and head one after another."""
    return part.head(part.norm(part.run(part.stem(x), 0, part.depth, ImageInputs(x))))


def is_exact(model: nn.Module, part: View, side: tuple[int, int]) -> bool:
    """Whether the parts equal the model bit for bit, at two batch sizes."""
    channels = model.pretrained_cfg["input_size"][0]
    for batch in (1, 3):
        x = torch.randn(batch, channels, *side)
        expected = model(x)
        if not torch.isfinite(expected).all() or float(expected.std()) == 0:
            raise RuntimeError("random weights give no finite, varied logits")
        if not torch.equal(run_parts(part, x), expected):
            return False
    return True


def gradients_agree(model: nn.Module, part: View, side: tuple[int, int]) -> bool:
    """Whether both give the same gradients in training mode with the stochastic layers off."""
    model.train()
    for module in model.modules():
        for rate in ("drop_prob", "p", "prob", "drop_rate", "drop"):
            if isinstance(getattr(module, rate, None), float):
                setattr(module, rate, 0.0)
        for jitter in ("shift_coords", "jitter_coords", "rescale_coords"):  # of rotary embeddings
            if getattr(module, jitter, None) is not None:
                setattr(module, jitter, None)
    x = torch.randn(2, model.pretrained_cfg["input_size"][0], *side)
    found = []
    for run in (model, lambda image: run_parts(part, image)):
        torch.manual_seed(0)
        model.zero_grad(set_to_none=True)
        out = run(x)
        sum(o.float().square().mean() for o in (out if isinstance(out, (tuple, list)) else [out])).backward()
        found.append([p.grad for p in model.parameters()])
    model.eval()
    return all(
        (a is None and b is None) or (a is not None and b is not None and torch.allclose(a, b, rtol=1e-3, atol=1e-6))
        for a, b in zip(*found, strict=True)
    )


def count_cuts(part: View, x: torch.Tensor) -> int:
    """Count boundaries with 10 % to 90 % of the multiply-adds before them (at the native size if known)."""
    if isinstance(part, TracedView):
        return part._usual.partition.middle
    counter, before = Macs(), []
    with torch.no_grad(), counter:
        h = part.stem(x)
        for index in range(part.depth + 1):
            before.append(counter.total)
            if index < part.depth:
                h = part.run(h, index, index + 1, ImageInputs(x))
        part.head(part.norm(h))
    return sum(0.1 <= macs / (counter.total or 1) <= 0.9 for macs in before)


def stitch_pair(first: nn.Module, second: nn.Module) -> SNNet:
    """Stitch two models, the smaller first."""
    anchors = sorted((first, second), key=lambda m: sum(p.numel() for p in m.parameters()))
    try:
        return stitch(anchors).eval()
    except ValueError:  # a window of two does not fit levels of one block
        return stitch(anchors, kernel_size=1).eval()


def find_failure(network: SNNet, x: torch.Tensor) -> str:
    """Do everything that is done with a network: what fails, or an empty text."""
    step, between = "run", [s.stitch_id for s in network.plan if not s.is_anchor]
    some = sorted({0, 1, *between[:1], *between[-1:], network.stitch_ids[-1]})
    try:
        with torch.no_grad():
            logits = dict(network.forward_each(x))
            if set(logits) != set(network.stitch_ids) or not all(torch.isfinite(y).all() for y in logits.values()):
                raise ValueError("a stitch gives no finite logits")
            step = "costs"
            if min(min(row["macs"], row["params"]) for row in network.stitch_table()) <= 0:
                raise ValueError("a stitch that costs nothing")
            step = "save and load"
            with tempfile.TemporaryDirectory() as folder:
                timm_stitch.save_pretrained(network, folder)
                again = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
            for k in some:  # the same weights, but elsewhere in memory, by which sums may round otherwise
                few = 1e-4 * float(logits[k].std())  # random weights give some networks logits of many thousands
                torch.testing.assert_close(again(x, stitch_id=k), logits[k], rtol=1e-4, atol=few + 1e-5)
            step = "extract"
            if not all(torch.equal(network.extract(k)(x), logits[k]) for k in some):
                raise ValueError("other logits than before")
            step = "least squares"
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                plan = dataclasses.replace(network.plan, stitches=tuple(network.plan[k] for k in some))
                few = SNNet(network.views, plan)
                timm_stitch.least_squares_init(few, torch.randn(_count_images(few, x), *x.shape[1:]), batch_size=128)
            if not all(torch.isfinite(p).all() for p in few.stitching_layers.parameters()):
                raise ValueError("layers that are not finite")
        step = "train"
        network.train()
        optimizer = torch.optim.SGD(network.parameters(), lr=1e-6)
        chosen = network.plan[between[len(between) // 2] if between else 0]
        out = network(torch.randn(2, *x.shape[1:]), stitch_id=chosen.stitch_id)
        sum(o.float().square().mean() for o in (out if isinstance(out, (tuple, list)) else [out])).backward()
        for layer in (network.stitching_layers[number] for number in chosen.layers):
            if layer.weight.grad is None or not torch.isfinite(layer.weight.grad).all():
                raise ValueError("a stitching layer without a gradient")
        optimizer.step()
    except Exception as error:
        return f"{step}: {type(error).__name__}: {str(error)[:150]}"
    return ""


def _count_images(network: SNNet, x: torch.Tensor) -> int:
    """Count the images that determine the widest stitching layer."""
    wanted = 2
    for number, layer in enumerate(network.plan.layers):
        if not network.plan.pairs(number):
            continue
        leave = network.plan.pairs(number)[0][0]
        reduction = network.views[layer.front].reductions[leave]
        positions = max((x.shape[-1] // reduction) * (x.shape[-2] // reduction), 1)
        wanted = max(wanted, -(-(layer.in_width + 2) // positions))
    return wanted


def stitch_with_another(name: str, model: nn.Module, side: tuple[int, int], others: list[str]) -> str:
    """Stitch a model with the first one that it fits, of the smallest and the most alike."""
    reason = "no other member of its size or smaller"
    alike = sorted(others, key=lambda other: -SequenceMatcher(None, name, other).ratio())
    for other in dict.fromkeys([*others[:3], *alike[:6]]):
        try:
            second, _ = build(other, side[0], num_classes=model.num_classes)
            network = stitch_pair(copy.deepcopy(model), second)
            wrong = find_failure(network, torch.randn(1, model.pretrained_cfg["input_size"][0], *side))
            if not wrong:
                return f"{other}: {sum(not s.is_anchor for s in network.plan)}"
            reason = f"{other}: {wrong}"
        except Exception as error:
            reason = f"{other}: {type(error).__name__}: {str(error)[:120]}"
    return f"no ({reason})"


def examine(name: str, count: int, others: list[str], max_params: int, pair_params: int) -> dict[str, Any]:
    """Make the row of one name."""
    torch.set_num_threads(1)
    row: dict[str, Any] = {"name": name, "module": _model_to_module[name], "params": count}
    started = time.process_time()
    try:
        if count > max_params:
            with torch.device("meta"):
                part = view_of(timm.create_model(name))
            found = part._usual.partition.middle if isinstance(part, TracedView) else None
            row.update(exact=None, mechanism=type(part).__name__, depth=part.depth, cuts=found, reason="not run: size")
            return row
        model, side = build(name)
        keys = list(model.state_dict())
        part = view_of(model)
        row.update(size=side[0], mechanism=type(part).__name__, depth=part.depth)
        row["layouts"] = sorted({part.form_at(i)[0] for i in range(part.depth + 1)})
        with torch.no_grad():
            row["exact"] = is_exact(model, part, side)
            row["cuts"] = count_cuts(part, torch.randn(1, model.pretrained_cfg["input_size"][0], *side))
        try:
            row["gradients"] = gradients_agree(model, part, side)
        except Exception as error:
            row.update(gradients=None, reason=f"training: {type(error).__name__}: {str(error)[:150]}")
        row["keys"] = list(model.state_dict()) == keys
        if count <= pair_params:
            model.eval()
            x = torch.randn(1, model.pretrained_cfg["input_size"][0], *side)
            row["itself"] = find_failure(stitch_pair(copy.deepcopy(model), copy.deepcopy(model)), x) or "all"
            row["pair"] = stitch_with_another(name, model, side, others)
    except Exception as error:
        row.update(exact=row.get("exact", False), reason=f"{type(error).__name__}: {str(error)[:200]}")
    row["seconds"] = round(time.process_time() - started, 1)
    return row
