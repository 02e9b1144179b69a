"""Dense networks: one output for every stitch, at the images' size, by the places that the pyramid names."""

import json
import math

import pytest
import torch
from tiny import deits, resnets, swins, vits
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

import timm_stitch
from timm_stitch.anchors.macs import Macs
from timm_stitch.families.dense.heads.linear import LinearHead
from timm_stitch.families.dense.inference import windows

CLASSES = 5


def dense(make=vits, head="linear", **more):
    torch.manual_seed(0)
    return timm_stitch.dense(timm_stitch.stitch(make()), head, CLASSES, **more).eval()


NETWORKS = {
    "vits, linear": lambda: dense(),
    "deits, dpt": lambda: dense(deits, "dpt", head_options={"features": 16}),
    "deits, dpt with class tokens": lambda: dense(deits, "dpt", head_options={"features": 16, "readout": "project"}),
    "resnets, dpt": lambda: dense(resnets, "dpt", head_options={"features": 16}),
    "swins, linear": lambda: dense(swins, levels=3),
    "vits, a head of one's own": lambda: dense(head=lambda channels, reductions: Own(channels, CLASSES)),
}


class Own(nn.Module):
    """Reads the last level alone."""

    def __init__(self, channels, outputs):
        super().__init__()
        self.classifier = nn.Conv2d(channels[-1], outputs, 1)

    def levels_used(self, training):
        return [3]

    def forward(self, maps):
        (last,) = maps
        return self.classifier(last)


@pytest.fixture(params=NETWORKS.values(), ids=NETWORKS)
def net(request):
    return request.param()


def test_every_way_to_run_gives_the_same_map_of_the_images_size(net):
    x = net.example(3)
    with torch.no_grad():
        expected = {stitch_id: net(x, stitch_id=stitch_id) for stitch_id in net.stitch_ids}
        assert {tuple(out.shape) for out in expected.values()} == {(3, CLASSES, *x.shape[2:])}
        for stitch_id, out in net.forward_each(x):
            assert torch.equal(out, expected[stitch_id]), stitch_id
        ids = [net.stitch_ids[-1], *net.stitch_ids[:2]]
        for row, (stitch_id, out) in enumerate(zip(ids, net(x, stitch_id=ids), strict=True)):
            assert torch.allclose(out, expected[stitch_id][row], atol=1e-4)
        for stitch_id in net.stitch_ids[::4]:
            small = net.extract(stitch_id)
            assert torch.equal(small(x), expected[stitch_id])
            row = net.stitch_table()[net.stitch_ids.index(stitch_id)]
            assert sum(p.numel() for p in small.parameters()) == row["params"]


def test_the_output_is_the_head_on_the_pyramid(net):
    head, x = net.head, net.example(2)
    levels = head.levels_used(False) if hasattr(head, "levels_used") else range(net.num_levels)
    if getattr(head, "uses_prefix_tokens", False):
        pytest.skip("the pyramid gives maps without tokens")
    pyramid = timm_stitch.families.timm_models.pyramid.Pyramid(net.network, net.ends, net.channels).eval()
    pyramid.load_state_dict({k: v for k, v in net.state_dict().items() if not k.startswith("head.")})
    with torch.no_grad():
        for stitch_id in net.stitch_ids[::3]:
            maps = pyramid(x, stitch_id=stitch_id)
            out = F.interpolate(head([maps[level] for level in levels]), x.shape[2:], mode="bilinear")
            assert torch.equal(net(x, stitch_id=stitch_id), out)


def test_creating_one_draws_no_more_random_numbers_than_its_own_parameters_need():
    network = timm_stitch.stitch(vits())
    torch.manual_seed(0)
    net = timm_stitch.dense(network, "linear", CLASSES)
    drawn = torch.get_rng_state()
    pyramid = network.pyramid()
    torch.manual_seed(0)
    again = [LinearHead(pyramid.channels, pyramid.reductions, CLASSES), network.pyramid().projections]
    assert torch.equal(drawn, torch.get_rng_state())
    for module, own in zip(again, (net.head, net.projections), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(module.parameters(), own.parameters(), strict=True))
    assert len(list(net.projections.parameters()))


def test_the_linear_head_equals_one_convolution_of_all_resized_maps_and_costs_less():
    torch.manual_seed(0)
    head = LinearHead([8, 16, 16], [4, 8, 8], CLASSES)
    maps = [torch.randn(2, 8, 12, 20), torch.randn(2, 16, 6, 10), torch.randn(2, 16, 6, 10)]
    resized = [F.interpolate(norm(x), (12, 20), mode="bilinear") for norm, x in zip(head.norms, maps, strict=True)]
    assert_close(head(maps), head.classifier(torch.cat(resized, 1)), rtol=0, atol=1e-5)
    counts = []
    for sizes in ((12, 6, 6), (12, 12, 12)):
        with Macs() as counter:
            head([torch.empty(1, *x.shape[1:2], size, size) for x, size in zip(maps, sizes, strict=True)])
        counts.append(counter.total)
    assert counts == [144 * 8 * CLASSES + 2 * 36 * 16 * CLASSES, 144 * 40 * CLASSES]


