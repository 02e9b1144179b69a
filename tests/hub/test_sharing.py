"""Networks that are kept in folders: damaged and hostile ones, their cards, and transformers."""

import errno
import json
import logging
import re
import resource
import shutil
import signal
import sys
from pathlib import Path

import pytest
import timm
import torch
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny import deit_specs
from torch.utils.data import TensorDataset

import timm_stitch
from timm_stitch.training.sampling import uniform

IMAGES = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return timm.create_model("snnet", anchors=deit_specs(), stitched_norm=False, stitch_id=9).eval()


@pytest.fixture(scope="module")
def rows(net):
    return timm_stitch.evaluate(net, [(IMAGES, torch.arange(8) % 10)])


@pytest.fixture(scope="module")
def saved(net, rows, tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "net"
    return timm_stitch.save_pretrained(net, path, results=rows, dataset="acme/squares", split="test")


@pytest.fixture
def folder(net, saved, tmp_path):
    net.results.clear()
    return Path(shutil.copytree(saved, tmp_path / "net"))


def edit(file, change):
    data = json.loads(file.read_text())
    change(data)
    file.write_text(json.dumps(data))


# ── folders ───────────────────────────────────────────────────────────────────────────────────────────


def test_a_folder_loads_whole_and_in_part(net, rows, folder):
    whole = timm_stitch.from_hub(folder)
    assert torch.equal(whole(IMAGES), net(IMAGES))
    assert timm_stitch.select(whole, macs=rows[9]["macs"]) == timm_stitch.select(net, rows, macs=rows[9]["macs"])
    assert not whole.stitched_norm
    small = timm_stitch.from_hub(folder, extract=20)
    assert torch.equal(small(IMAGES), net(IMAGES, stitch_id=20))
    assert set(small.state_dict()) == set(net.extract(20).state_dict())
    assert timm_stitch.from_hub(folder, num_classes=3)(IMAGES).shape == (8, 3)


def test_rows_are_refused_once_the_weights_have_changed(folder):
    model = timm_stitch.from_hub(folder)
    chosen = timm_stitch.select(model, macs=1e9)
    assert timm_stitch.select(model, macs=1e9) == chosen
    with torch.no_grad():
        model.anchors[0].blocks[0].mlp.fc1.weight.mul_(1.5)
    with pytest.raises(ValueError, match="the results of this network belong to other weights"):
        timm_stitch.select(model, macs=1e9)


def test_loading_keeps_one_copy_and_nothing_unloaded(folder, net, monkeypatch):
    weights = load_file(folder / "model.safetensors")
    monkeypatch.setattr("timm.models._builder.load_state_dict", lambda *args, **kwargs: dict(weights))
    overlay = {"file": "any.safetensors"}
    model = timm.create_model("snnet", anchors=deit_specs(), pretrained=True, pretrained_cfg_overlay=overlay)
    own = dict(model.named_parameters())
    assert all(own[name].data_ptr() == weights[name].data_ptr() for name in own)
    again = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=4, in_chans=1)
    assert not any(t.is_meta for t in (*again.parameters(), *again.buffers()))
    assert again.get_classifier()[0].weight.std() > 0.01
    assert again.anchors[0].head.weight.requires_grad


