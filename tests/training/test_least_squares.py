"""Initialisation: never worse than float64 lstsq, streaming, and clear about what cannot be solved."""

import pytest
import timm
import torch

import timm_stitch
from timm_stitch.anchors.view import ImageInputs
from timm_stitch.families.timm_models.views import view_of
from timm_stitch.network.crossing import shared_positions
from timm_stitch.training.least_squares import least_squares
from timm_stitch.training.normal_equations import CenteredRows, NormalEquations


def activations(model, anchor, images, boundary):
    part = model.views[anchor]
    return part.run(part.stem(images), 0, boundary, ImageInputs(images)).flatten(0, 1)


def stacked(model, layer, images):
    spec = model.plan.layers[layer]
    rows = [
        (activations(model, spec.front, images, stop), activations(model, spec.back, images, start))
        for stop, start in model.plan.pairs(layer)
    ]
    return torch.cat([x for x, _ in rows]).double(), torch.cat([y for _, y in rows]).double()


def with_ones(x):
    return torch.cat([x, x.new_ones(len(x), 1)], dim=1)


@torch.no_grad()
def test_every_layer_is_as_good_as_lstsq(model):
    images = torch.randn(40, 3, 32, 32)
    residuals = timm_stitch.least_squares_init(model, images)
    assert set(residuals) == set(range(len(model.plan.layers)))
    for number, layer in enumerate(model.stitching_layers):
        x, y = stacked(model, number, images)
        best = (with_ones(x) @ torch.linalg.lstsq(with_ones(x), y).solution - y).norm()
        mine = (x @ layer.weight.double().T + layer.bias.double() - y).norm()
        assert mine <= best * (1 + 1e-6)
        assert residuals[number] == pytest.approx(float(mine / (y - y.mean(0)).norm()), rel=1e-5)


@torch.no_grad()
def test_average_is_the_mean_of_separate_solutions(model):
    images = torch.randn(40, 3, 32, 32)
    timm_stitch.least_squares_init(model, images, method="average")
    spec, solutions = model.plan.layers[0], []
    for stop, start in model.plan.pairs(0):
        x = with_ones(activations(model, spec.front, images, stop).double())
        y = activations(model, spec.back, images, start).double()
        solutions.append(torch.linalg.lstsq(x, y).solution)
    expected = torch.stack(solutions).mean(0)
    torch.testing.assert_close(model.stitching_layers[0].weight.double(), expected[:-1].T, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model.stitching_layers[0].bias.double(), expected[-1], rtol=1e-4, atol=1e-5)


