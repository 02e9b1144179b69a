"""`create_model`'s usual arguments do for an SN-Net what they do for any timm model."""

import argparse
import logging
import re
import subprocess
import sys

import pytest
import timm
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from timm.optim import create_optimizer_v2
from tiny import deit_specs, deits

import timm_stitch
from timm_stitch.training.distillation import find_teacher


def authors_layout(model):
    """Our weights under the authors' names: layers counted within each pair of anchors."""
    state, n = {}, {}
    for key, value in model.anchors.state_dict().items():
        state[f"anchors.{key}"] = value
    for number, spec in enumerate(model.plan.layers):
        pair = f"stitch_layers.{spec.front}.{n.setdefault(spec.front, 0)}.transform"
        n[spec.front] += 1
        state[f"{pair}.weight"] = model.stitching_layers[number].weight.data
        state[f"{pair}.bias"] = model.stitching_layers[number].bias.data
    return state


@pytest.fixture(scope="module")
def small():
    torch.manual_seed(0)
    return timm_stitch.stitch(deits(), stitched_norm=False).eval()


def create(**kwargs):
    return timm.create_model("snnet", anchors=deit_specs(), **kwargs).eval()


def test_timm_lists_and_creates_the_registered_networks():
    names = timm.list_models("snnet*")
    assert {"snnet", "snnet_deit", "snnet_deit_tsb"} <= set(names)
    assert "snnet_deit_tsb.snnet_in1k" in timm.list_pretrained("snnet*")
    model = timm.create_model("snnet_deit", device="meta")
    assert model.num_stitches == 71
    assert model.default_cfg["crop_pct"] == 0.875
    assert timm.get_pretrained_cfg("snnet_deit_tsb").tag == "snnet_in1k"
    assert timm.get_pretrained_cfg("snnet_deit_tsb").url.endswith("/v1.0/snnet_deit.pth")


NAMES = [
    "snnet", "snnet_deit", "snnet_deit_tsb", "snnet_efficientnet_lite_012", "snnet_levit_192_256",
    "snnet_resnet18_swin_t", "snnet_resnet_18_50", "snnet_swin", "snnet_swin_tsb", "snnetv2_deit3_bl",
    "snnetv2_deit3_sb", "snnetv2_deit3_sl", "snnetv2_setr_deit3_bl", "snnetv2_setr_deit3_sl",
]  # fmt: skip


def test_importing_the_package_is_enough_for_timm_to_list_all_names():
    code = "import timm, timm_stitch; print(*timm.list_models('snnet*')); print(*timm.list_models(module='snnet'))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert [line.split() for line in out.splitlines()] == [NAMES, NAMES]


@pytest.mark.parametrize(("name", "letters"), [("sb", "s_b"), ("sl", "s_l"), ("bl", "b_l")])
def test_where_the_second_versions_weights_are(name, letters):
    """As listed in the Hub's repositories, and in the release 1.0 of github.com/ziplab/SN-Netv2."""
    cfg = timm.get_pretrained_cfg(f"snnetv2_deit3_{name}")
    assert cfg.tag == "snnet_in1k"
    assert cfg.hf_hub_id == f"ziplab/snnetv2_deit3_{letters}_imagenet_1k"
    assert cfg.hf_hub_filename == f"snnetv2_deit3_{letters}.pth"


def test_num_classes_in_chans_img_size_and_pool():
    model = create(num_classes=7, in_chans=1, img_size=64, global_pool="avg")
    x = torch.randn(2, 1, 64, 64)
    for k in (0, 9, 20):
        assert model(x, stitch_id=k).shape == (2, 7)
        assert model.forward_head(model.forward_features(x, k), pre_logits=True, stitch_id=k).shape == (
            2, model.views[model.plan[k].back].widths[-1],
        )  # fmt: skip
    assert model.default_cfg["input_size"] == (3, 32, 32)
    assert create(num_classes=0)(torch.randn(2, 3, 32, 32)).shape == (2, 96)


def test_drop_path_for_all_or_one_per_anchor():
    def rates(model):
        return [max(getattr(m, "drop_prob", 0.0) or 0.0 for m in anchor.modules()) for anchor in model.anchors]

    assert rates(create(drop_path_rate=0.2)) == pytest.approx([0.2] * 3)
    assert rates(create(drop_path_rate=[0.0, 0.1, 0.3])) == pytest.approx([0.0, 0.1, 0.3])
    with pytest.raises(ValueError, match="drop_path_rate has 2 values for 3 anchors"):
        create(drop_path_rate=[0.0, 0.1])


