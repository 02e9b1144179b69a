"""The pyramid: maps of one form for every stitch, from the places that its rule names."""

import copy
import pickle

import pytest
import torch
from tiny import convnexts, deits, on_64_pixels, resnets, swins, vits

import timm_stitch
from timm_stitch.plan.levels import tap_places


def of_two_depths():
    torch.manual_seed(0)
    return [*vits(depth=4)[:1], *vits(depth=6)[1:]]


NETWORKS = {
    "deits": deits,
    "vits of two depths": of_two_depths,
    "resnets": resnets,
    "convnexts": convnexts,
    "swins": swins,
    "a resnet and a swin": lambda: on_64_pixels("resnet", "swin"),
}


@pytest.fixture(params=NETWORKS.values(), ids=NETWORKS)
def network(request):
    return timm_stitch.stitch(request.param()).eval()


def outputs(pyramid, x):
    with torch.no_grad():
        return {stitch_id: pyramid(x, stitch_id=stitch_id) for stitch_id in pyramid.stitch_ids}


def test_maps_have_one_form_for_all_stitches(network):
    pyramid = network.pyramid(2).eval()
    x = network.example(1)
    forms = {tuple(tuple(level.shape) for level in maps) for maps in outputs(pyramid, x).values()}
    (shapes,) = forms
    info = pyramid.feature_info
    assert [shape[1] for shape in shapes] == info.channels() == pyramid.channels
    assert [-(-x.shape[-1] // reduction) for reduction in info.reduction()] == [shape[-1] for shape in shapes]


def test_maps_that_need_no_projection_are_those_of_the_network_itself(network):
    pyramid = network.pyramid(2).eval()
    x = network.example(1)
    largest = network.plan.anchor_id(len(network.plan.anchors) - 1)
    with torch.no_grad():
        points = network.forward_intermediates(x, stitch_id=largest, intermediates_only=True)
        expected = {tuple(h.shape): h for h in points}  # of equal shapes the last
        last = pyramid(x, stitch_id=largest)[-1]
    assert torch.equal(last, expected[tuple(last.shape)])


def test_maps_are_taken_at_the_places_of_the_rule():
    network = timm_stitch.stitch(of_two_depths()).eval()
    pyramid = network.pyramid(3, channels=24).eval()  # so every map has a projection
    x = network.example(2)
    for stitch in network.plan:
        with torch.no_grad():
            maps = pyramid(x, stitch_id=stitch.stitch_id)
            h, inputs = None, network.prepare_inputs(x, [stitch])
            for n, place in enumerate(stitch.places, 1):
                h = network.executor.step(stitch, n - 1, h, inputs)
                for level, at in enumerate(tap_places(stitch, pyramid.ends)):
                    if at == n:
                        anchor, boundary = place
                        mapped = pyramid.projections[anchor][level](h)
                        assert torch.allclose(maps[level], network.views[anchor].as_map(mapped, x.shape[2:], boundary))


def test_every_way_to_run_gives_the_same(network):
    pyramid = network.pyramid(2).eval()
    x = network.example(3)
    expected = outputs(pyramid, x)
    with torch.no_grad():
        for stitch_id, maps in pyramid.forward_each(x):
            assert all(map(torch.equal, maps, expected[stitch_id])), stitch_id
        ids = [*network.stitch_ids[-1:], *network.stitch_ids[:2]]
        for level, rows in enumerate(pyramid(x, stitch_id=ids)):
            for row, stitch_id in enumerate(ids):
                assert torch.allclose(rows[row], expected[stitch_id][level][row], atol=1e-4)
        for stitch_id in ids:
            pyramid.set_stitch(stitch_id)
            assert all(map(torch.equal, pyramid(x), expected[stitch_id]))


def test_an_extracted_stitch_equals_the_whole_and_holds_what_its_row_says(network):
    pyramid = network.pyramid(2).eval()
    x = network.example(1)
    expected, rows = outputs(pyramid, x), {row["stitch_id"]: row for row in pyramid.stitch_table()}
    for stitch_id in network.stitch_ids:
        small = pyramid.extract(stitch_id)
        assert all(map(torch.equal, small(x), expected[stitch_id]))
        assert sum(p.numel() for p in small.parameters()) == rows[stitch_id]["params"]
        assert small.stitch_table()[0]["macs"] == rows[stitch_id]["macs"]
        assert small.state_dict().keys() <= pyramid.state_dict().keys()


def test_gradients_reach_what_the_stitch_uses_and_no_more(network):
    pyramid = network.pyramid(2)
    for stitch_id in network.stitch_ids[::3]:
        pyramid.zero_grad(set_to_none=True)
        sum(level.square().mean() for level in pyramid(network.example(2), stitch_id=stitch_id)).backward()
        reached = {name for name, p in pyramid.named_parameters() if p.grad is not None}
        assert reached <= {name for name, _ in pyramid.extract(stitch_id).named_parameters()}
        assert any(name.startswith("network.anchors") for name in reached)
        assert all(torch.isfinite(p.grad).all() for p in pyramid.parameters() if p.grad is not None)


def test_least_squares_fits_projections_to_the_wider_anchor_and_keeps_stitching_layers():
    network = timm_stitch.stitch(vits()).eval()
    pyramid = network.pyramid(2).eval()
    layers = copy.deepcopy(network.stitching_layers.state_dict())
    x = torch.randn(100, 3, 32, 32, generator=torch.Generator().manual_seed(1))

    def error():
        with torch.no_grad():
            return sum(float((a - b).square().mean()) for a, b in zip(pyramid(x, 0), pyramid(x, 1), strict=True))

    before = error()
    residuals = timm_stitch.least_squares_init(pyramid, x, layers="projections")
    assert list(residuals) == ["projections.0.0", "projections.0.1"]
    assert error() < 0.9 * before
    assert all(torch.equal(layers[k], v) for k, v in network.stitching_layers.state_dict().items())
    assert 0 in timm_stitch.least_squares_init(pyramid, x)
    assert not all(torch.equal(layers[k], v) for k, v in network.stitching_layers.state_dict().items())


def test_a_pyramid_shares_weights_with_its_network_and_survives_copies_and_files(tmp_path):
    network = timm_stitch.stitch(vits()).eval()
    pyramid = network.pyramid().eval()
    x = network.example(1)
    with torch.no_grad():
        network.anchors[0].blocks[0].mlp.fc1.weight.add_(0.1)
    expected = outputs(pyramid, x)
    for twin in (copy.deepcopy(pyramid), pickle.loads(pickle.dumps(pyramid))):
        assert all(all(map(torch.equal, maps, expected[i])) for i, maps in outputs(twin, x).items())
    torch.save(pyramid.state_dict(), tmp_path / "pyramid.pt")
    other = timm_stitch.stitch(vits()).pyramid().eval()
    other.load_state_dict(torch.load(tmp_path / "pyramid.pt", weights_only=True))
    assert all(all(map(torch.equal, maps, expected[i])) for i, maps in outputs(other, x).items())


def test_tied_projections_are_stitching_layers_of_the_plan():
    network = timm_stitch.stitch(vits(), kernel_size=1, direction="two_way").eval()
    pyramid = network.pyramid(((1, 3), (1, 3)), tie=True).eval()
    assert pyramid.tied
    assert all(network.plan.layers[n].front == anchor for (anchor, _), n in pyramid.tied.items())
    x = network.example(1)
    for key, number in pyramid.tied.items():
        assert pyramid.projection(*key) is network.stitching_layers[number]
    expected = outputs(pyramid, x)
    for row in pyramid.stitch_table():
        small = pyramid.extract(row["stitch_id"])
        assert all(map(torch.equal, small(x), expected[row["stitch_id"]]))
        assert sum(p.numel() for p in small.parameters()) == row["params"]


def test_costs_follow_the_image_size_and_stop_at_the_last_level():
    network = timm_stitch.stitch(vits(dynamic_img_size=True)).eval()
    pyramid = network.pyramid((1,)).eval()
    costs, whole = pyramid.costs(), network.costs()
    anchor = network.plan[network.plan.anchor_id(1)]
    assert costs.cost(anchor).macs == whole.anchors[1].stem.macs + sum(b.macs for b in whole.anchors[1].blocks[:2])
    assert pyramid.costs((64, 64)).cost(anchor).macs > 3.9 * costs.cost(anchor).macs


@pytest.mark.parametrize("channels", [0, (8,), "wide"])
def test_channels_that_do_not_fit_are_refused_in_one_line(channels):
    with pytest.raises(ValueError, match="channels must be a positive number, or one for each of 2 levels") as caught:
        timm_stitch.stitch(vits()).pyramid(2, channels=channels)
    assert "\n" not in str(caught.value)