def test_costs_name_the_head_and_the_projections_and_add_up(net):
    costs, rows = net.costs(), net.stitch_table()
    (head_macs,) = {row["head_macs"] for row in rows}
    assert head_macs > 0
    for stitch, row in zip(net.plan, rows, strict=True):
        assert row["macs"] == costs.path(stitch).macs + row["projection_macs"] + head_macs
    largest = rows[net.stitch_ids.index(net.plan.anchor_id(len(net.plan.anchors) - 1))]
    assert largest["projection_macs"] == 0


def test_costs_are_counted_at_the_size_given():
    net = dense(lambda: vits(dynamic_img_size=True))
    small, large = net.stitch_table()[0], net.stitch_table(image_size=(64, 64))[0]
    assert large["head_macs"] == 4 * small["head_macs"]
    assert large["macs"] > 4 * small["macs"]


def test_saved_networks_load_whole_and_by_stitch(net, tmp_path):
    if not net.settings.head:
        with pytest.raises(ValueError, match="a head of your own cannot be built again"):
            timm_stitch.save_pretrained(net, tmp_path / "net")
        assert not (tmp_path / "net").exists()
        return
    net.set_stitch(2)
    timm_stitch.save_pretrained(net, tmp_path / "net", label_names=[f"class {n}" for n in range(CLASSES)])
    again, x = timm_stitch.from_hub(tmp_path / "net").eval(), net.example(2)
    assert (type(again), again.settings.head, again.label_names[1]) == (type(net), net.settings.head, "class 1")
    with torch.no_grad():
        for stitch_id in net.stitch_ids[::4]:
            expected = net(x, stitch_id=stitch_id)
            assert torch.allclose(again(x, stitch_id=stitch_id), expected, atol=1e-6)
            small = timm_stitch.from_hub(tmp_path / "net", extract=stitch_id).eval()
            assert torch.allclose(small(x), expected, atol=1e-6)


def test_depth_is_in_metres_within_its_range():
    net = timm_stitch.dense(timm_stitch.stitch(vits()), "linear", task="depth", min_depth=0.5, max_depth=4.0).eval()
    with torch.no_grad():
        depth = net(100 * net.example(2))
    assert depth.shape == (2, 1, 32, 32)
    assert 0.5 <= depth.min() < depth.max() <= 4.0


def test_gradients_reach_what_the_stitch_uses_and_no_more(net):
    net.train()
    for stitch_id in net.stitch_ids[::4]:
        net.zero_grad(set_to_none=True)
        net(net.example(2), stitch_id=stitch_id).square().mean().backward()
        reached = {name for name, p in net.named_parameters() if p.grad is not None}
        assert reached <= {name for name, _ in net.extract(stitch_id).named_parameters()}
        assert any(name.startswith("head.") for name in reached)


def test_windows_cover_an_image_and_end_at_its_border():
    for height, width, crop, stride in [(512, 640, 512, 341), (100, 130, 64, 40), (40, 30, 64, 64), (64, 64, 64, 21)]:
        seen = torch.zeros(height, width)
        for rows, columns in windows(height, width, crop, stride):
            seen[rows, columns] += 1
            assert rows.stop - rows.start == min(crop, height)
            assert columns.stop - columns.start == min(crop, width)
        assert seen.min() >= 1
    assert len(windows(512, 640, 512, 341)) == 2
    assert len(windows(512, 512, 512, 341)) == 1


def test_sliding_windows_average_where_they_overlap_and_a_mirrored_image_is_mirrored_back():
    net = dense()
    x = torch.randn(1, 3, 32, 48)
    with torch.no_grad():
        left, right = net(x[..., :32], stitch_id=3), net(x[..., 16:], stitch_id=3)
        expected = torch.cat([left[..., :16], (left[..., 16:] + right[..., :16]) / 2, right[..., 16:]], dim=-1)
        image = x[..., :32]
        both = (net(image) + net(image.flip(-1)).flip(-1)) / 2
    assert torch.allclose(net.predict(x, stitch_id=3, mode="slide", crop=32, stride=16), expected, atol=1e-5)
    assert torch.allclose(net.predict(image, flip=True), both, atol=1e-5)
    net.inference = net.inference.changed(mode="slide", crop=32, stride=16)
    assert torch.allclose(net.predict(x, stitch_id=3), expected, atol=1e-5)