def test_unknown_arguments_and_anchors_are_refused():
    with pytest.raises(TypeError, match="not_an_argument"):
        create(not_an_argument=1)
    with pytest.raises(ValueError, match="timm has no model 'deit_huge'"):
        timm.create_model("snnet", anchors=["deit_huge", "deit_tiny_patch16_224"])
    with pytest.raises(ValueError, match=r"anchors must be two or more timm names, fastest first, got \(\)"):
        timm.create_model("snnet")
    with pytest.raises(ValueError, match="names no timm model"):
        timm.create_model("snnet", anchors=[{"embed_dim": 3}, "deit_tiny_patch16_224"])
    with pytest.raises(ValueError, match="stitch_id=35"):
        create(stitch_id=35)


def test_stitch_arguments_pass_through():
    assert create(kernel_size=1).num_stitches == 3 + 2 * 6
    assert create(nearest=False).num_stitches > 35
    assert create(direction="slow_to_fast").plan[3].front == 1
    assert create(stitch_id=9).stitch_id == 9


def test_head_features_and_groups(small):
    model = timm.create_model("snnet", anchors=deit_specs()).eval()
    x = torch.randn(2, 3, 32, 32)
    model.set_stitch(9)
    assert (model.num_features, model.embed_dim, model.head_hidden_size, model.num_prefix_tokens) == (64, 64, 64, 1)
    assert [info["num_chs"] for info in model.feature_info] == [32] * 3 + [64] * 4
    last, taps = model.forward_intermediates(x, indices=[0, 6], norm=False)
    assert torch.equal(last, model.forward_features(x))
    assert [t.shape for t in taps] == [(2, 32, 4, 4), (2, 64, 4, 4)]
    nlc = model.forward_intermediates(x, indices=[6], output_fmt="NLC", intermediates_only=True, norm=True)[0]
    assert torch.equal(nlc, last[:, 1:])
    model.reset_classifier(4)
    assert model(x, stitch_id=0).shape == (2, 4)
    assert len(model.get_classifier()) == 3
    assert model.no_weight_decay() >= {"anchors.0.pos_embed", "anchors.2.cls_token"}
    groups = create_optimizer_v2(model, "adamw", lr=1e-3, weight_decay=0.05, layer_decay=0.5).param_groups
    grouped = {id(p): g["lr_scale"] for g in groups for p in g["params"]}
    assert len(grouped) == len(list(model.parameters()))
    assert (
        grouped[id(model.anchors[0].blocks[2].mlp.fc1.weight)] == grouped[id(model.anchors[2].blocks[2].mlp.fc1.weight)]
    )
    assert grouped[id(model.stitching_layers[0].weight)] == 1.0
    assert (
        grouped[id(model.anchors[1].patch_embed.proj.weight)] < grouped[id(model.anchors[1].blocks[0].attn.qkv.weight)]
    )


def test_set_input_size_and_grad_checkpointing():
    model = create()
    x = torch.randn(2, 3, 48, 48)
    model.set_input_size((48, 48))
    before = model(x, stitch_id=9)
    assert model.stitch_table()[9]["macs"] > create().stitch_table()[9]["macs"]
    model.set_grad_checkpointing()
    torch.testing.assert_close(model(x, stitch_id=9), before)


def test_features_only_gives_the_maps_of_the_stitch():
    model = timm.create_model("snnet", anchors=deit_specs(), features_only=True, stitch_id=9, out_indices=[0, 6])
    assert [f.shape for f in model(torch.randn(2, 3, 32, 32))] == [(2, 32, 4, 4), (2, 64, 4, 4)]
    assert model.feature_info.channels() == [32, 64]


@pytest.mark.parametrize("how", ["file", "url", "checkpoint"])
def test_the_authors_layout_loads(small, images, tmp_path, monkeypatch, how):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    path = tmp_path / "authors.pth"
    weights = {"model": authors_layout(small)}
    if how == "checkpoint":
        weights |= {"optimizer": {"state": {0: torch.zeros(2)}}, "epoch": 3, "args": argparse.Namespace(lr=0.1)}
    torch.save(weights, path)
    source = {"url": path.as_uri()} if how == "url" else {"file": str(path)}
    model = create(pretrained=True, pretrained_cfg_overlay=source, stitched_norm=False)
    for k in (0, 9, 34):
        assert torch.equal(model(images, stitch_id=k), small(images, stitch_id=k))
    assert not model.stitched_norm


