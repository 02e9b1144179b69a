"""Exported files of OpenVINO: equal logits at every batch size, one file of weights."""

import pytest
import torch
from exports import IDS, images, union_bytes
from tiny import deits

import timm_stitch

openvino = pytest.importorskip("openvino")


def run(folder, stitch_id, x):
    core = openvino.Core()
    graph = core.read_model(folder / f"stitch-{stitch_id}.xml", folder / "weights.bin")
    compiled = core.compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return torch.from_numpy(compiled.create_infer_request().infer({"images": x.numpy()})["logits"].copy())


def test_openvino_files_give_the_logits_of_torch_and_hold_each_weight_once(tmp_path):
    model = timm_stitch.stitch(deits()).eval()
    manifest = timm_stitch.export(model, tmp_path / "out", IDS, format="openvino")
    assert manifest["batch"] == {"smallest": 1, "largest": None}
    assert [row["file"] for row in manifest["stitches"]] == [f"stitch-{k}.xml" for k in IDS]
    assert all(row["max_difference"] < 1e-4 for row in manifest["stitches"])
    for stitch_id in IDS:
        for count in (1, 5):
            with torch.inference_mode():
                expected = model(images(count), stitch_id=stitch_id)
            torch.testing.assert_close(run(tmp_path / "out", stitch_id, images(count)), expected, atol=1e-5, rtol=0)
    assert (tmp_path / "out" / "weights.bin").stat().st_size < 1.1 * union_bytes(model, IDS)
    assert str(tmp_path) not in (tmp_path / "out" / "stitch-3.xml").read_text()


def test_openvino_files_take_a_fixed_batch_size_and_no_quantisation(tmp_path):
    model = timm_stitch.stitch(deits()).eval()
    manifest = timm_stitch.export(model, tmp_path / "out", 3, format="openvino", batch_size=2)
    assert manifest["input"]["shape"] == [2, 3, 32, 32]
    assert run(tmp_path / "out", 3, images(2)).shape == (2, 10)
    with pytest.raises(ValueError, match="quantize='int8' does not fit format='openvino': expected None"):
        timm_stitch.export(model, tmp_path / "more", 3, format="openvino", quantize="int8", images=images(2))
