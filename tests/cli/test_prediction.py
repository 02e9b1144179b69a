"""`predict` and `info`: images from files, folders and stdin, texts, budgets, and what a network is."""

import io
import json
import sys
from types import SimpleNamespace

import pytest
import timm
import torch
from PIL import Image
from tiny import bert, deit_specs, hf_vit

import timm_stitch
from timm_stitch.cli.entry import main
from timm_stitch.data.dataset import image_config


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("prediction")
    torch.manual_seed(0)
    model = timm.create_model("snnet", anchors=deit_specs(depth=2, num_classes=3)).eval()
    rows = [{"stitch_id": k, "top1": 50.0 + k} for k in model.stitch_ids]
    timm_stitch.save_pretrained(model, root / "net", rows, label_names=["ant", "bee", "cow"])
    (root / "images" / "deep").mkdir(parents=True)
    for n, place in enumerate(("a.png", "b.JPG", "deep/c.png")):
        Image.effect_noise((40, 40), 20 * n + 20).convert("RGB").save(root / "images" / place)
    (root / "images" / "notes.txt").write_text("no image")
    return root


def run(capsys, *argv):
    """The rows that a verb prints."""
    assert main([*map(str, argv), "--json"]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_predictions_are_those_of_the_stitch_in_python(root, capsys):
    rows = run(capsys, "predict", root / "net", root / "images", "--stitch-id", 4, "--batch-size", 2)
    assert [row["input"] for row in rows] == [str(root / "images" / name) for name in ("a.png", "b.JPG", "deep/c.png")]
    model = timm_stitch.from_hub(root / "net")
    transform = timm.data.create_transform(**image_config(model))
    for row in rows:
        with torch.no_grad():
            chances = model(transform(Image.open(row["input"]).convert("RGB"))[None], stitch_id=4).softmax(-1)[0]
        likeliest = chances.argsort(descending=True).tolist()
        assert row["stitch_id"] == 4
        assert [one["class"] for one in row["top"]] == likeliest
        assert [one["label"] for one in row["top"]] == [["ant", "bee", "cow"][n] for n in likeliest]
        assert row["top"][0]["probability"] == pytest.approx(float(chances.max()), abs=1e-5)


def test_a_budget_chooses_the_stitch_and_stdin_is_an_image(root, capsys, monkeypatch):
    data = (root / "images" / "a.png").read_bytes()
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(data)))
    table = timm_stitch.from_hub(root / "net").stitch_table()
    limit = sorted(row["macs"] for row in table)[2]
    best = max((row for row in table if row["macs"] <= limit), key=lambda row: row["top1"])["stitch_id"]
    (row,) = run(capsys, "predict", root / "net", "-", "--macs", limit, "--top", 1)
    assert (row["input"], row["stitch_id"], len(row["top"])) == ("-", best, 1)
    assert main(["predict", str(root / "net"), str(root / "images" / "a.png")]) == 0
    assert "ant" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("net nowhere.png", "there is no image 'nowhere.png': expected files, folders, or - for stdin"),
        ("net empty", "there is no image in the folder 'empty'"),
        ("net images/notes.txt", "images/notes.txt"),
        ("net images --stitch-id 99", "--stitch-id: stitch_id=99 is not in this plan"),
        (
            "net images --stitch-id 1 --macs 1e9",
            "give --stitch-id or a limit (--macs, --params, --latency-ms), not both",
        ),
        ("net images --macs 1", "no "),
    ],
)
def test_mistakes_are_one_line(root, words, message, monkeypatch, capsys):
    monkeypatch.chdir(root)
    (root / "empty").mkdir(exist_ok=True)
    assert main(["predict", *words.split()]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_network_of_texts_takes_texts(tmp_path, capsys, monkeypatch):
    transformers = pytest.importorskip("transformers", minversion="5.20")
    tokenizers = pytest.importorskip("tokenizers")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad"]
    plain = tokenizers.Tokenizer(tokenizers.models.WordLevel({word: n for n, word in enumerate(words)}, "[UNK]"))
    plain.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    special = {"unk_token": "[UNK]", "pad_token": "[PAD]", "mask_token": "[MASK]"}
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=plain, **special)
    network = timm_stitch.stitch([bert(32, 2), bert(48, 3)], tokenizers=[tokenizer, tokenizer]).eval()
    timm_stitch.save_pretrained(network, tmp_path / "net")
    (tmp_path / "lines.txt").write_text("good good\n\nbad\n")
    rows = run(capsys, "predict", tmp_path / "net", "good bad", tmp_path / "lines.txt", "--stitch-id", 2, "--top", 2)
    assert [row["input"] for row in rows] == ["good bad", "good good", "bad"]
    with torch.no_grad():
        logits = network(**tokenizer("good bad", return_tensors="pt"), stitch_id=2).logits[0]
    chances = logits.softmax(-1) if len(logits) > 1 else logits.sigmoid()
    assert rows[0]["top"][0]["probability"] == pytest.approx(float(chances.max()), abs=1e-5)
    without = timm_stitch.stitch([bert(32, 2), bert(48, 3)])
    timm_stitch.save_pretrained(without, tmp_path / "without")
    assert main(["predict", str(tmp_path / "without"), "good"]) == 1
    assert "this network has no tokenizer: give tokenizers=[…] to stitch" in capsys.readouterr().err
    assert run(capsys, "predict", tmp_path / "without", "good", "--tokenizer", tmp_path / "net")[0]["top"]
    images = timm_stitch.stitch([hf_vit(32, 3), hf_vit(48, 4)])
    timm_stitch.save_pretrained(images, tmp_path / "vit")
    assert main(["predict", str(tmp_path / "vit"), "good"]) == 1
    # every way to save keeps the tokenizer
    loaded = timm_stitch.load(tmp_path / "net")
    timm_stitch.save_pretrained(loaded, tmp_path / "again")
    loaded.save_pretrained(tmp_path / "transformers")
    loaded.extract(2).save_pretrained(tmp_path / "alone")
    timm_stitch.from_hub(tmp_path / "net", extract=2).save_pretrained(tmp_path / "fetched")
    for name in ("again", "transformers", "alone", "fetched"):
        stitch = () if name in ("alone", "fetched") else ("--stitch-id", 2)
        assert run(capsys, "predict", tmp_path / name, "good bad", "--top", 2, *stitch)[0]["top"] == rows[0]["top"], (
            name
        )
    (tmp_path / "files").mkdir()
    file = tmp_path / "files" / "2.safetensors"
    assert main(["extract", str(tmp_path / "net"), "--stitch-id", "2", "--output", str(file)]) == 0
    capsys.readouterr()
    assert main(["predict", str(file), "good"]) == 1
    assert capsys.readouterr().err.endswith("on the command line and model.tokenizer = … in Python.\n")  # not the Hub's
    assert (
        run(capsys, "predict", file, "good bad", "--top", 2, "--tokenizer", tmp_path / "net")[0]["top"]
        == rows[0]["top"]
    )
    assert main(["predict", str(file), "good", "--tokenizer", str(tmp_path / "files")]) == 1
    assert "there is no tokenizer in" in capsys.readouterr().err


def test_info_describes_a_network(root, capsys):
    (facts,) = run(capsys, "info", root / "net")
    model = timm_stitch.from_hub(root / "net")
    assert facts["stitches"] == model.num_stitches == facts["rows_with_accuracy"]
    assert facts["params"] == sum(p.numel() for p in model.parameters())
    assert (facts["best_top1"], facts["from"]) == (50.0 + max(model.stitch_ids), "a folder")
    assert main(["info", "snnet_deit_tsb"]) == 0
    shown = capsys.readouterr().out
    assert "deit_tiny_patch16_224.fb_in1k, deit_small_patch16_224.fb_in1k" in shown
    assert "https://github.com/ziplab/SN-Net/releases/download/v1.0/snnet_deit.pth" in shown
    assert "71" in shown
