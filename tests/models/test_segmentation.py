"""The authors' segmentation networks: names, costs, published figures, and their files read into small twins."""

import json
import sys
import types
from dataclasses import replace

import pytest
import timm
import torch
from golden_dense import FOLDER, NAMES
from safetensors.torch import load_file

import timm_stitch
from timm_stitch.models import published
from timm_stitch.models.segmentation_weights import is_segmentation

NAME = "snnetv2_setr_deit3_sl"
SIZE = 64


@pytest.fixture
def _small(monkeypatch):
    """Make the networks of small anchors of few blocks."""
    monkeypatch.setattr(published, "_BEIT", {"small": (16, 4, 2), "base": (20, 4, 2), "large": (24, 8, 4)})
    for name, network in published.SEGMENTATION.items():
        monkeypatch.setitem(published.SEGMENTATION, name, replace(network, levels=(1, 3, 5, 7)))


def make(name=NAME, **arguments):
    """A small network with weights that matter everywhere."""
    torch.manual_seed(0)
    network = timm.create_model(name, img_size=SIZE, **arguments).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(0.3 * torch.randn_like(parameter))
        for buffer_name, buffer in network.named_buffers():
            if "running" in buffer_name:
                buffer.copy_(1 + buffer.abs() * torch.rand_like(buffer))
    return network


def in_authors_layout(network, computed=True):
    """A network's weights as the authors' files name them, with a key bias of any value."""
    out = {}
    small_to_large = sum(spec.front == 0 for spec in network.plan.layers)
    for name, value in network.state_dict().items():
        parts = name.split(".")
        if name.startswith("network.anchors."):
            rest = ".".join(parts[3:])
            for ours, theirs in (
                ("patch_embed.proj", "patch_embed.projection"), ("blocks", "layers"), ("norm", "ln"),
                ("mlp.fc1", "ffn.layers.0.0"), ("mlp.fc2", "ffn.layers.1"),
            ):  # fmt: skip
                rest = rest.replace(ours, theirs)
            if rest.endswith("q_bias"):
                value = torch.cat([value, torch.randn_like(value), network.state_dict()[name.replace("q_b", "v_b")]])
                rest = rest.replace("q_bias", "qkv.bias")
            elif rest.endswith("v_bias"):
                continue
            elif rest == "pos_embed":
                value = value[:, 1:]
            out[f"backbone.anchors.{parts[2]}.{rest}"] = value
        elif name.startswith("network.stitching_layers."):
            number = int(parts[2])
            place = (0, number) if number < small_to_large else (1, number - small_to_large)
            out[f"backbone.stitch_layers.{place[0]}.{place[1]}.transform.{parts[3]}"] = value
        elif name.startswith("projections."):
            assert parts[1:3] == ["0", "3"]
            out[f"backbone.stitch_layers.0.{small_to_large}.transform.{parts[3]}"] = value
        else:
            rest = name.replace("head.decode", "decode_head").replace("head.auxiliary_heads", "auxiliary_head")
            for n in range(2):
                rest = rest.replace(f"steps.{n}.conv", f"up_convs.{n}.0.conv").replace(
                    f"steps.{n}.norm", f"up_convs.{n}.0.bn"
                )
            out[rest.replace("classifier", "conv_seg")] = value
    if computed:
        for anchor, model in enumerate(network.anchors):
            for n in range(len(model.blocks)):
                key = f"backbone.anchors.{anchor}.layers.{n}.attn.relative_position_index"
                out[key] = torch.zeros(17, 17, dtype=torch.long)
        return out
    return {key: value for key, value in out.items() if not key.endswith("num_batches_tracked")}


def without_class_position(network):
    """The authors' class token has no position."""
    with torch.no_grad():
        for anchor in network.anchors:
            anchor.pos_embed[:, 0] = 0
    return network


