"""Networks of convolutions, maps and windows as exported files: PyTorch's outputs, each weight once."""

import pytest
import torch
from exports import OLD, images, run_onnx, run_program, settle, union_bytes
from tiny import convnexts, resnets, swins

import timm_stitch


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Unable to find the path of the module")  # torch 2.6
@pytest.mark.parametrize("format", ["onnx", "program"])
@pytest.mark.parametrize(("anchors", "px"), [(resnets, 64), (convnexts, 64), (swins, 56)])
def test_files_of_each_layout_give_the_outputs_of_pytorch_and_hold_each_weight_once(anchors, px, format, tmp_path):
    if OLD and (anchors, format) == (resnets, "onnx"):
        pytest.skip(OLD)
    torch.manual_seed(0)
    net = settle(timm_stitch.stitch(anchors())).eval()
    ids = [next(k for k in net.stitch_ids if not net.plan[k].is_anchor), net.plan.anchor_id(1)]
    manifest = timm_stitch.export(net, tmp_path / "deploy", ids, format=format, image_size=px)
    assert manifest["input"]["shape"] == ["batch", 3, px, px]
    assert (tmp_path / "deploy" / f"weights.{'bin' if format == 'onnx' else 'safetensors'}").stat().st_size <= (
        1.05 * union_bytes(net, ids)
    )
    for row in manifest["stitches"]:
        path = tmp_path / "deploy" / row["file"]
        with torch.inference_mode():
            theirs = run_onnx(path, images(5, px)) if format == "onnx" else run_program(path, images(5, px))
            torch.testing.assert_close(theirs, net(images(5, px), row["stitch_id"]), atol=1e-4, rtol=0)