def test_conversion_gives_weights_and_the_arguments_for_them(small, tmp_path):
    state, args = timm_stitch.convert_checkpoint(_full_size_authors_checkpoint(), "snnet_deit_tsb")
    assert args == {"stitched_norm": False}
    model = timm.create_model("snnet_deit_tsb", device="meta", **args)
    assert set(state) == set(model.state_dict())
    with pytest.raises(ValueError, match=r"not those of the authors' snnet_deit_tsb: .*have another shape"):
        timm_stitch.convert_checkpoint(authors_layout(small), "snnet_deit_tsb")
    with pytest.raises(ValueError, match="'resnet18' is not a stitchable network"):
        timm_stitch.convert_checkpoint(authors_layout(small), "resnet18")
    with pytest.raises(FileNotFoundError, match="there is no weights file"):
        timm_stitch.convert_checkpoint(tmp_path / "nowhere.pth", "snnet_deit_tsb")


def _full_size_authors_checkpoint():
    return authors_layout(timm.create_model("snnet_deit_tsb", device="meta"))


def test_the_adaptation_to_other_classes_channels_and_sizes(small, tmp_path, caplog):
    path = tmp_path / "authors.pth"
    torch.save(authors_layout(small), path)
    overlay = {"file": str(path)}
    model = create(pretrained=True, pretrained_cfg_overlay=overlay, num_classes=4, in_chans=1, img_size=64)
    assert model(torch.randn(1, 1, 64, 64), stitch_id=9).shape == (1, 4)
    assert torch.equal(model.anchors[0].blocks[3].mlp.fc1.weight, small.anchors[0].blocks[3].mlp.fc1.weight)
    torch.testing.assert_close(
        model.anchors[0].patch_embed.proj.weight, small.anchors[0].patch_embed.proj.weight.sum(1, keepdim=True)
    )


def test_checkpoint_path_takes_our_layout_and_refuses_the_authors(small, images, tmp_path):
    path = tmp_path / "ours.pth"
    torch.save(small.state_dict(), path)
    model = create(checkpoint_path=str(path))
    assert torch.equal(model(images, stitch_id=9), small(images, stitch_id=9))
    torch.save(authors_layout(small), path)
    with pytest.raises(
        ValueError, match=r"layout of the authors' release: convert them with timm_stitch.convert_checkpoint"
    ):
        create(checkpoint_path=str(path))


def test_unreadable_and_foreign_weights_are_refused(small, tmp_path):
    def load(file):
        create(pretrained=True, pretrained_cfg_overlay={"file": str(file)})

    whole = tmp_path / "whole.pth"
    torch.save(authors_layout(small), whole)
    cut = tmp_path / "cut.pth"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    with pytest.raises(ValueError, match=r"cut.pth' is not a readable weights file"):
        load(cut)
    for text in (b"", b"hello"):
        cut.write_bytes(text)
        with pytest.raises(ValueError, match=r"cut.pth' is not a readable weights file"):
            load(cut)
    wrong = tmp_path / "wrong.safetensors"
    wrong.write_bytes(b"12345678901234567890")
    with pytest.raises(ValueError, match=r"wrong.safetensors' is not a readable weights file"):
        load(wrong)
    torch.save(timm.create_model("resnet10t").state_dict(), whole)
    with pytest.raises(ValueError, match=r"these weights are not those of this network: .*are missing.*are unknown"):
        load(whole)
    torch.save({"epoch": 3}, whole)
    with pytest.raises(ValueError, match="no weights found"):
        load(whole)
    torch.save({"model": object_that_runs_code()}, whole)
    with pytest.raises(ValueError, match="is not a readable weights file"):
        load(whole)
    with pytest.raises(FileNotFoundError, match=r"there is no weights file .*nowhere.pth"):
        load(tmp_path / "nowhere.pth")


class object_that_runs_code:  # noqa: N801
    def __reduce__(self):
        return print, ("this must not be printed",)


def test_a_failed_download_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    overlay = {"url": "http://127.0.0.1:9/snnet_deit.pth"}
    with pytest.raises(
        OSError,
        match=r"could not fetch 'http://127.0.0.1:9/snnet_deit.pth', the weights of 'snnet' \(.*refused.*\)\. "
        r"Without internet, .*file='PATH'",
    ):
        create(pretrained=True, pretrained_cfg_overlay=overlay)
    with pytest.raises(OSError, match=r"weights of 'snnet_deit_tsb'.*timm-stitch convert FILE snnet_deit_tsb --output"):
        timm.create_model("snnet_deit_tsb", pretrained=True, pretrained_cfg_overlay=overlay)