def outputs(network):
    x = torch.randn(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return dict(network.eval().forward_each(x))


def assert_equal(ours, expected):
    assert ours.keys() == expected.keys()
    assert all(torch.equal(ours[k], expected[k]) for k in expected)


def load(weights, tmp_path, name=NAME, **arguments):
    file = tmp_path / "authors.pth"
    torch.save(weights, file)
    arguments.setdefault("img_size", SIZE)
    return timm.create_model(name, pretrained=True, pretrained_cfg_overlay={"file": str(file)}, **arguments)


@pytest.mark.parametrize(
    ("name", "anchors", "classes"),
    [
        (f"{NAME}.ade20k", ["deit3_small_patch16_224", "deit3_large_patch16_224"], 150),
        (f"{NAME}.coco_stuff10k", ["deit3_small_patch16_224", "deit3_large_patch16_224"], 171),
        ("snnetv2_setr_deit3_bl.ade20k", ["deit3_base_patch16_224", "deit3_large_patch16_224"], 150),
        ("snnetv2_setr_deit3_bl.coco_stuff10k", ["deit3_base_patch16_224", "deit3_large_patch16_224"], 171),
    ],
)
def test_names_and_tags(name, anchors, classes):
    network = timm.create_model(name, device="meta")
    assert network.stitch_ids == tuple(k for k in range(135) if k != 13)
    assert network.plan.anchor_names == anchors
    assert (network.num_classes, network.image_size) == (classes, (512, 512))
    cfg = network.pretrained_cfg
    assert cfg["hf_hub_id"].startswith("ziplab/snnetv2_deit3_")
    assert cfg["mean"] == (0.485, 0.456, 0.406)
    assert timm.is_model_pretrained(name)
    assert (network.inference.mode, network.inference.crop, network.inference.stride) == ("slide", 512, 341)


def test_the_default_tag_is_ade20k():
    assert timm.create_model(NAME, device="meta").num_classes == 150
    assert {NAME, "snnetv2_setr_deit3_bl"} <= set(timm.list_models(module="snnet"))


def test_levels_are_the_authors():
    network = timm.create_model(NAME, device="meta")
    assert network.ends == ((5, 8, 10, 12), (10, 15, 20, 24))
    assert {key: network.plan.pairs(layer)[0][0] for key, layer in network.tied.items()} == {
        (0, 0): 5, (0, 1): 8, (0, 2): 10
    }  # fmt: skip
    assert network.projections[0][3].weight.shape == (1024, 384)


def test_the_authors_table_comes_with_the_package():
    rows = timm.create_model(f"{NAME}.ade20k", device="meta").stitch_table()
    card = published.published_table(NAME)["stitches"]
    assert len(rows) == len(card) == 134
    for row, known in zip(rows, card, strict=True):
        assert row["published_macs"] == known["published_macs"]
        assert [row[f"published_{metric}"] for metric in ("miou", "aacc", "macc")] == [
            known[metric] for metric in ("miou", "aacc", "macc")
        ]
        assert "miou" not in row  # these are not the authors' weights
    assert [(row["published_macs"], row["published_miou"]) for row in rows[:2]] == [
        (33522505728, 45.57), (363157291008, 51.35)
    ]  # fmt: skip


def test_budgets_walk_the_authors_frontier():
    network = timm.create_model(f"{NAME}.ade20k", device="meta")
    assert network.set_budget(macs=1e11).stitch_id == 91
    assert timm_stitch.select(network, macs=1e11) == 91
    with pytest.raises(ValueError, match="no stitch of this network has a known"):
        timm.create_model(f"{NAME}.coco_stuff10k", device="meta").set_budget(macs=1e11)


@pytest.mark.skipif(not FOLDER.is_dir(), reason=f"needs the golden figures: none in {FOLDER}")
@pytest.mark.parametrize("name", NAMES.values())
def test_multiply_adds_are_the_authors(name):
    network, _, tag = name.partition(".")
    expected = json.loads((FOLDER / "costs_512.json").read_text())[f"{tag}_{network[-2:]}"]
    rows = timm.create_model(name, device="meta").stitch_table()
    assert {str(row["stitch_id"]): row["published_macs"] for row in rows} == expected


@pytest.mark.usefixtures("_small")
@pytest.mark.parametrize("wrap", [dict, lambda weights: {"state_dict": weights, "meta": {"epoch": 1}}])
@pytest.mark.parametrize("computed", [True, False])
def test_files_of_the_authors_load(tmp_path, wrap, computed):
    network = without_class_position(make())
    loaded = load(wrap(in_authors_layout(network, computed)), tmp_path)
    assert_equal(outputs(loaded), outputs(network))


@pytest.mark.usefixtures("_small")
def test_low_rank_layers_are_read_and_that_of_the_projection_is_merged(tmp_path):
    network = without_class_position(make())
    weights = in_authors_layout(network)
    down, up = torch.randn(16, 16), torch.randn(24, 16)
    weights["backbone.stitch_layers.0.3.transform.lora_A"] = down
    weights["backbone.stitch_layers.0.3.transform.lora_B"] = up
    loaded = load(weights, tmp_path)
    with torch.no_grad():
        network.projections[0][3].weight += up @ down / 16
    ours, expected = outputs(loaded), outputs(network)
    assert all(torch.allclose(ours[k], expected[k], atol=1e-5) for k in expected)


@pytest.mark.usefixtures("_small")
def test_converted_checkpoints_load():
    network = without_class_position(make(num_classes=7))
    state_dict, arguments = timm_stitch.convert_checkpoint(in_authors_layout(network), NAME)
    assert arguments == {"num_classes": 7, "img_size": SIZE}
    again = timm.create_model(NAME, **arguments)
    again.load_state_dict(state_dict)
    assert_equal(outputs(again), outputs(network))


@pytest.mark.usefixtures("_small")
def test_other_classes_and_other_sizes_start_from_the_weights(tmp_path):
    network = without_class_position(make())
    weights = in_authors_layout(network)
    fewer = load(weights, tmp_path, num_classes=9)
    assert outputs(fewer)[0].shape == (1, 9, SIZE, SIZE)
    assert torch.equal(fewer.head.decode.steps[0].conv.weight, network.head.decode.steps[0].conv.weight)
    larger = load(weights, tmp_path, img_size=96).eval()
    assert larger(torch.randn(1, 3, 96, 96)).shape == (1, 150, 96, 96)
    gray = load(weights, tmp_path, in_chans=1).eval()
    assert gray(torch.randn(1, 1, SIZE, SIZE)).shape == (1, 150, SIZE, SIZE)


@pytest.mark.usefixtures("_small")
def test_saved_networks_load_whole_and_one_stitch_alone(tmp_path):
    network = make(num_classes=5)
    timm_stitch.save_pretrained(network, tmp_path / "net")
    assert not any("index" in name or "k_bias" in name for name in load_file(tmp_path / "net" / "model.safetensors"))
    again = timm_stitch.from_hub(str(tmp_path / "net"))
    expected = outputs(network)
    assert_equal(outputs(again), expected)
    assert again.inference == network.inference
    for stitch_id in network.stitch_ids[::5]:
        small = timm_stitch.from_hub(str(tmp_path / "net"), extract=stitch_id)
        assert_equal(outputs(small), {stitch_id: expected[stitch_id]})


@pytest.mark.usefixtures("_small")
def test_extracted_stitches_cost_what_their_rows_say():
    network = timm.create_model(NAME, img_size=SIZE, device="meta")
    rows = {row["stitch_id"]: row for row in network.stitch_table()}
    for stitch_id in network.stitch_ids[::3]:
        small = network.extract(stitch_id)
        assert small.stitch_table() == [rows[stitch_id]]
        assert sum(parameter.numel() for parameter in small.parameters()) == rows[stitch_id]["params"]


@pytest.mark.usefixtures("_small")
def test_larger_images_are_for_sliding_windows():
    network = make(num_classes=5)
    x = torch.randn(1, 3, 80, 96)
    with pytest.raises(ValueError, match=r"expected \(B, 3, 64, 64\)\. Larger ones: predict\(x, mode='slide', crop=64"):
        network(x)
    assert network.predict(x, stitch_id=2).shape == (1, 5, 80, 96)


@pytest.mark.usefixtures("_small")
def test_networks_load_by_name():
    assert timm_stitch.load(NAME, pretrained=False, img_size=SIZE).num_stitches == len(make().plan)
    with pytest.raises(ValueError, match="is a network for segmentation and takes no features_only"):
        timm.create_model(NAME, features_only=True, device="meta")


@pytest.mark.usefixtures("_small")
def test_weights_of_classifiers_are_refused(tmp_path):
    classifiers = {
        "anchors.0.blocks.0.attn.qkv.weight": torch.ones(2, 2),
        "stitch_layers.0.0.transform.weight": torch.ones(2),
    }
    with pytest.raises(ValueError, match="these weights are not those of a segmentation network"):
        load(classifiers, tmp_path)
    with pytest.raises(ValueError, match="these weights are not those of a segmentation network"):
        timm_stitch.convert_checkpoint(classifiers, NAME)


@pytest.mark.usefixtures("_small")
def test_weights_of_segmentation_are_refused_by_networks_of_classifiers(tmp_path):
    weights = in_authors_layout(make())
    torch.save(weights, tmp_path / "authors.pth")
    overlay = {"file": str(tmp_path / "authors.pth")}
    with pytest.raises(ValueError, match="these weights are those of a segmentation network"):
        timm.create_model("snnetv2_deit3_sb", pretrained=True, pretrained_cfg_overlay=overlay)
    with pytest.raises(ValueError, match="these weights are those of a segmentation network"):
        timm_stitch.convert_checkpoint(weights, "snnetv2_deit3_sb")


@pytest.mark.usefixtures("_small")
def test_weights_of_other_anchors_are_refused(tmp_path):
    weights = in_authors_layout(make("snnetv2_setr_deit3_bl"))
    with pytest.raises(ValueError, match=r"these weights are not those of this network: .* tensors have another shape"):
        load(weights, tmp_path)


@pytest.mark.usefixtures("_small")
def test_training_checkpoints_of_mmengine_are_refused(tmp_path, monkeypatch):
    modules = [types.ModuleType(name) for name in ("mmengine", "mmengine.logging", "mmengine.logging.history_buffer")]
    for module in modules:
        monkeypatch.setitem(sys.modules, module.__name__, module)
    history = type("HistoryBuffer", (), {"__module__": modules[-1].__name__})
    modules[-1].HistoryBuffer = history
    checkpoint = {"state_dict": {"decode_head.conv_seg.bias": torch.ones(2)}, "message_hub": {"loss": history()}}
    with pytest.raises(
        ValueError, match=r"it holds more than weights \(mmengine.logging.history_buffer.HistoryBuffer\)"
    ) as caught:
        load(checkpoint, tmp_path)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=r"keep its weights alone"):
        timm_stitch.convert_checkpoint(tmp_path / "authors.pth", NAME)


def test_missing_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no weights file"):
        timm.create_model(NAME, pretrained=True, pretrained_cfg_overlay={"file": str(tmp_path / "none.pth")})


def test_layouts_are_told_apart():
    assert is_segmentation({"decode_head.conv_seg.weight": 0})
    assert is_segmentation({"head.decode.classifier.weight": 0})
    assert not is_segmentation({"head.weight": 0, "stitch_layers.0.0.transform.weight": 0, "anchors.0.head.weight": 0})