def test_least_squares_recovers_an_exact_map():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(500, 12, generator=generator, dtype=torch.float64) + 1000
    weight, bias = torch.randn(7, 12, generator=generator).double(), torch.randn(7, generator=generator).double()
    found, offset = least_squares(x, x @ weight.T + bias)
    torch.testing.assert_close(found, weight, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(x @ found.T + offset, x @ weight.T + bias, rtol=1e-8, atol=1e-6)


def test_batches_of_several_fronts_and_backs_are_solved_as_all_their_pairs_together():
    generator = torch.Generator().manual_seed(0)
    equations, pairs = NormalEquations(5, 3), []
    for offset in (1000.0, -20.0):
        fronts = [torch.randn(40, 5, generator=generator).double() + offset * i for i in (1, 2)]
        backs = [torch.randn(40, 3, generator=generator).double() - offset * i for i in (1, 2, 3)]
        equations.add([CenteredRows.of(x) for x in fronts], [CenteredRows.of(y) for y in backs])
        pairs += [(x, y) for x in fronts for y in backs]
    x, y = (torch.cat(rows) for rows in zip(*pairs, strict=True))
    expected = torch.linalg.lstsq(with_ones(x), y).solution
    weight, bias, residual = equations.solve()
    torch.testing.assert_close(weight.T, expected[:-1], rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(bias, expected[-1], rtol=1e-7, atol=1e-7)
    assert residual == pytest.approx(float((with_ones(x) @ expected - y).norm() / (y - y.mean(0)).norm()), rel=1e-9)


def test_dead_and_repeated_channels_are_solved_with_the_smallest_weights():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 6, generator=generator, dtype=torch.float64)
    x[:, 2] = 0.5
    x[:, 4] = x[:, 1]
    y = x[:, :2] * 3 + 1
    weight, bias = least_squares(x, y)
    torch.testing.assert_close(x @ weight.T + bias, y, rtol=0, atol=1e-9)
    assert torch.equal(weight[:, 2], torch.zeros(2, dtype=torch.float64))
    torch.testing.assert_close(weight[1, 1], weight[1, 4])


def test_batches_and_one_tensor_give_the_same(model):
    images = torch.randn(20, 3, 32, 32)
    timm_stitch.least_squares_init(model, images)
    whole = [layer.weight.clone() for layer in model.stitching_layers]
    timm_stitch.least_squares_init(model, [(images[:7], None), (images[7:], None)])
    for before, layer in zip(whole, model.stitching_layers, strict=True):
        torch.testing.assert_close(before, layer.weight, rtol=1e-4, atol=1e-6)


def test_each_block_runs_once_for_each_batch(model):
    runs = []
    hooks = [b.register_forward_hook(lambda *_: runs.append(1)) for a in model.anchors for b in a.blocks]
    timm_stitch.least_squares_init(model, torch.randn(20, 3, 32, 32), batch_size=10)
    [hook.remove() for hook in hooks]
    assert len(runs) <= 2 * 18


def test_modes_come_back_and_anchors_do_not_change(model):
    before = {k: v.clone() for k, v in model.anchors.state_dict().items()}
    model.train()
    model.anchors[1].eval()
    timm_stitch.least_squares_init(model, torch.randn(20, 3, 32, 32))
    assert model.training
    assert not model.anchors[1].training
    assert all(torch.equal(v, before[k]) for k, v in model.anchors.state_dict().items())


def test_too_few_images_change_no_layer(model):
    before = model.stitching_layers[0].weight.clone()
    with pytest.raises(ValueError, match=r"at least 65 positions .* of 64 channels, got 34: give more images"):
        timm_stitch.least_squares_init(model, torch.randn(1, 3, 32, 32))
    assert torch.equal(before, model.stitching_layers[0].weight)


def test_other_input_is_refused(model):
    with pytest.raises(ValueError, match="activations are not finite"):
        timm_stitch.least_squares_init(model, torch.full((20, 3, 32, 32), float("nan")))
    with pytest.raises(ValueError, match="expected batches of images"):
        timm_stitch.least_squares_init(model, ["a"])
    with pytest.raises(ValueError, match="method must be one of 'joint', 'average', got 'qr'"):
        timm_stitch.least_squares_init(model, torch.zeros(1, 3, 32, 32), method="qr")


@pytest.mark.parametrize(("name", "count", "side"), [("hgnetv2_b0", 70, 128), ("pit_ti_224", 30, 64)])
def test_maps_of_odd_sizes_are_fitted(name, count, side):
    """HGNet's stem gives maps a row larger than its blocks do, PiT's 7x7 tokens of 64 pixels."""
    torch.manual_seed(0)
    kwargs = {"img_size": 64} if name.startswith("pit") else {}
    anchors = [timm.create_model(name, num_classes=3, **kwargs).eval() for _ in range(2)]
    model = timm_stitch.stitch(anchors)
    timm_stitch.least_squares_init(model, torch.randn(count, 3, side, side))
    spec = next(s for s in model.plan if not s.is_anchor)
    assert torch.isfinite(model.eval()(torch.randn(1, 3, side, side), stitch_id=spec.stitch_id)).all()


def test_what_is_no_map_is_refused_before_anything_is_fitted():
    """PiT's 7x7 tokens of 64 pixels do not meet a ResNet's 8x8, as in a call."""
    torch.manual_seed(0)
    front = timm.create_model("pit_ti_224", num_classes=3, img_size=64).eval()
    back = timm.create_model("resnet18", channels=(16, 32, 48, 64), num_classes=3).eval()
    views = [view_of(anchor) for anchor in (front, back)]
    leave, enter = 1, next(i for i, r in enumerate(views[1].reductions) if r == 8)
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        h = [v.run(v.stem(x), 0, at, ImageInputs(x)) for v, at in zip(views, (leave, enter), strict=True)]
    with pytest.raises(ValueError, match="is no map of"):
        shared_positions(*h, views[0], leave, views[1], enter, ImageInputs(x))
