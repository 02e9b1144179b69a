"""What is saved is what is loaded: changes after creation are saved, or refused when saving."""

import pytest
import timm
import torch
from tiny import bert, convnexts, images, llama, resnets, texts, vits
from torch import nn

import timm_stitch


def reload(network, folder):
    timm_stitch.save_pretrained(network, folder)
    return timm_stitch.from_hub(folder)


@pytest.mark.parametrize("make", [convnexts, vits, resnets], ids=lambda make: make.__name__)
@pytest.mark.parametrize("which", ["network", "back", "both"])
@torch.no_grad()
def test_pooling_that_was_reset_is_saved(make, which, tmp_path):
    anchors, x = make(), images(2, 64 if make is not vits else 32)
    for anchor in {"back": anchors[1:], "both": anchors}.get(which, ()):
        anchor.reset_classifier(5, "max")
    if which == "back":
        anchors[0].reset_classifier(5)
    net = timm_stitch.stitch(anchors).eval()
    if which == "network":
        net.reset_classifier(5, "max")
    again = reload(net, tmp_path)
    for k in (0, 1, net.stitch_ids[-1]):
        assert torch.equal(again(x, stitch_id=k), net(x, stitch_id=k))


@torch.no_grad()
def test_pooling_of_one_anchor_by_name_is_saved(tmp_path):
    specs = [{"architecture": "convnext_atto", "dims": (8, 16, 24, 32), "depths": (1, 1, 1, 1)}] * 2
    net, x = timm.create_model("snnet", anchors=specs, num_classes=5).eval(), images(2, 64)
    net.anchors[1].reset_classifier(5, "max")
    assert torch.equal(reload(net, tmp_path)(x, stitch_id=1), net(x, stitch_id=1))


def stride(model):
    model.conv1.stride, model.maxpool = (1, 1), nn.Identity()


def epsilon(model):
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 0.1


def activation(model):
    for block in model.layer2:
        block.act2 = nn.SiLU()


@pytest.mark.parametrize("change", [stride, epsilon, activation], ids=lambda change: change.__name__)
@pytest.mark.parametrize("which", [0, 1])
def test_changes_that_files_cannot_say_are_refused_before_the_folder_changes(change, which, tmp_path):
    anchors = resnets()
    change(anchors[which])
    net, folder = timm_stitch.stitch(anchors), tmp_path / "net"
    with pytest.raises(
        ValueError, match=r"another network would be loaded: the output of stitch \d+ \(resnet18.*differ by"
    ):
        timm_stitch.save_pretrained(net, folder)
    assert not list(tmp_path.glob("*/*"))
    timm_stitch.save_pretrained(net, folder, check=False)
    assert (folder / "model.safetensors").is_file()


def test_the_proof_of_saving_leaves_random_numbers_hooks_and_modes_alone(tmp_path):
    net, calls = timm_stitch.stitch(vits()).train(), []
    net.register_stitch_hook(lambda *args: calls.append(args))
    state = torch.get_rng_state()
    timm_stitch.save_pretrained(net, tmp_path)
    assert torch.equal(torch.get_rng_state(), state)
    assert not calls
    assert net.training
    assert net.anchors[0].training


def test_parts_of_maxvit_that_were_set_by_arguments_are_saved(tmp_path):
    options = {"embed_dim": (8, 16, 16, 16), "depths": (1, 1, 1, 1), "stem_width": 8, "transformer_dim_head": 8}
    anchors = [timm.create_model("coatnet_rmlp_nano_rw_224", img_size=64, num_classes=5, **options) for _ in range(2)]
    net, x = timm_stitch.stitch(anchors).eval(), images(1, 64)
    with torch.no_grad():
        assert torch.equal(reload(net, tmp_path)(x, stitch_id=1), net(x, stitch_id=1))


def deberta(width, depth):
    hf = pytest.importorskip("transformers", minversion="5.20")
    torch.manual_seed(width)
    config = hf.DebertaV2Config(
        vocab_size=99, hidden_size=width, num_hidden_layers=depth, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=64, relative_attention=True, position_buckets=8, pos_att_type=["p2c", "c2p"],
        norm_rel_ebd="layer_norm", share_att_key=True, position_biased_input=False, num_labels=3,
    )  # fmt: skip
    return hf.DebertaV2ForSequenceClassification(config).eval()


@torch.no_grad()
def test_fields_that_a_configuration_does_not_declare_and_its_code_reads_are_saved(tmp_path):
    net = timm_stitch.stitch([deberta(32, 3), deberta(48, 4)]).eval()
    assert torch.equal(reload(net, tmp_path)(**texts()).logits, net(**texts()).logits)


def test_generation_settings_are_those_of_the_back_anchor_and_are_saved(tmp_path):
    anchors = [llama(32), llama(48)]
    for anchor in anchors:
        anchor.generation_config.eos_token_id, anchor.generation_config.max_new_tokens = [2, 7], 12
    net = timm_stitch.stitch(anchors).eval()
    again = reload(net, tmp_path)
    alone = timm_stitch.from_hub(tmp_path, extract=1)
    for network in (net, again, alone, net.extract(1)):
        assert network.generation_config.eos_token_id == [2, 7]
        assert network.generation_config.max_new_tokens == 12


def test_saved_rows_are_known_through_the_auto_classes(tmp_path):
    hf = pytest.importorskip("transformers", minversion="5.20")
    import timm_stitch.text

    net = timm_stitch.stitch([bert(32), bert(48)])
    rows = [{"stitch_id": k, "top1": 50.0 + k} for k in net.stitch_ids]
    timm_stitch.save_pretrained(net, tmp_path, results=rows)
    loaded = hf.AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert timm_stitch.select(loaded, macs=1e12) == timm_stitch.select(timm_stitch.from_hub(tmp_path), macs=1e12)
