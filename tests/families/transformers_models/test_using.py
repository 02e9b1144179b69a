"""What is done with stitched networks of transformers' models: evaluated, timed, chosen, cascaded, trained."""

import pytest
import torch
import torch.nn.functional as F

hf = pytest.importorskip("transformers", minversion="5.20")

from tiny import bert, hf_vit, llama, texts  # noqa: E402

import timm_stitch  # noqa: E402


@pytest.fixture
def net():
    torch.manual_seed(0)
    return timm_stitch.stitch([bert(32, 3), bert(48, 4, seed=1)])


def batches(count=3, **args):
    return [texts(seed=seed, labels=True, **args) for seed in range(count)]


def test_evaluate_counts_right_texts(net):
    data = batches()
    rows = timm_stitch.evaluate(net, data)
    for row in rows:
        logits = torch.cat([net(**batch, stitch_id=row["stitch_id"]).logits for batch in data]).detach()
        labels = torch.cat([batch["labels"] for batch in data])
        assert row["top1"] == pytest.approx(100 * (logits.argmax(-1) == labels).float().mean().item())
        assert row["loss"] == pytest.approx(F.cross_entropy(logits, labels).item(), abs=1e-6)
        assert (row["texts"], row["length"]) == (12, 64)
    best = max(rows, key=lambda row: (row["top1"], -row["macs"]))
    assert timm_stitch.select(net, rows, macs=1e12) == best["stitch_id"]
    with pytest.raises(ValueError, match="this batch has no labels"):
        timm_stitch.evaluate(net, [texts()])


def test_evaluate_of_a_language_model_leaves_padding_out():
    net = timm_stitch.stitch([llama(32, 3), llama(48, 3, seed=1)])
    batch = texts(3, left=True)
    (row,) = timm_stitch.evaluate(net, [batch], stitch_ids=[3])
    mask = batch["attention_mask"]
    logits, targets = net(**batch, stitch_id=3).logits[:, :-1].detach(), batch["input_ids"][:, 1:]
    real = mask[:, 1:].bool()
    loss = F.cross_entropy(logits[real], targets[real]).item()
    assert row["loss"] == pytest.approx(loss, abs=1e-5)
    assert row["perplexity"] == pytest.approx(torch.tensor(loss).exp().item(), rel=1e-4)
    assert row["tokens"] == int(real.sum())


def test_evaluate_of_tokens_questions_and_images():
    tokens = timm_stitch.stitch([bert(w, 2, hf.BertForTokenClassification) for w in (32, 48)], kernel_size=1)
    labels = torch.randint(3, (4, 10))
    labels[0, :5] = -100
    (row,) = timm_stitch.evaluate(tokens, [texts() | {"labels": labels}], stitch_ids=[2])
    assert row["tokens"] == 35
    questions = timm_stitch.stitch(
        [bert(w, 2, hf.BertForQuestionAnswering, num_labels=2) for w in (32, 48)], kernel_size=1
    )
    out = questions(**texts(), stitch_id=2)
    places = {"start_positions": out.start_logits.argmax(-1), "end_positions": out.end_logits.argmax(-1)}
    places["end_positions"][0] = (places["end_positions"][0] + 1) % 10
    (row,) = timm_stitch.evaluate(questions, [texts() | places], stitch_ids=[2])
    assert row["top1"] == 75
    images = timm_stitch.stitch([hf_vit(32), hf_vit(48)], kernel_size=1)
    batch = {"pixel_values": torch.rand(4, 3, 32, 32), "labels": torch.tensor([0, 1, 2, 0])}
    assert timm_stitch.evaluate(images, [batch], stitch_ids=[2])[0]["images"] == 4


@pytest.mark.parametrize("name", ["stich_id", "stitch_ids", "stitch", "stitchid", "sttich_id"])
def test_a_misspelt_stitch_id_is_refused(net, name):
    with pytest.raises(TypeError, match=f"unexpected keyword argument '{name}': did you mean stitch_id"):
        net(**texts(), **{name: 0})
    net(**texts(), output_attentions=False, num_items_in_batch=4)


@pytest.mark.parametrize("make", [llama, hf_vit])
def test_a_misspelt_stitch_id_is_refused_by_other_tasks(make):
    net = timm_stitch.stitch([make(32), make(48)], kernel_size=1)
    with pytest.raises(TypeError, match="did you mean stitch_id"):
        net(**net.example(2), stich_id=0)
    if make is llama:
        with pytest.raises(ValueError, match="stich_id"):  # transformers' own check
            net.generate(**texts(), stich_id=0, max_new_tokens=2)


