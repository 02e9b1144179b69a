"""Stitched networks of transformers' models, kept and loaded again by every door, and what a stranger's may not ask."""

import json
import shutil

import pytest
import torch

hf = pytest.importorskip("transformers", minversion="5.20")

from safetensors.torch import load_file  # noqa: E402
from tiny import TRANSFORMERS_NETWORKS, bert, gpt2, rows_of, run, texts  # noqa: E402
from tokenizers import Tokenizer, models, pre_tokenizers  # noqa: E402

import timm_stitch  # noqa: E402
import timm_stitch.text  # noqa: E402


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    torch.manual_seed(0)
    net = timm_stitch.stitch([bert(32, 3), bert(48, 4)])
    rows = [{"stitch_id": k, "top1": 50.0 + k, "dataset": "acme/texts", "texts": 9} for k in net.stitch_ids]
    return timm_stitch.save_pretrained(net, tmp_path_factory.mktemp("saved") / "net", results=rows)


@pytest.fixture
def folder(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "net")


@pytest.mark.parametrize("name", TRANSFORMERS_NETWORKS)
@torch.no_grad()
def test_an_extracted_stitch_is_saved_by_transformers_own_method(name, tmp_path):
    kind = TRANSFORMERS_NETWORKS[name]
    net, batch = timm_stitch.stitch(kind.anchors()), kind.batch()
    net.extract(3).save_pretrained(tmp_path)
    again = kind.load(tmp_path)
    assert again.stitch_ids == (3,)
    assert torch.equal(run(again, batch), run(net, batch, stitch_id=3))
    with pytest.raises(ValueError, match="this is a part of a larger network"):
        timm_stitch.save_pretrained(again, tmp_path / "more")


def test_tied_weights_are_tied_again_and_kept_once(tmp_path):
    net = timm_stitch.stitch([gpt2(32, 3), gpt2(48, 4)])
    folder = timm_stitch.save_pretrained(net, tmp_path / "net")
    assert "anchors.0.lm_head.weight" not in load_file(folder / "model.safetensors")
    again = timm_stitch.from_hub(folder)
    for anchor in again.anchors:
        assert anchor.lm_head.weight is anchor.transformer.wte.weight


def test_rows_and_card_are_saved_with_the_weights(folder):
    again = timm_stitch.from_hub(folder)
    assert again.stitch_table()[2]["top1"] == 52
    assert timm_stitch.select(again, params=1e9) == again.stitch_ids[-1]
    assert timm_stitch.from_hub(folder, extract=2).stitch_table()[0]["top1"] == 52
    card = (folder / "README.md").read_text()
    assert "library_name: transformers\n" in card
    assert "pipeline_tag: text-classification\n" in card
    assert "AutoModelForSequenceClassification.from_pretrained(" in card
    assert "import timm, timm_stitch" not in card
    assert "on acme/texts, 9 texts" in card


def test_damaged_or_exchanged_weights_are_noticed(folder):
    from safetensors.torch import save_file

    file = folder / "model.safetensors"
    tensors = load_file(file)
    tensors["stitching_layers.0.bias"] += 1
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(ValueError, match=r"do not belong to stitches\.json"):
        timm_stitch.from_hub(folder)
    del tensors["anchors.1.classifier.bias"]
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(ValueError, match=r"lack 1 tensors \(e\.g\. 'anchors\.1\.classifier\.bias'\)"):
        timm_stitch.from_hub(folder, verify=False)


def test_attention_can_be_chosen(folder):
    again = hf.AutoModelForSequenceClassification.from_pretrained(folder, attn_implementation="eager")
    assert {anchor.config._attn_implementation for anchor in again.anchors} == {"eager"}
    out = again(**texts(), stitch_id=3, output_attentions=True)
    assert out.attentions


