"""A dense network through the functions that take any network: costs, choice, saving, cards and export."""

from __future__ import annotations

import copy
import json
import pickle

import pytest
import timm
import tiny
import torch
from torch import nn

import timm_stitch
from timm_stitch.cli.entry import main

LABELS = ["sky", "road", "tree", "house", "car"]


def segmentation():
    torch.manual_seed(0)
    return timm_stitch.dense(tiny.vits(), head="linear", num_classes=5, label_names=LABELS).eval()


def depth():
    torch.manual_seed(0)
    return timm_stitch.dense(tiny.on_64_pixels("vit", "vit with registers"), head="linear", task="depth").eval()


@pytest.fixture(params=[segmentation, depth], ids=["segmentation", "depth"])
def net(request):
    return request.param()


@pytest.fixture
def x(net):
    return tiny.images(2, net.image_size[0])


def scored(net):
    """Rows of a score, in the order of their ids."""
    score = "miou" if net.task == "segmentation" else "delta1"
    return score, [{"stitch_id": k, score: 10.0 + k} for k in net.stitch_ids]


# ── features that a dense network lacks ───────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda net, x: timm_stitch.profile(net, quick=True), "leave it out for a dense network"),
        (lambda net, x: timm_stitch.linear_probe(net, [(x, torch.zeros(2).long())]), "train the dense network"),
        (lambda net, x: timm_stitch.Cascade(net, 0, 1, 0.5), "choose a stitch by select"),
        (lambda net, x: timm_stitch.find_cascade(net, [(x, torch.zeros(2).long())], 1e9), "choose a stitch by select"),
    ],
)
def test_what_it_lacks_is_refused_in_one_sentence(net, x, call, match):
    with pytest.raises(ValueError, match=match) as error:
        call(net, x)
    assert "\n" not in str(error.value)


def test_methods_of_classifiers_say_what_to_do_instead(net):
    for name in ("reset_classifier", "forward_features", "set_input_size", "pyramid"):
        assert not hasattr(net, name)
        with pytest.raises(AttributeError, match=rf"no attribute '{name}': .*\w"):
            getattr(net, name)


# ── features that it has ──────────────────────────────────────────────────────────────────────────────


def test_rows_of_its_metric_choose_stitches_and_hold_a_latency_target(net):
    score, rows = scored(net)
    costs = {row["stitch_id"]: row["macs"] for row in net.stitch_table()}
    budget = sorted(costs.values())[len(costs) // 2]
    best = max(k for k in costs if costs[k] <= budget)
    assert timm_stitch.select(net, rows, macs=budget) == best
    net.results.add(rows)
    net.set_budget(macs=budget)
    assert net.stitch_id == best
    timed = [{**row, "latency_ms": 1.0 + row["stitch_id"]} for row in rows]
    controller = timm_stitch.LatencyController(net, target_ms=4.5, rows=timed)
    assert (controller.table.score, controller.stitch_id) == (score, 3)


def test_errors_of_depth_rank_the_lowest_first():
    rows = [{"stitch_id": k, "abs_rel": 0.3 - 0.1 * k, "latency_ms": 1.0 + k} for k in range(3)]
    rows.append({"stitch_id": 3, "abs_rel": 0.9, "latency_ms": 9.0})
    table = timm_stitch.LatencyController(lambda x, stitch_id: x, 10, rows=rows).table
    assert table.stitch_ids == [0, 1, 2]


@torch.no_grad()
def test_copies_replicas_precisions_and_compiled_blocks_give_the_same(net, x):
    expected = net(x, stitch_id=2)
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net)), nn.DataParallel(net).module):
        assert torch.equal(other(x, stitch_id=2), expected)
    replica = net._replicate_for_data_parallel()
    assert type(replica.executor).__name__ == "PyramidExecutor"
    assert copy.deepcopy(net).bfloat16()(x.bfloat16(), stitch_id=2).dtype == torch.bfloat16
    compiled = copy.deepcopy(net)
    compiled.compile(backend="eager")
    assert torch.allclose(compiled(x, stitch_id=2), expected, atol=1e-5)


@torch.no_grad()
def test_an_extracted_stitch_compiles_and_exports_for_any_number_of_images(net, x):
    small = net.extract(3)
    expected = net(x, stitch_id=3)
    assert torch.allclose(torch.compile(small, backend="eager", fullgraph=True)(x), expected, atol=1e-5)
    program = torch.export.export(net.extract(3), (x,), dynamic_shapes=({0: torch.export.Dim("batch")},)).module()
    assert torch.allclose(program(torch.cat([x, x]))[2:], expected, atol=1e-5)


def test_stitch_hooks_count_images(net, x):
    seen = []
    handle = net.register_stitch_hook(lambda network, stitch_id, images: seen.append((stitch_id, images)))
    with torch.no_grad():
        net(x, stitch_id=2)
        net(x, stitch_id=[0, 1])
        net.predict(x, stitch_id=1)
    handle.remove()
    assert seen == [(2, 2), (0, 1), (1, 1), (1, 2)]


def test_batch_norms_are_recalibrated(tmp_path):
    net = timm_stitch.dense(tiny.resnets(), head="linear", num_classes=3)
    x = tiny.images(4, 64)
    statistics = timm_stitch.recalibrate(net, [(x, torch.zeros(4, 64, 64).long())], stitch_id=0)
    assert statistics
    assert all(name.startswith("network.anchors.0.") for name in statistics)
    net.load_state_dict(statistics, strict=False)


# ── saving and the card ───────────────────────────────────────────────────────────────────────────────