def test_the_length_of_costs_is_saved_with_the_network(net, tmp_path):
    net.length = 8
    rows = timm_stitch.evaluate(net, batches())
    timm_stitch.save_pretrained(net, tmp_path / "own", results=rows, check=False)
    net.save_pretrained(tmp_path / "transformers")
    for folder in ("own", "transformers"):
        loaded = timm_stitch.load(tmp_path / folder)
        table = loaded.stitch_table()
        assert loaded.length == 8
        assert [(r["macs"], r["length"]) for r in table] == [(r["macs"], 8) for r in rows]
        assert loaded.extract(2).stitch_table()[0]["macs"] == rows[2]["macs"]
    loaded = timm_stitch.load(tmp_path / "own")
    assert timm_stitch.select(loaded, macs=rows[0]["macs"]) == 0
    loaded.length = 16  # both follow
    assert [r["length"] for r in loaded.stitch_table()] == [16] * len(rows)
    assert loaded.stitch_table()[0]["macs"] == net.stitch_table(length=16)[0]["macs"] > rows[0]["macs"]


@pytest.mark.parametrize("length", [0, 65, 8.0, True])
def test_a_length_that_the_anchors_do_not_take_is_refused(net, length):
    with pytest.raises(ValueError, match=r"length=.* is out of range: the anchors take 1 to 64 tokens"):
        net.length = length
    assert net.length == 64


def test_a_saved_length_is_bounded(tmp_path):
    net = timm_stitch.stitch([llama(32, 2), llama(48, 2, seed=1)])
    with pytest.raises(ValueError, match="the anchors take 1 to 32768 tokens"):
        net.length = 1 << 40
    net.config.length = 1 << 30
    net.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="the anchors take 1 to 32768 tokens"):
        timm_stitch.load(tmp_path)


def test_profile_times_texts(net):
    net.length = 16
    rows = timm_stitch.profile(net, batch_sizes=[1, 2], repeats=2)
    assert all(row["latency_ms"] > 0 and row["memory_mb"] > 0 and row["latency_ms_batch_2"] > 0 for row in rows)
    assert all(row["texts_per_s"] > 0 and "images_per_s" not in row for row in rows)
    assert timm_stitch.select(net, [r | {"top1": 1.0} for r in rows], latency_ms=1e9) in net.stitch_ids
    with pytest.raises(ValueError, match="quick=True adds up parts, and models of transformers run as wholes"):
        timm_stitch.profile(net, quick=True)


def test_a_cascade_gives_each_text_from_one_of_the_two(net):
    data = batches()
    macs = {row["stitch_id"]: row["macs"] for row in net.stitch_table()}
    cascade = timm_stitch.find_cascade(net, data, macs=2 * max(macs.values()))
    assert cascade.top1 >= max(row["top1"] for row in timm_stitch.evaluate(net, data)) - 1e-6
    for dear in (1, 4):  # from the start, and on from what the cheap one left
        cascade = timm_stitch.Cascade(net, 2, dear, threshold=0.45)
        batch = texts(8)
        logits, unsure = cascade.run(batch)
        cheap, full = (net(**batch, stitch_id=k).logits for k in (2, dear))
        torch.testing.assert_close(logits, torch.where(unsure[:, None], full, cheap), rtol=0, atol=1e-5)


def test_the_latency_controller_runs_mappings(net):
    rows = [{"stitch_id": k, "top1": 10.0 + k, "latency_ms": 1.0 + k, "macs": k + 1} for k in net.stitch_ids]
    controller = timm_stitch.LatencyController(net, target_ms=1e4, rows=rows)
    batch = texts()
    assert torch.equal(controller(batch).logits, net(**batch, stitch_id=net.stitch_ids[-1]).logits)


def test_trainer_trains_another_stitch_each_step(net, tmp_path):
    data = [{name: v[0] for name, v in texts(1, seed=seed, labels=True).items()} for seed in range(12)]
    before = {name: p.detach().clone() for name, p in net.stitching_layers.named_parameters()}
    args = hf.TrainingArguments(
        output_dir=tmp_path, max_steps=8, per_device_train_batch_size=4, report_to="none", use_cpu=True, save_steps=8,
        disable_tqdm=True, learning_rate=1e-2,
    )  # fmt: skip
    trainer = hf.Trainer(
        net, args, train_dataset=data, eval_dataset=data, callbacks=[timm_stitch.StitchSamplerCallback()]
    )
    assert trainer.train().global_step == 8
    assert sum(not torch.equal(before[name], p) for name, p in net.stitching_layers.named_parameters()) >= 4
    assert net.stitch_id == 1
    assert trainer.evaluate()["eval_loss"] > 0
    again = hf.AutoModelForSequenceClassification.from_pretrained(tmp_path / "checkpoint-8")
    assert torch.equal(again(**texts(), stitch_id=3).logits, net.eval()(**texts(), stitch_id=3).logits)


QUIET = {"workers": 0, "warmup_epochs": 0, "trackers": None, "batch_size": 8, "smoothing": 0, "lr": 3e-3}


