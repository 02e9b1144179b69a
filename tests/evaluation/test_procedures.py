"""Training, evaluation, choosing, keeping and drawing: on real if tiny runs."""

import json

import pytest
import timm
import torch
from tiny import deit_specs
from torch.utils.data import DataLoader, TensorDataset

import timm_stitch
from timm_stitch.evaluation.plotting import plot_curve
from timm_stitch.network.weights import fingerprint
from timm_stitch.plan.frontier import best_within, frontier_area
from timm_stitch.plan.results import read_rows, write_rows
from timm_stitch.training.sampling import uniform

QUIET = {"mixup": 0, "cutmix": 0, "workers": 0, "warmup_epochs": 0}


def squares(count=64):
    """Ten classes that differ in brightness: learnable in a few steps."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % 10
    images = torch.randn(count, 3, 32, 32, generator=generator) * 0.1 + (labels.float() / 5 - 1)[:, None, None, None]
    return TensorDataset(images, labels)


@pytest.fixture(scope="module")
def trained():
    torch.manual_seed(0)
    model = timm.create_model("snnet", anchors=deit_specs())
    data = squares()
    timm_stitch.least_squares_init(model, data.tensors[0])
    config = timm_stitch.TrainConfig(epochs=80, batch_size=32, lr=3e-3, **QUIET)
    log = timm_stitch.train(model, config, train_data=data, progress=False)
    rows = timm_stitch.evaluate(model, DataLoader(data, batch_size=24))
    return model, data, log, rows


def test_training_teaches_every_stitch(trained):
    _, _, log, rows = trained
    assert log["steps"] == 160
    assert log["images"] == 5120
    assert sum(row["top1"] for row in rows) / len(rows) > 50  # by chance 10
    assert sum(row["top1"] > 30 for row in rows) > 30


def test_rows_equal_one_stitch_at_a_time(trained):
    model, data, _, rows = trained
    images, labels = data.tensors
    table = {row["stitch_id"]: row for row in model.stitch_table()}
    for row in rows[::7]:
        with torch.no_grad():
            logits = model(images, stitch_id=row["stitch_id"])
        assert row["top1"] == pytest.approx(100 * (logits.argmax(-1) == labels).float().mean().item())
        assert row["loss"] == pytest.approx(torch.nn.functional.cross_entropy(logits, labels).item(), rel=1e-4)
        assert row["images"] == 64
        assert (row["macs"], row["params"]) == (table[row["stitch_id"]]["macs"], table[row["stitch_id"]]["params"])
        assert row["weights"] == fingerprint(model)


def test_evaluating_some_stitches_gives_their_rows(trained):
    model, data, _, rows = trained
    some = timm_stitch.evaluate(model, DataLoader(data, batch_size=64), stitch_ids=[20, 3])
    assert [row["stitch_id"] for row in some] == [3, 20]
    assert some[0]["top1"] == rows[3]["top1"]
    with pytest.raises(ValueError, match="stitch_id=99"):
        timm_stitch.evaluate(model, DataLoader(data), stitch_ids=[99])
    with pytest.raises(ValueError, match="the loader gave no images"):
        timm_stitch.evaluate(model, [])


def test_a_seed_gives_the_same_weights():
    def run(seed):
        torch.manual_seed(0)
        model = timm.create_model("snnet", anchors=deit_specs(), drop_path_rate=0.1)
        config = timm_stitch.TrainConfig(epochs=1, batch_size=32, seed=seed, **QUIET)
        timm_stitch.train(model, config, train_data=squares(), progress=False)
        return fingerprint(model)

    assert run(0) == run(0)
    assert run(0) != run(1)


@pytest.mark.parametrize("distillation", ["soft", "hard"])
def test_distillation_learns_from_the_teacher_alone(distillation):
    torch.manual_seed(0)
    model = timm.create_model("snnet", anchors=deit_specs())
    data = squares()

    class Teacher(torch.nn.Module):
        def forward(self, x):
            return 20 * torch.nn.functional.one_hot(torch.full((len(x),), 7), 10).float()

    config = timm_stitch.TrainConfig(
        epochs=10, batch_size=32, lr=3e-3, distillation=distillation, distill_weight=1.0, **QUIET
    )
    timm_stitch.train(model, config, train_data=data, teacher=Teacher(), progress=False)
    with torch.no_grad():
        assert (model(data.tensors[0], stitch_id=9).argmax(-1) == 7).all()


def test_a_parameter_that_no_step_used_is_left_alone():
    torch.manual_seed(0)
    model = timm.create_model("snnet", anchors=deit_specs())
    before = {k: v.clone() for k, v in model.named_parameters()}
    config = timm_stitch.TrainConfig(epochs=1, batch_size=64, lr=1e-2, **QUIET)
    timm_stitch.train(model, config, train_data=squares(), progress=False)
    used = dict(model.extract(uniform(model.stitch_ids, 0, 0)).named_parameters())
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) == (name not in used), name


def test_images_from_a_folder(tmp_path):
    from PIL import Image

    for split in ("train", "validation"):
        for label in range(10):
            folder = tmp_path / split / f"class{label}"
            folder.mkdir(parents=True)
            for n in range(2):
                Image.new("RGB", (40, 40), (label * 20, n, 0)).save(folder / f"{n}.png")
    model = timm.create_model("snnet", anchors=deit_specs())
    config = timm_stitch.TrainConfig(
        epochs=1, batch_size=10, data_dir=str(tmp_path), workers=0, output=str(tmp_path / "out")
    )
    log = timm_stitch.train(model, config, progress=False)
    assert log["steps"] == 2
    assert timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).num_stitches == 35


def test_uniform_sampling_is_a_function_of_seed_and_step():
    ids = tuple(range(71))
    drawn = [uniform(ids, 3, step) for step in range(7100)]
    assert drawn == [uniform(ids, 3, step) for step in range(7100)]
    assert drawn[:50] != [uniform(ids, 4, step) for step in range(50)]
    assert set(drawn) == set(ids)
    assert max(map(drawn.count, ids)) < 150


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"epochs": 0}, "epochs must be 1 or more, got 0"),
        ({"smoothing": 2}, "smoothing must be 0 to 1, got 2"),
        ({"distillation": "warm"}, "distillation must be one of none, soft, hard, got 'warm'"),
        ({"precision": "int4"}, "precision must be one of no, bf16, fp16, got 'int4'"),
        ({"teacher": "resnet18"}, "teacher='resnet18' has no effect: set distillation"),
    ],
)
def test_bad_configurations_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        timm_stitch.TrainConfig(**values)


def test_training_refuses_what_cannot_be_trained(model):
    with pytest.raises(ValueError, match=r"unknown fields batchsize \(did you mean batch_size\?\): the fields are"):
        timm_stitch.TrainConfig.from_dict({"batchsize": 3})
    with pytest.raises(ValueError, match="no images are named: set data_dir"):
        timm_stitch.train(model, timm_stitch.TrainConfig())
    with pytest.raises(ValueError, match="batch_size must be at most 64, the number of training items, got 1024"):
        timm_stitch.train(model, timm_stitch.TrainConfig(), train_data=squares())
    with pytest.raises(ValueError, match="needs a teacher"):
        timm_stitch.train(
            model, timm_stitch.TrainConfig(distillation="hard", batch_size=8, **QUIET), train_data=squares()
        )
    with pytest.raises(FloatingPointError, match="the loss is no longer finite"):
        timm_stitch.train(
            model,
            timm_stitch.TrainConfig(lr=1e30, batch_size=8, epochs=2, **QUIET),
            train_data=squares(),
            progress=False,
        )


def test_a_saved_network_loads_with_its_rows_and_settings(trained, tmp_path):
    model, data, _, rows = trained
    images = data.tensors[0][:4]
    model.set_stitch(9)
    folder = timm_stitch.save_pretrained(model, tmp_path / "net", results=rows)
    names = ["README.md", "config.json", "curve.png", "model.safetensors", "stitches.json"]
    assert sorted(p.name for p in folder.iterdir()) == names
    again = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    assert again.plan == model.plan
    assert again.stitch_id == 9
    for k in (0, 9, 30):
        assert torch.equal(again(images, stitch_id=k), model(images, stitch_id=k))
    kept = json.loads((folder / "stitches.json").read_text())
    assert timm_stitch.StitchPlan.from_dict(kept["plan"]) == model.plan
    assert kept["weights"] == fingerprint(again)
    assert [row["top1"] for row in kept["stitches"]] == [row["top1"] for row in rows]
    assert timm.create_model(f"local-dir:{folder}", pretrained=True, stitch_id=3, num_classes=4)(images).shape == (4, 4)
    model.set_stitch(2)


def test_stitched_models_at_hand_save_too(anchors, images, tmp_path):
    model = timm_stitch.stitch(anchors, kernel_size=3, stitched_norm=False).eval()
    folder = timm_stitch.save_pretrained(model, tmp_path / "net")
    again = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    assert again.plan == model.plan
    assert torch.equal(again(images, stitch_id=20), model(images, stitch_id=20))


def test_what_timm_cannot_rebuild_is_refused(tmp_path):
    from timm.models import VisionTransformer

    sizes = {"img_size": 32, "patch_size": 8, "num_classes": 10, "depth": 3}
    model = timm_stitch.stitch([VisionTransformer(embed_dim=w, num_heads=2, **sizes) for w in (32, 64)])
    with pytest.raises(ValueError, match=r"timm cannot make the anchor VisionTransformer again by name.*create_model"):
        timm_stitch.save_pretrained(model, tmp_path / "net")
    assert not (tmp_path / "net").exists()


def test_results_of_other_weights_are_refused(trained, anchors, tmp_path):
    *_, rows = trained
    other = timm_stitch.stitch(anchors)
    with pytest.raises(ValueError, match="results belong to other weights"):
        timm_stitch.save_pretrained(other, tmp_path / "net", results=rows)
    with pytest.raises(ValueError, match="results belong to other weights"):
        timm_stitch.select(other, rows, macs=1e9)


def test_select_gives_the_best_within_each_budget(trained):
    model, _, _, rows = trained
    budget = rows[1]["macs"]
    chosen = timm_stitch.select(model, rows, macs=budget)
    best = max(row["top1"] for row in rows if row["macs"] <= budget)
    assert rows[chosen]["top1"] == best
    few = timm_stitch.select(model, rows, macs=budget, params=rows[0]["params"] + 1)
    assert rows[few]["params"] <= rows[0]["params"]
    with pytest.raises(ValueError, match=r"no stitch fits \{'macs': 3\}: the smallest values"):
        timm_stitch.select(model, rows, macs=3)
    with pytest.raises(ValueError, match="give at least one budget"):
        timm_stitch.select(model, rows)
    with pytest.raises(ValueError, match=r"has no latency_ms .*timm_stitch.profile"):
        timm_stitch.select(model, rows, latency_ms=3)
    with pytest.raises(ValueError, match="no stitch of this network has a known top1"):
        timm_stitch.select(timm.create_model("snnet", anchors=deit_specs()), macs=1e9)


def test_the_frontier_has_the_rows_that_no_cheaper_one_beats():
    rows = [
        {"stitch_id": i, "macs": m, "top1": a} for i, (m, a) in enumerate([(1, 50), (2, 60), (3, 55), (4, 60), (5, 70)])
    ]
    assert [row["stitch_id"] for row in timm_stitch.pareto_frontier(rows)] == [0, 1, 4]
    assert best_within(rows, {"macs": 4})["stitch_id"] == 1
    assert frontier_area(rows[:1], 1, 100) == pytest.approx(50)
    two = [{"macs": 1, "top1": 0}, {"macs": 10, "top1": 100}]
    assert frontier_area(two, 1, 100) == pytest.approx(50)
    with pytest.raises(ValueError, match="stitch 0 has no top1"):
        timm_stitch.pareto_frontier([{"stitch_id": 0, "macs": 1}])


def test_rows_and_curve_on_disk(trained, tmp_path):
    *_, rows = trained
    write_rows(tmp_path / "out/rows.jsonl", rows)
    assert read_rows(tmp_path / "out/rows.jsonl") == rows
    path = plot_curve(rows, tmp_path / "out/curve.png", title="a curve", others={"again": rows})
    assert path.read_bytes().startswith(b"\x89PNG")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["curve.png", "rows.jsonl"]
    (tmp_path / "bad.jsonl").write_text("{}\n[1]\n")
    with pytest.raises(ValueError, match="line 2, is not a JSON object"):
        read_rows(tmp_path / "bad.jsonl")


@pytest.mark.parametrize("name", ["a$b^{$", "x$\\frac$", "$$"])
def test_names_with_dollars_are_no_formulas(tmp_path, name):
    pytest.importorskip("matplotlib")
    rows = [{"macs": 1.0, "top1": 50.0, "name": "a"}]
    assert plot_curve(rows, tmp_path / f"{name}.svg", title=name, others={name: rows}).exists()
