"""Fewer bits in exported ONNX files: what is made smaller, and that what it changes is measured."""

import onnx
import pytest
import torch
from exports import OLD, images, run_onnx, settle, size, union_bytes
from tiny import deits, resnets

import timm_stitch

IDS = [3, 4]  # which share most of their weights


@pytest.fixture(scope="module")
def net():
    return timm_stitch.stitch(deits(depth=3)).eval()


def test_int8_reports_what_it_changes(tmp_path):
    net, ids = timm_stitch.stitch(deits()).eval(), [3, 5, 20]  # large enough for graphs not to count
    x = images(48)
    manifest = timm_stitch.export(net, tmp_path / "deploy", ids, quantize="int8", images=x)
    assert manifest["precision"] == "int8"
    assert manifest["bytes"] == size(tmp_path / "deploy") < 0.4 * union_bytes(net, ids)
    for row in manifest["stitches"]:
        theirs = torch.cat([run_onnx(tmp_path / "deploy" / row["file"], part) for part in x.split(32)])
        with torch.inference_mode():
            ours = net(x, row["stitch_id"])
        assert row["agreement"] == pytest.approx((theirs.argmax(1) == ours.argmax(1)).double().mean().item())
        assert row["max_difference"] == pytest.approx((theirs - ours).abs().max().item(), rel=1e-4)
        assert 1e-4 < row["max_difference"] < 0.3 * ours.abs().max()
        assert row["compared_images"] == 48


@pytest.mark.skipif(bool(OLD), reason=OLD)
def test_int8_of_convolutions_takes_the_ranges_of_the_images(tmp_path):
    torch.manual_seed(0)
    net, x = settle(timm_stitch.stitch(resnets())).eval(), images(20, 64)
    ids = [3]
    manifest = timm_stitch.export(net, tmp_path / "deploy", ids, quantize="int8", images=x, image_size=64)
    assert manifest["bytes"] < 0.35 * union_bytes(net, ids)
    for row in manifest["stitches"]:
        path = tmp_path / "deploy" / row["file"]
        kinds = {node.op_type for node in onnx.load(path, load_external_data=False).graph.node}
        assert {"QuantizeLinear", "DequantizeLinear"} <= kinds
        with torch.inference_mode():
            theirs, ours = run_onnx(path, x), net(x, row["stitch_id"])
        assert row["max_difference"] == pytest.approx((theirs - ours).abs().max().item(), rel=1e-3)
        assert row["max_difference"] < 0.05 * (ours.max() - ours.min())  # 0.02; with ranges of no images 0.17


@pytest.mark.skipif(bool(OLD), reason=OLD)
def test_stitches_share_8_bit_weights_of_channels_that_have_next_to_none(tmp_path):
    torch.manual_seed(0)
    net, x = settle(timm_stitch.stitch(resnets())).eval(), images(20, 64)
    for module in net.anchors.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.weight.data[0] *= 1e-9
    ids = [s.stitch_id for s in net.plan if not s.is_anchor][:2]
    manifest = timm_stitch.export(net, tmp_path / "deploy", ids, quantize="int8", images=x, image_size=64)
    locations = []
    for row in manifest["stitches"]:
        graph = onnx.load(tmp_path / "deploy" / row["file"], load_external_data=False).graph
        weights = [i for i in graph.initializer if i.data_type == onnx.TensorProto.INT8 and i.external_data]
        locations.append({i.name: {e.key: e.value for e in i.external_data}["offset"] for i in weights})
        assert row["max_difference"] < 0.05 * float((out := net(x, row["stitch_id"]).detach()).max() - out.min())
    both = {name for name in locations[0].keys() & locations[1].keys() if name.startswith("anchors")}
    assert len(both) > 8
    assert all(locations[0][name] == locations[1][name] for name in both)


@pytest.mark.filterwarnings("ignore:the float32 number")  # which onnxruntime's converter says of weights near zero
def test_float16_halves_the_weights(net, tmp_path):
    x = images(20)
    manifest = timm_stitch.export(net, tmp_path / "deploy", 5, quantize="float16", images=x)
    assert manifest["precision"] == "float16"
    assert manifest["bytes"] < 0.6 * union_bytes(net, [5])
    for row in manifest["stitches"]:
        with torch.inference_mode():
            ours = net(x, row["stitch_id"])
        theirs = run_onnx(tmp_path / "deploy" / row["file"], x)
        assert 0 < row["max_difference"] < 0.01 * float(ours.abs().max())
        torch.testing.assert_close(theirs, ours, atol=2 * row["max_difference"], rtol=0)


@pytest.mark.skipif(bool(OLD), reason=OLD)
def test_int8_is_refused_where_it_would_do_little(tmp_path, monkeypatch):
    monkeypatch.setattr("timm_stitch.deployment.formats.onnx_files.is_convolutional", lambda model: False)
    net = timm_stitch.stitch(resnets())
    with pytest.raises(ValueError, match="it quantises linear layers and convolutions, and most of this stitch is"):
        timm_stitch.export(net, tmp_path / "deploy", 1, quantize="int8", images=images(2, 64), image_size=64)
    assert not list(tmp_path.iterdir())