def test_damaged_and_exchanged_weights(folder):
    file = folder / "model.safetensors"
    good = file.read_bytes()
    for bad, message in (
        (good[: len(good) // 2], "is not a readable weights file"),
        (b"", "is not a readable weights file"),
        (good[:-5] + b"wrong", "do not belong to stitches.json .*damaged or was replaced"),
    ):
        file.write_bytes(bad)
        with pytest.raises(ValueError, match=message) as caught:
            timm_stitch.from_hub(folder)
        assert "\n" not in str(caught.value)
    assert timm_stitch.from_hub(folder, verify=False).num_stitches == 35
    save_file({"other": torch.zeros(2)}, file)
    with pytest.raises(ValueError, match="these weights are not those of this network"):
        timm_stitch.from_hub(folder, verify=False)
    with pytest.raises(ValueError, match=r"is not a readable weights file .*of another network"):
        timm_stitch.from_hub(folder, extract=9)
    file.unlink()
    for extract in (None, 9):
        with pytest.raises(FileNotFoundError, match=r"there is no model.safetensors in"):
            timm_stitch.from_hub(folder, extract=extract)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda c: c.update(architecture="resnet18"),
            "names the architecture 'resnet18', which is not a stitchable network",
        ),
        (lambda c: c.update(architecture=["x"]), "which is not a stitchable network"),
        (lambda c: c["model_args"].update(checkpoint_path="/etc/passwd"), r"read other files \(checkpoint_path\)"),
        (lambda c: c["model_args"]["anchors"][0].update(pretrained=True), "anchor 0 .*read other files"),
        (
            lambda c: c["model_args"]["anchors"][0].update(architecture="local-dir:/tmp"),
            "timm has no model 'local-dir:/tmp'",
        ),
        (
            lambda c: c["model_args"]["anchors"][0].update(depth=10**9),
            "config.json: model_args.anchors.depth is 1000000000",
        ),
        (lambda c: c["model_args"].update(anchors=[{}] * 99), "at most 16 anchors"),
        (lambda c: c["model_args"].update(trust_remote_code=True), "cannot be built .*trust_remote_code"),
        (lambda c: c["model_args"].update(stitch_id=10**30), "config.json: model_args.stitch_id is 1000"),
        (lambda c: c.update(model_args=[1]), "model_args in config.json is a list"),
        (lambda c: c["pretrained_cfg"].update(file="../secret"), "names files of its own"),
        (lambda c: c["pretrained_cfg"].update(colour=1), "is not one of timm's"),
        (lambda c: c["pretrained_cfg"].update(input_size="big"), "expected a number of classes"),
        (lambda c: c.update(num_classes=-3), "num_classes=-3"),
        (
            lambda c: c["model_args"]["anchors"][0].update(embed_dim=64),
            "(are not those of this network|have another shape)",
        ),
        (lambda c: c["model_args"].update(plan={"version": 1, "anchors": 3}), "lacks or garbles a field"),
    ],
)
@pytest.mark.parametrize("extract", [None, 9])
def test_hostile_configs_are_refused_in_one_line(folder, change, message, extract):
    edit(folder / "config.json", change)
    with pytest.raises(ValueError, match=message) as caught:
        timm_stitch.from_hub(folder, extract=extract)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "[1]", "{", '{"a": NaN}', "[" * 100_000, '{"n": ' + "9" * 5000 + "}"])
def test_a_config_that_is_no_json_object_is_refused(folder, text):
    (folder / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"config.json (is not readable JSON|holds a list)"):
        timm_stitch.from_hub(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.update(stitches=[{"stitch_id": 99}]), "has a garbled row"),
        (lambda s: s["stitches"][0].update(top1=10**9), "has a garbled row"),
        (lambda s: s["stitches"][0].update(top1="<script>"), None),
        (lambda s: s["plan"]["stitches"].pop(), "has a garbled row"),
        (lambda s: (s["plan"]["stitches"].pop(), s["stitches"].pop()), "has another plan"),
        (lambda s: s.pop("plan"), "no stitch plan"),
        (lambda s: s.update(stitches=3), "lacks its fingerprint or its rows"),
    ],
)
def test_hostile_rows_are_left_out(folder, caplog, change, message):
    edit(folder / "stitches.json", change)
    with caplog.at_level(logging.WARNING, "timm_stitch"):
        model = timm.create_model(f"local-dir:{folder}", pretrained=True)
    if message:
        assert "the network loads without its rows: " in caplog.text
        assert re.search(message, caplog.text)
        assert not model.results.rows


def test_timm_refuses_arguments_that_read_files(folder):
    edit(folder / "config.json", lambda c: c["model_args"]["anchors"][0].update(checkpoint_path="/etc/passwd"))
    with pytest.raises(ValueError, match="asks timm to read other files"):
        timm.create_model(f"local-dir:{folder}", pretrained=True)


def test_what_cannot_be_made_again_is_refused(tmp_path, anchors):
    model = timm_stitch.stitch(anchors)
    model.anchors[0].blocks[0].mlp = torch.nn.Identity()
    with pytest.raises(ValueError, match="timm would make another network from these anchors' names"):
        timm_stitch.save_pretrained(model, tmp_path / "net")
    assert not (tmp_path / "net").exists()


def test_a_stitch_taken_out_is_not_saved_as_a_network(tmp_path, model):
    with pytest.raises(ValueError, match=r"a part of a larger network \(stitch 9\)[^\n]*save_file"):
        timm_stitch.save_pretrained(model.extract(9), tmp_path / "net")
    assert not (tmp_path / "net").exists()