def words():
    tokenizer = Tokenizer(models.WordLevel({"[PAD]": 0, "[UNK]": 1, "a": 5, "b": 6}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return hf.PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]")


def test_the_tokenizer_is_kept_and_a_pipeline_runs(tmp_path):
    net = timm_stitch.stitch([bert(32, 3), bert(48, 4)], tokenizers=[words(), words()], stitch_id=3)
    folder = timm_stitch.save_pretrained(net, tmp_path / "net", label_names=["good", "bad", "ugly"])
    classify = hf.pipeline("text-classification", model=str(folder), tokenizer=str(folder), device="cpu")
    (found,) = classify("a b a", top_k=1)
    inputs = words()("a b a", return_tensors="pt")
    expected = net(**{k: v for k, v in inputs.items() if k != "token_type_ids"}).logits.softmax(-1)[0].detach()
    assert found["label"] == ["good", "bad", "ugly"][int(expected.argmax())]
    assert found["score"] == pytest.approx(float(expected.max()), abs=1e-6)
    with pytest.raises(ValueError, match="label_names has 1 names for 3 classes"):
        timm_stitch.save_pretrained(net, tmp_path / "more", label_names=["one"])


def test_rows_of_other_weights_are_refused(folder):
    model = timm_stitch.from_hub(folder)
    with torch.no_grad():
        model.stitching_layers[0].weight.add_(1)
    assert "top1" not in model.stitch_table()[2]


DOORS = {
    "from_hub": lambda folder: timm_stitch.from_hub(folder, verify=False),
    "extract": lambda folder: timm_stitch.from_hub(folder, extract=0),
    "transformers": hf.AutoModelForSequenceClassification.from_pretrained,
}


def _plan_of_too_many(config):
    config["plan"]["stitches"] = config["plan"]["stitches"][:1] * 10_001


HOSTILE = {
    "code": (lambda c: c["anchors"][0].update(auto_map={"AutoModel": "x.y"}), r"run other code \(auto_map\)"),
    "quantised": (lambda c: c["anchors"][0].update(quantization_config={"quant_method": "x"}), "run other code"),
    "backbone": (lambda c: c["anchors"][0].update(use_pretrained_backbone=True), "read other files"),
    "path": (lambda c: c["anchors"][0].update(weights_path="/etc/passwd"), r"read other files.*weights_path"),
    "kernel": (
        lambda c: c["anchors"][0].update(attn_implementation={"": "acme/kernel"}),
        r"run other code \(attn_implementation\)",
    ),
    "kernel of all": (lambda c: c.update(_attn_implementation="acme/kernel"), r"other code \(_attn_implementation\)"),
    "quantised as a whole": (lambda c: c.update(quantization_config={"quant_method": "x"}), "run other code"),
    "code of all": (lambda c: c.update(auto_map={"AutoConfig": "x.y"}), r"run other code \(auto_map\)"),
    "other weights": (lambda c: c.update(transformers_weights="pytorch_model.bin"), "read other files"),
    "labels": (lambda c: c.update(num_labels=10**9), "num_labels is 1000000000: expected at most 1,048,576"),
    "dtype": (lambda c: c.update(dtype="nn"), "has dtype='nn': expected one of float16, bfloat16, float32, float64"),
    "unknown type": (lambda c: c["anchors"][0].update(model_type="evil"), "model_type='evil', which transformers does"),
    "nested": (lambda c: c["anchors"][0].update(model_type="snnet"), "model_type='snnet', which transformers does"),
    "unknown field": (
        lambda c: c["anchors"][0].update(evil=1),
        "has evil, which transformers' configuration of 'bert'",
    ),
    "other class": (lambda c: c["classes"].__setitem__(0, "Trainer"), "an anchor of class 'Trainer': expected Bert"),
    "depth": (lambda c: c["anchors"][0].update(num_hidden_layers=10**6), "is 1000000: expected at most 512"),
    "width": (lambda c: c["anchors"][0].update(hidden_size=1 << 30), "expected at most 1,048,576"),
    "numbers": (lambda c: c["anchors"][0].update(vocab_size=1 << 38), "(more|most|than)"),
    "stitches": (_plan_of_too_many, "10,001 stitches: expected at most 10,000"),
    "row": (lambda c: c["openings"][0].update(row="bert.pooler"), "is no list of 3 layers"),
    "opening": (lambda c: c["openings"][0].update(forms=["x"]), "opening 0 in config.json has strange values"),
    "count": (lambda c: c["classes"].pop(), "as many of each"),
    "not ours": (lambda c: c.update(architectures=["BertModel"]), "names the class 'BertModel'"),
}


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("what", HOSTILE)
def test_no_door_builds_what_a_stranger_may_not_ask_for(folder, door, what):
    change, message = HOSTILE[what]
    if what == "not ours" and door == "transformers":
        pytest.skip("transformers goes by the type")
    file = folder / "config.json"
    config = json.loads(file.read_text())
    change(config)
    file.write_text(json.dumps(config))
    with pytest.raises(ValueError, match=message):
        DOORS[door](folder)


def test_an_adapter_in_the_folder_is_refused(folder):
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "/elsewhere"}')
    with pytest.raises(ValueError, match=r"has adapter_config\.json, by which transformers would read further files"):
        timm_stitch.from_hub(folder)


def test_what_could_not_be_read_again_is_not_stitched(tmp_path):
    model = bert(32, 3)
    model.config.my_own = 1  # which means nothing to BERT
    net = timm_stitch.stitch([model, bert(48, 3)])
    assert "my_own" not in timm_stitch.from_hub(timm_stitch.save_pretrained(net, tmp_path / "net")).config.anchors[0]
    model.config.quantization_config = {"quant_method": "x"}
    with pytest.raises(ValueError, match=r"run other code \(quantization_config\)"):
        timm_stitch.stitch([model, bert(48, 3)])


def test_one_row_equals_its_part_after_loading(folder):
    again, batch = timm_stitch.from_hub(folder), texts()
    alone = again(**rows_of(batch, slice(2, 3)), stitch_id=4).logits
    torch.testing.assert_close(again(**batch, stitch_id=[0, 1, 4, 2]).logits[2:3], alone, rtol=0, atol=1e-5)


def test_the_stitch_of_a_pipeline_is_the_one_that_is_set(tmp_path):
    net = timm_stitch.stitch([bert(32, 3), bert(48, 4)], tokenizers=[words(), words()], stitch_id=3)
    timm_stitch.save_pretrained(net, tmp_path)
    pipe = hf.pipeline("text-classification", model=str(tmp_path), top_k=None)
    ran = []
    pipe.model.register_stitch_hook(lambda model, stitch_id, count: ran.append(stitch_id))
    pipe("a")
    pipe.model.set_stitch(1)
    pipe("a")
    assert ran == [3, 1]
    assert hf.pipeline("text-classification", model=str(tmp_path), model_kwargs={"stitch_id": 2}).model.stitch_id == 2


def test_one_model_is_no_network_and_names_on_the_hub_have_a_prefix(tmp_path):
    bert(32, 2).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"that of one model of transformers \(bert\), not of a stitched network"):
        timm_stitch.load(tmp_path)
    with pytest.raises(ValueError, match="a model on the Hub is hf-hub:user/small, and there is no such folder"):
        timm_stitch.load(["user/small", "user/large"])