@pytest.mark.parametrize("name", ["test_vit", "hf-hub:timm/test_vit.r160_in1k"])
def test_weights_that_cannot_be_fetched_name_the_model_and_the_way_without_internet(name, monkeypatch):
    reason = f"An error happened {'while locating the file ' * 8}on the Hub."

    def refuse(*_, **__):
        raise LocalEntryNotFoundError(reason)

    monkeypatch.setattr("timm.models._builder.load_pretrained", refuse)
    monkeypatch.setattr("timm.models._factory.load_model_config_from_hf", refuse)
    way = "run `hf download timm/test_vit.r160_in1k --local-dir FOLDER` elsewhere and name local-dir:FOLDER"
    model = timm_stitch.load(["test_vit", "test_vit2"], pretrained=False)
    config = timm_stitch.TrainConfig(distillation="hard", teacher=name)
    with pytest.raises(OSError, match=re.escape(f"teacher='{name}' ({reason[:-1]}). Without internet, {way}")):
        find_teacher(config, None, model)
    if name == "test_vit":
        what = "'timm/test_vit.r160_in1k', the weights of 'test_vit'"
        with pytest.raises(OSError, match=re.escape(f"{what} ({reason[:-1]}). Without internet, {way}")):
            timm_stitch.load(["test_vit", "test_vit2"])


@pytest.mark.parametrize(
    "name", ["snnet_deit_tsb", "snnet_deit", "snnet_efficientnet_lite_012", "snnetv2_setr_deit3_sl"]
)
@pytest.mark.parametrize(
    "option", [{"kernel_size": 1}, {"direction": "two_way"}, {"anchors": ["resnet18", "resnet34"]}]
)
def test_registered_networks_take_no_plan(name, option):
    ((word, value),) = option.items()
    message = rf"'{name}' has fixed anchors and a fixed plan, and takes no {word}\. Make another network: .*{word}="
    with pytest.raises(ValueError, match=message + re.escape(repr(value))):
        timm.create_model(name, **option)
    with pytest.raises(ValueError, match="create_snnet takes stride in plan_args"):
        timm_stitch.create_snnet("snnet", False, ["resnet18", "resnet34"], stride=1)


def test_pretrained_anchors_with_untrained_stitches(small, images, tmp_path, caplog, monkeypatch):
    """`pretrained=True` without weights of its own loads each anchor's, from where timm has them."""
    torch.manual_seed(1)
    files = {}
    for spec, anchor in zip(deit_specs(), small.anchors, strict=True):
        files[spec["architecture"]] = str(tmp_path / f"{spec['architecture']}.pth")
        torch.save(anchor.state_dict(), files[spec["architecture"]])
    specs = [
        s | {"pretrained_cfg_overlay": {"file": files[s["architecture"]], "num_classes": 10}} for s in deit_specs()
    ]
    with caplog.at_level(logging.WARNING, "timm_stitch"):
        model = timm.create_model("snnet", anchors=specs, pretrained=True).eval()
    assert "stitching layers are untrained" in caplog.text
    assert torch.equal(model(images, stitch_id=1), small(images, stitch_id=1))
    assert model.stitched_norm


def test_timms_own_save_and_load_keep_everything(images, tmp_path):
    model = create(stitched_norm=False)
    model.set_stitch(9)
    timm.models.save_for_hf(model, str(tmp_path), safe_serialization=True)
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    assert again.stitch_id == 9
    assert not again.stitched_norm
    assert torch.equal(again(images), model(images))


def test_torchscript_and_fx(images):
    model = create(stitch_id=9)
    expected = model(images)
    scripted = torch.jit.script(model)
    torch.testing.assert_close(scripted(images), expected)
    graph = torch.fx.symbolic_trace(model)
    torch.testing.assert_close(graph(images), expected)


def test_scripts_run_with_the_models_registered(tmp_path):
    script = tmp_path / "validate.py"
    script.write_text(
        "import sys, timm; print(sys.argv[1:], timm.create_model('snnet_deit', device='meta').num_stitches)"
    )
    out = subprocess.run(
        [sys.executable, "-m", "timm_stitch.run", str(script), "--model", "x"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert out.stdout.strip() == "['--model', 'x'] 71"