def test_a_full_disk_leaves_the_folder_as_it_was(net, folder):
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, limits[1]))
    try:
        with pytest.raises(OSError, match=r"cannot write model\.safetensors: File too large$") as caught:
            timm_stitch.save_pretrained(net, folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.errno == errno.EFBIG
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


def test_a_folder_without_a_name_is_not_the_working_folder(net, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"must have a name, got '': give '\.' for the working folder"):
        timm_stitch.save_pretrained(net, "")
    assert list(tmp_path.iterdir()) == []
    assert (timm_stitch.save_pretrained(net, ".") / "config.json").exists()
    with pytest.raises(ValueError, match="output must be a folder, got ''"):
        timm_stitch.TrainConfig(output="")


@pytest.mark.parametrize("extract", [None, 9])
@pytest.mark.parametrize("how", ["a link to nothing", "a folder", "a link to itself"])
def test_a_fingerprint_that_cannot_be_read_is_refused(folder, how, extract):
    file = folder / "stitches.json"
    file.unlink()
    if how == "a folder":
        file.mkdir()
    else:
        file.symlink_to(file if how == "a link to itself" else folder / "nothing.json")
    with pytest.raises(
        ValueError, match=r"^stitches\.json is in [^\n]* cannot be read [^\n]*, or remove it to load[^\n]*$"
    ):
        timm_stitch.from_hub(folder, extract=extract)
    file.rmdir() if how == "a folder" else file.unlink()
    timm_stitch.from_hub(folder, extract=extract)


@pytest.mark.parametrize(
    "content", ["{", "[]", "\xff", "{}", '{"weights": null, "stitches": []}', '{"weights": 7}', "", "[" * 100_000]
)
@pytest.mark.parametrize("extract", [None, 0])
def test_a_fingerprint_that_cannot_be_read_is_an_error(folder, content, extract):
    (folder / "stitches.json").write_text(content, encoding="latin-1")
    with pytest.raises(ValueError, match=r"^stitches\.json is in [^\n]* cannot be read [^\n]*, or remove it"):
        timm_stitch.from_hub(folder, extract=extract)
    (folder / "stitches.json").unlink()
    timm_stitch.from_hub(folder, extract=extract)


# ── cards ─────────────────────────────────────────────────────────────────────────────────────────────


def test_every_figure_of_the_card_is_a_row(folder, rows):
    card = ModelCard.load(folder / "README.md")
    assert card.data.library_name == "timm"
    assert {"stitchable-neural-networks", "timm", "transformers"} <= set(card.data.tags)
    assert card.data.datasets == ["acme/squares"]
    frontier = timm_stitch.pareto_frontier(rows)
    told = {result.metric_config: result.metric_value for result in card.data.eval_results}
    wanted = {row["stitch_id"] for row in frontier} | {0, 1, 2}
    assert told == {f"stitch_id={k}": round(rows[k]["top1"], 3) for k in wanted}
    for line in re.findall(r"^\| (\d+) \| (.+) \|$", card.text, re.MULTILINE):
        cells, row = line[1].split(" | "), rows[int(line[0])]
        assert cells[0] == row["name"]
        assert float(cells[3].split(" ")[0]) == pytest.approx(row["top1"], abs=0.01)
    assert "curve.png" in card.text
    assert "split test, 8 images, on cpu" in card.text


def test_a_card_without_results_gives_no_accuracy(net, tmp_path):
    net.results.clear()
    folder = timm_stitch.save_pretrained(net, tmp_path / "net")
    card = (folder / "README.md").read_text()
    assert "has been evaluated yet, so no accuracy is given" in card
    assert "model-index" not in card
    assert not (folder / "curve.png").exists()


def test_without_matplotlib_there_is_no_picture(net, rows, tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    net.results.clear()
    folder = timm_stitch.save_pretrained(net, tmp_path / "net", results=rows)
    assert "the card has no picture of the curve: drawing needs matplotlib" in caplog.text
    assert not (folder / "curve.png").exists()
    assert "curve.png" not in (folder / "README.md").read_text()


def test_a_card_of_the_user_is_kept(net, rows, folder):
    (folder / "README.md").write_text("---\nlicense: mit\ntags: [mine]\n---\n# Mine\n\nText.\n")
    timm_stitch.save_pretrained(net, folder, results=rows, license="apache-2.0")
    card = (folder / "README.md").read_text()
    assert "# Mine\n\nText.\n" in card
    assert "license: mit" in card
    assert "on the frontier" in card
    (folder / "README.md").write_text("---\n: [\n---\n# Mine\n")
    with pytest.raises(ValueError, match=r"front matter of the existing README.md is not a YAML mapping"):
        timm_stitch.save_pretrained(net, folder, results=rows)


def test_training_is_told_and_forgets_old_rows(folder):
    model = timm_stitch.from_hub(folder)
    data = TensorDataset(IMAGES, torch.arange(8) % 10)
    config = timm_stitch.TrainConfig(epochs=1, batch_size=4, mixup=0, cutmix=0, workers=0, data_dir="/home/me/secret")
    timm_stitch.train(model, config, train_data=data, progress=False)
    assert not model.results.rows
    timm_stitch.save_pretrained(model, folder)
    card = (folder / "README.md").read_text()
    assert "Trained by `timm_stitch.train`: steps 2, " in card
    assert "secret" not in card
    assert timm_stitch.from_hub(folder).trained["runs"][0]["steps"] == 2


# ── transformers ──────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def hf(folder):
    transformers = pytest.importorskip("transformers")
    transformers.logging.set_verbosity_error()
    return transformers, folder


def test_auto_classes_and_pipeline(hf, net):
    transformers, folder = hf
    config = transformers.AutoConfig.from_pretrained(folder)
    assert (config.architecture, config.num_labels) == ("snnet", 10)
    model = transformers.AutoModelForImageClassification.from_pretrained(folder).eval()
    assert model.timm_model.stitched_norm == net.stitched_norm
    assert torch.equal(model(IMAGES).logits, net(IMAGES))
    assert torch.equal(model(IMAGES, stitch_id=20).logits, net(IMAGES, stitch_id=20))
    with pytest.raises(ValueError, match=r"these features came through stitch 20, .*set_stitch"):
        model(IMAGES, stitch_id=20, output_hidden_states=True)
    body = transformers.AutoModel.from_pretrained(folder).eval()
    assert torch.equal(body(IMAGES).last_hidden_state, net.forward_features(IMAGES))
    with pytest.raises(ValueError, match="these features came through stitch 20"):
        body(IMAGES, stitch_id=20)
    picture = Image.fromarray((torch.rand(40, 40, 3, generator=torch.Generator().manual_seed(0)) * 255).byte().numpy())
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    pixels = processor(picture, return_tensors="pt")["pixel_values"]
    pipe = transformers.pipeline("image-classification", model=str(folder), top_k=10)
    scores = {row["label"]: row["score"] for row in pipe(picture)}
    with torch.no_grad():
        expected = net(pixels).softmax(-1)[0]
    assert [scores[f"LABEL_{i}"] for i in range(10)] == pytest.approx(expected.tolist(), abs=1e-6)


def test_the_trainer_samples_stitches_and_its_output_loads_in_timm(hf, net, tmp_path):
    transformers, folder = hf
    model = transformers.AutoModelForImageClassification.from_pretrained(folder)
    drawn = []
    model.timm_model.register_forward_pre_hook(lambda module, args: drawn.append(module.stitch_id))
    data = [{"pixel_values": image, "labels": i % 10} for i, image in enumerate(IMAGES)]
    arguments = transformers.TrainingArguments(
        tmp_path / "out", max_steps=6, per_device_train_batch_size=4, report_to=[], use_cpu=True, seed=3,
        save_strategy="no", disable_tqdm=True, dataloader_pin_memory=False,
    )  # fmt: skip
    callback = timm_stitch.StitchSamplerCallback()
    trainer = transformers.Trainer(model, arguments, train_dataset=data, callbacks=[callback])
    trainer.train()
    assert drawn == [uniform(net.stitch_ids, 3, step) for step in range(6)]
    assert model.timm_model.stitch_id == 9
    trainer.save_model(str(tmp_path / "tuned"))
    again = timm.create_model(f"local-dir:{tmp_path / 'tuned'}", pretrained=True).eval()
    assert again.plan == net.plan
    assert (again.stitch_id, again.stitched_norm) == (9, False)
    with torch.no_grad():
        assert torch.equal(again(IMAGES, stitch_id=20), model.eval()(IMAGES, stitch_id=20).logits)
    assert timm_stitch.from_hub(tmp_path / "tuned", extract=3).num_stitches == 1
    with pytest.raises(TypeError, match=r"there is no stitched network in Linear"):
        callback.on_step_begin(arguments, None, None, model=torch.nn.Linear(1, 1))