class Texts(torch.utils.data.Dataset):
    """Whether token 7 is in a text."""

    def __init__(self, count, length=8):
        generator = torch.Generator().manual_seed(count)
        self.ids = torch.randint(5, 30, (count, length), generator=generator)

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, index):
        ids = self.ids[index]
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": (ids == 7).any().long()}


def test_training_teaches_every_stitch_and_goes_on_where_it_was_stopped(net, tmp_path):
    data = Texts(160)
    config = timm_stitch.TrainConfig(epochs=3, **QUIET)
    before = timm_stitch.evaluate(net, torch.utils.data.DataLoader(data, 32))
    report = timm_stitch.train(net, config, train_data=data, progress=False)
    after = timm_stitch.evaluate(net, torch.utils.data.DataLoader(data, 32))
    assert report["steps"] == 60
    assert sum(row["loss"] for row in after) < 0.8 * sum(row["loss"] for row in before)

    def run(output, **more):
        torch.manual_seed(0)
        other = timm_stitch.stitch([bert(32, 3), bert(48, 4, seed=1)])
        config = timm_stitch.TrainConfig(epochs=3, output=str(output), **QUIET, **more)
        timm_stitch.train(other, config, train_data=data, val_data=Texts(16), progress=False)
        return other

    run(tmp_path / "b", max_steps=25, checkpoint_steps=25)
    resumed, whole = run(tmp_path / "b", resume=True), run(tmp_path / "a", evaluate_every=3)
    assert all(torch.equal(a, b) for a, b in zip(resumed.parameters(), whole.parameters(), strict=True))
    again = timm_stitch.from_hub(tmp_path / "a")
    assert torch.equal(again(**texts(), stitch_id=3).logits, whole.eval()(**texts(), stitch_id=3).logits)
    assert "Trained by `timm_stitch.train`" in (tmp_path / "a" / "README.md").read_text()


def test_training_with_less_memory_ends_with_the_same_weights():
    ends = []
    for less in (False, True):
        torch.manual_seed(0)
        net = timm_stitch.stitch([bert(32, 2), bert(48, 2, seed=1)], kernel_size=1)
        config = timm_stitch.TrainConfig(epochs=1, grad_checkpointing=less, channels_last=True, **QUIET)
        timm_stitch.train(net, config, train_data=Texts(32), progress=False)
        assert not net.grad_checkpointing
        ends.append(list(net.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


def test_training_a_language_model_with_a_collator_and_a_teacher(caplog):
    torch.manual_seed(0)
    net = timm_stitch.stitch([llama(32, 2), llama(48, 2, seed=1)], kernel_size=1)
    teacher = llama(64, 2, seed=2)
    data = [{"input_ids": list(range(5, 5 + n)), "attention_mask": [1] * n} for n in (6, 8, 10, 12) * 8]

    def padded(items):
        longest = max(len(item["input_ids"]) for item in items)
        rows = [{k: [0] * (longest - len(v)) + v for k, v in item.items()} for item in items]
        return {name: torch.tensor([row[name] for row in rows]) for name in rows[0]}

    before = timm_stitch.evaluate(net, [padded(data)])
    config = timm_stitch.TrainConfig(epochs=6, distillation="soft", distill_weight=0.1, stitches=2, **QUIET)
    timm_stitch.train(net, config, train_data=data, teacher=teacher, collate=padded, progress=False)
    after = timm_stitch.evaluate(net, [padded(data)])
    assert all(a["perplexity"] < b["perplexity"] for a, b in zip(after, before, strict=True))


def test_training_needs_data_at_hand(net):
    with pytest.raises(ValueError, match="this is a part of a larger network"):
        timm_stitch.train(net.extract(3), timm_stitch.TrainConfig(output="out"), train_data=[texts(1, labels=True)])
    with pytest.raises(ValueError, match="take data at hand, not images by name"):
        timm_stitch.train(net, timm_stitch.TrainConfig(data_dir="x", **QUIET))


def test_the_card_of_texts_has_no_fields_of_images_and_no_certain_accuracy(net, tmp_path):
    data = [{"input_ids": torch.tensor([5, 6, 7]), "labels": torch.tensor(i % 3)} for i in range(4)]
    config = timm_stitch.TrainConfig(epochs=1, batch_size=4, workers=0, warmup_epochs=0)
    timm_stitch.train(net, config, train_data=data, progress=False)
    (run,) = net.trained["runs"]
    assert {"lr", "smoothing", "epochs"} <= run.keys()
    assert not {"auto_augment", "hflip", "mixup", "crop_scale", "ignore_label"} & run.keys()
    timm_stitch.save_pretrained(net, tmp_path, results=timm_stitch.evaluate(net, batches()), check=False)
    card = (tmp_path / "README.md").read_text()
    assert "auto_augment" not in card
    assert "top-1" in card
    assert "top-5" not in card