def test_the_card_has_the_task_the_score_and_a_snippet_that_works(net, x, tmp_path, monkeypatch):
    score, rows = scored(net)
    folder = timm_stitch.save_pretrained(net, tmp_path / "net", results=rows, repo_id="acme/net")
    card = (folder / "README.md").read_text()
    task = {"segmentation": "image-segmentation", "depth": "depth-estimation"}[net.task]
    assert f"pipeline_tag: {task}" in card
    assert "- transformers" not in card
    assert {"miou": "mean IoU, %", "delta1": "depths within"}[score] in card
    assert ("Classes: sky, road, tree, house, car." in card) == (net.task == "segmentation")
    snippet = card.split("```python\n")[1].split("```")[0]
    namespace = {"x": x}
    exec(snippet.replace('"acme/net"', repr(str(folder))), namespace)
    with torch.no_grad():
        assert torch.equal(namespace["out"], net(x, stitch_id=namespace["small"].stitch_id))
    assert namespace.get("masks", namespace.get("metres")).shape[0] == 2


def test_a_head_of_the_users_own_is_refused_when_saved(tmp_path):
    def make(channels, reductions):
        return nn.Sequential(Last(), nn.Conv2d(channels[-1], 4, 1))

    class Last(nn.Module):
        def forward(self, maps):
            return maps[-1]

    net = timm_stitch.dense(tiny.vits(), head=make, num_classes=4)
    with pytest.raises(ValueError, match=r"a head of your own .* torch\.save"):
        timm_stitch.save_pretrained(net, tmp_path / "net")
    assert not list(tmp_path.iterdir()) or not list((tmp_path / "net").iterdir())


def test_names_of_classes_that_are_given_when_saved_are_loaded(tmp_path):
    net = timm_stitch.dense(tiny.vits(), head="linear", num_classes=5)
    timm_stitch.save_pretrained(net, tmp_path / "net", label_names=LABELS)
    assert list(timm_stitch.from_hub(tmp_path / "net").label_names) == LABELS


def test_timms_own_call_loads_a_saved_one(net, x, tmp_path):
    timm_stitch.save_pretrained(net, tmp_path / "net")
    loaded = timm.create_model(f"local-dir:{tmp_path / 'net'}", pretrained=True, stitch_id=3)
    assert type(loaded) is type(net)
    assert torch.equal(loaded(x), net(x, stitch_id=3))
    with pytest.raises(ValueError, match=r"take no num_classes"):
        timm.create_model(f"local-dir:{tmp_path / 'net'}", num_classes=3)
    with pytest.raises(ValueError, match=r"timm_stitch\.dense"):
        timm.create_model("dense_snnet")


def test_the_name_of_saved_ones_is_no_network_in_a_strangers_file(net, tmp_path):
    timm_stitch.save_pretrained(net, tmp_path / "net")
    file = tmp_path / "net/config.json"
    config = json.loads(file.read_text())
    for broken in ({k: v for k, v in config.items() if k != "family"},
                   {**config, "network": {**config["network"], "architecture": "dense_snnet"}}):  # fmt: skip
        file.write_text(json.dumps(broken))
        with pytest.raises(ValueError, match=r"'dense_snnet', which is not a stitchable network here"):
            timm_stitch.from_hub(tmp_path / "net")


# ── export ────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("format", ["program", "onnx"])
def test_exported_maps_equal_torchs_and_the_manifest_says_what_they_are(net, x, format, tmp_path):
    if format == "onnx":
        pytest.importorskip("onnxruntime")
        pytest.importorskip("onnxscript")
    ids = [0, 3] if format == "program" else [3]
    manifest = timm_stitch.export(net, tmp_path / "files", ids, format=format)
    height, width = net.image_size
    assert manifest["task"] == net.task
    assert manifest["output"]["name"] == ("depth" if net.task == "depth" else "logits")
    assert manifest["output"]["shape"] == ["batch", net.num_classes, height, width]
    assert manifest["labels"] == ([] if net.task == "depth" else LABELS)
    assert manifest["preprocessing"]["crop_mode"] == "squash"
    assert json.loads((tmp_path / "files" / "manifest.json").read_text()) == manifest
    assert all(row["max_difference"] < 1e-4 for row in manifest["stitches"])


def test_networks_of_any_image_size_are_exported_at_another(tmp_path):
    net = timm_stitch.dense(tiny.resnets(), head="linear", num_classes=3).eval()
    manifest = timm_stitch.export(net, tmp_path / "files", 0, format="program", image_size=(64, 96))
    assert manifest["output"]["shape"] == ["batch", 3, 64, 96]
    assert net.image_size == (224, 224)


def test_one_stitch_in_a_file_of_its_own_loads_again(net, x, tmp_path):
    folder = timm_stitch.save_pretrained(net, tmp_path / "net")
    file = tmp_path / "3.safetensors"
    assert main(["extract", str(folder), "--stitch-id", "3", "--output", str(file)]) == 0
    with torch.no_grad():
        assert torch.equal(timm_stitch.from_hub(file)(x), net(x, stitch_id=3))


@pytest.mark.filterwarnings("ignore")
def test_anchors_with_biases_of_relative_positions_are_exported_to_onnx(tmp_path):
    pytest.importorskip("onnxscript")
    sizes = {"img_size": 64, "depth": 2, "num_heads": 2, "use_abs_pos_emb": True, "use_rel_pos_bias": True}
    torch.manual_seed(0)
    anchors = [timm.create_model("beit_base_patch16_224", embed_dim=width, **sizes) for width in (16, 32)]
    net = timm_stitch.dense(timm_stitch.stitch(anchors), "setr", 3).eval()
    manifest = timm_stitch.export(net, tmp_path / "onnx", [0, 2])
    assert all(row["max_difference"] < 1e-4 for row in manifest["stitches"])
    fused = [module.fused_attn for module in net.modules() if hasattr(module, "fused_attn")]
    assert all(fused)  # the network itself stays as it was