def test_the_way_to_predict_is_saved(tmp_path):
    net = dense()
    net.inference = net.inference.changed(mode="slide", crop=32, stride=16, flip=True)
    timm_stitch.save_pretrained(net, tmp_path / "net")
    assert timm_stitch.from_hub(tmp_path / "net").inference == net.inference


def test_least_squares_of_projections_brings_the_small_anchors_map_to_the_large_ones():
    net = dense()
    x = torch.randn(100, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        before = (net(x, stitch_id=0) - net(x, stitch_id=1)).square().mean()
        residuals = timm_stitch.least_squares_init(net, x, layers="projections")
        after = (net(x, stitch_id=0) - net(x, stitch_id=1)).square().mean()
    assert len(residuals) == 4
    assert all(0 < residual < 1 for residual in residuals.values())
    assert after < before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"num_classes": None}, "num_classes is missing"),
        ({"num_classes": 1}, "num_classes must be 2 or more"),
        ({"num_classes": 10**9}, "num_classes must be from 1 to"),
        ({"head": "fcn"}, "head must be one of linear, setr, dpt"),
        ({"head": "dpt", "head_options": {"width": 3}}, "head 'dpt' does not take"),
        ({"head": "dpt", "head_options": {"readout": "add"}}, "readout must be"),
        ({"task": "normals"}, "task must be one of 'segmentation', 'depth'"),
        ({"task": "depth"}, "a depth network has one output"),
        ({"task": "depth", "num_classes": None, "max_depth": math.inf}, "min_depth must be positive and below"),
        ({"levels": 9}, "levels must be from 1 to 4"),
        ({"label_names": ["a"]}, "label_names has 1 names for 5 classes"),
    ],
)  # fmt: skip
def test_arguments_that_do_not_fit_are_refused_in_one_line(arguments, words):
    with pytest.raises(ValueError, match=words) as caught:
        timm_stitch.dense(timm_stitch.stitch(vits()), **{"head": "linear", "num_classes": CLASSES} | arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("out", [lambda maps: maps[-1], lambda maps: maps[-1].flatten(2), lambda maps: None])
def test_a_head_that_gives_something_else_is_refused_in_one_line(out):
    class Wrong(nn.Module):
        def forward(self, maps):
            return out(maps)

    net = timm_stitch.dense(timm_stitch.stitch(vits()), lambda channels, reductions: Wrong(), CLASSES).eval()
    with pytest.raises(ValueError, match=r"the head must give \(B, 5, H, W\)"):
        net(net.example(1))


@pytest.mark.parametrize("model", [nn.Linear(2, 2), "vit_tiny_patch16_224", [], None])
def test_what_is_no_network_is_refused_in_one_line(model):
    with pytest.raises(TypeError, match="dense needs a stitchable network of timm's models"):
        timm_stitch.dense(model, "linear", CLASSES)


def test_settings_of_a_stranger_are_refused_in_one_line(tmp_path):
    timm_stitch.save_pretrained(dense(), tmp_path / "net")
    path = tmp_path / "net/config.json"
    config = json.loads(path.read_text())
    for change in (
        {"channels": [10**9] * 4}, {"ends": [[1, 2, 3, 99]] * 2}, {"ends": [[4, 3, 2, 1]] * 2},
        {"ends": [[1, 2, 3, 4]]},
        {"head": "os.system"}, {"head_options": {"features": 10**12}}, {"num_classes": -1}, {"inference": {"crop": -1}},
        {"inference": {"mode": "slide"}}, {"max_depth": "10"}, {"label_names": 7}, {"task": None}, {"more": 1},
    ):  # fmt: skip
        path.write_text(json.dumps({**config, "dense": config["dense"] | change}))
        with pytest.raises(ValueError, match=r"config.json|levels|head|num_classes|crop|depth|slide|task") as caught:
            timm_stitch.from_hub(tmp_path / "net", verify=False)
        assert "\n" not in str(caught.value), change


def test_an_extracted_stitch_holds_nothing_that_only_training_uses():
    net, x = dense(head="setr"), torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = net(x, stitch_id=0)
        small = net.extract(0)
        assert torch.equal(small(x), expected)
    assert len(net.head.auxiliary_heads) == 3
    assert not [name for name, _ in small.named_parameters() if "auxiliary" in name]
    assert list(small.projections._modules) == ["0"]
    assert list(small.projections[0]._modules) == ["3"]
    assert sum(p.numel() for p in small.parameters()) == net.stitch_table()[0]["params"]
    net.train()
    assert len(net(x, stitch_id=0).auxiliary) == 3
