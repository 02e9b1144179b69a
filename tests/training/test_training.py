"""What a step does to which parameter; several stitches a step; evaluation that resumes; BatchNorm."""

import pytest
import timm
import torch
from torch.utils.data import DataLoader, TensorDataset
from training_run import BASE_QUIET, Noisy, go, network

import timm_stitch
from timm_stitch.data.loader import EpochBatches, build_loader
from timm_stitch.network.weights import fingerprint
from timm_stitch.plan.results import read_rows, write_rows
from timm_stitch.training.optimizer import make_optimizer, make_scheduler, parameter_groups
from timm_stitch.training.sampling import make_rule, uniform

ONE = {"epochs": 1, "batch_size": 64, "lr": 1e-2}


def config(**values):
    return timm_stitch.TrainConfig.from_dict(BASE_QUIET | values)


def test_dense_updates_decay_what_a_step_did_not_use():
    before = dict(network().named_parameters())
    model, _ = go(ONE | {"dense_updates": True})
    used = dict(model.extract(uniform(model.stitch_ids, 0, 0)).named_parameters())
    unused = [name for name, p in model.named_parameters() if name not in used and p.ndim > 1 and "embed" not in name]
    assert unused
    for name in unused:  # a zero gradient moves nothing, and AdamW decays by 1 - lr * weight_decay
        torch.testing.assert_close(model.get_parameter(name), before[name] * (1 - 1e-2 * 0.05))


def test_only_stitching_layers_learn_if_so_asked():
    before = {name: p.clone() for name, p in network().named_parameters()}
    model, _ = go({"epochs": 4, "batch_size": 16, "lr": 1e-2, "tune": "stitches"})
    changed = {name.split(".")[0] for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {"stitching_layers"}
    assert all(p.requires_grad for p in model.parameters())
    assert not model.training


def test_parameter_groups_follow_timm_and_scale_learning_rates():
    model = network()
    values = config(
        lr=1.0, anchor_lr_scale=0.1, stitch_lr_scale=2.0, weight_decay=0.3, warmup_epochs=0, epochs=2, min_lr=0
    )
    groups = parameter_groups(model, values)
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))
    names = {id(p): name for name, p in model.named_parameters()}
    for group in groups:
        for p in group["params"]:
            name = names[id(p)]
            assert group["lr_scale"] == (2.0 if name.startswith("stitching_layers") else 0.1)
            exempt = p.ndim <= 1 or name in model.no_weight_decay()
            assert group["weight_decay"] == (0.0 if exempt else 0.3), name
    optimizer = make_optimizer(model, values)
    scheduler = make_scheduler(optimizer, values, steps=10)
    scheduler.step_update(10)  # half of a cosine
    assert {round(group["lr"], 6) for group in optimizer.param_groups} == {0.05, 1.0}
    constant = make_optimizer(model, config(lr=1.0, sched="none", stitch_lr_scale=2.0))
    assert {group["lr"] for group in constant.param_groups} == {1.0, 2.0}


def test_several_stitches_in_a_step_have_the_mean_of_their_gradients():
    drawn = []
    model, _ = go(
        ONE
        | {
            "stitches": 3,
            "opt": "momentum",
            "momentum": 0,
            "weight_decay": 0,
            "smoothing": 0,
            "lr": 1.0,
            "sched": "none",
        }
    )
    fresh = network().train()
    rule = make_rule("uniform", dict.fromkeys(fresh.stitch_ids, 1), 0, anchors=(2, 1, 0), stitches=3)
    drawn = rule(0)
    order = EpochBatches(Noisy(), 64, 1, 0).order(0)
    images = torch.stack([Noisy()[i][0] for i in order])
    labels = torch.tensor([i % 10 for i in order])
    loss = sum(torch.nn.functional.cross_entropy(fresh(images, stitch_id=k), labels) for k in drawn) / 3
    loss.backward()
    for name, p in fresh.named_parameters():
        expected = p if p.grad is None else p - p.grad
        torch.testing.assert_close(model.get_parameter(name), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("sampling", ["sandwich", "anchors"])
def test_the_largest_anchor_teaches_in_place(sampling):
    """Labels reach the largest anchor only: the stem of the smallest learns what the largest says."""
    model, log = go(
        {"epochs": 6, "batch_size": 16, "lr": 3e-3, "sampling": sampling, "stitches": 2, "inplace_distillation": True}
    )
    assert log["steps"] == 24
    data = Noisy()
    images = torch.stack([data[i][0] for i in range(64)])
    with torch.no_grad():
        large, small = (model(images, stitch_id=k).softmax(-1) for k in (2, 0))
        before = network()
        apart = (before(images, stitch_id=2).softmax(-1) - before(images, stitch_id=0).softmax(-1)).abs().mean()
    assert (large.argmax(-1) == torch.arange(64) % 10).float().mean() > 0.3
    assert apart > 0
    assert (large - small).abs().mean() < (large - 0.1).abs().mean()


def test_a_teacher_sees_images_as_it_is_used_to():
    from timm_stitch.training.distillation import Teacher

    seen = []

    class Network(torch.nn.Module):
        pretrained_cfg = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}  # noqa: RUF012

        def forward(self, x):
            seen.append(x)
            return x.mean((2, 3))

    plain, ours = torch.rand(2, 3, 4, 4), {"mean": (0.1, 0.2, 0.3), "std": (0.2, 0.3, 0.4)}
    mean, std = (torch.tensor(ours[key])[:, None, None] for key in ("mean", "std"))
    assert not Teacher(Network(), ours)((plain - mean) / std).requires_grad
    torch.testing.assert_close(seen[0], (plain - 0.5) / 0.5)
    Teacher(Network(), Network.pretrained_cfg)(plain)
    assert seen[1] is plain


def test_a_teacher_of_one_size_sees_images_of_that_size():
    from timm_stitch.training.distillation import Teacher, find_teacher

    small = {"embed_dim": 16, "depth": 1, "num_heads": 1, "num_classes": 10, "patch_size": 16}
    teacher = timm.create_model("vit_tiny_patch16_224", img_size=48, **small)
    assert Teacher(teacher)(torch.rand(2, 3, 32, 32)).shape == (2, 10)
    grey = timm.create_model("vit_tiny_patch16_224", img_size=32, in_chans=1, **small)
    with pytest.raises(ValueError, match="has 1 channels, the network 3"):
        find_teacher(config(distillation="hard"), grey, network())


def test_an_extracted_stitch_is_evaluated_while_it_trains(tmp_path):
    data, values = Noisy(), {"epochs": 1, "batch_size": 32, "evaluate_every": 1}
    small = network().extract(5, copy=True)
    assert timm_stitch.train(small, config(**values), train_data=data, val_data=data, progress=False)["steps"] == 2
    with pytest.raises(ValueError, match="part of a larger network"):  # and not after the last step
        timm_stitch.train(small, config(**values, output=str(tmp_path / "out")), train_data=data, progress=False)
    assert not (tmp_path / "out").exists()


def test_the_launcher_does_not_divide_losses_again(monkeypatch):
    values = ONE | {"opt": "sgd"}
    alone, _ = go(values)
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    launched, _ = go(values)
    assert fingerprint(launched) == fingerprint(alone)


def test_a_tracker_that_is_missing_is_named():
    with pytest.warns(match="no supported trackers"), pytest.raises(ImportError, match="'clearml': clearml is not"):
        go(ONE | {"trackers": "clearml"})


def test_the_average_of_the_weights_is_what_the_run_gives():
    plain, _ = go(ONE)
    averaged, _ = go(ONE | {"ema_decay": 0.75})
    for (name, start), end in zip(network().named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(averaged.get_parameter(name), 0.75 * start + 0.25 * end)


@pytest.mark.parametrize("values", [{"clip_grad": 1.0}, {"clip_grad": 0.01, "clip_mode": "agc"}, {"precision": "bf16"}])
def test_clipping_and_precision_change_the_weights_and_train(values):
    plain, _ = go(ONE | {"opt": "sgd"})
    other, log = go(ONE | {"opt": "sgd"} | values)
    assert log["loss"] == pytest.approx(2.4, abs=0.5)
    assert fingerprint(plain) != fingerprint(other)


def test_each_epoch_reads_every_image_once_in_an_order_of_its_seed():
    data = Noisy(64)
    batches = EpochBatches(data, 16, 2, seed=5)
    first = list(batches)
    assert len(first) == len(batches) == 4
    assert sorted(index for batch in first for index, *_ in batch) == list(range(64))
    batches.begin(0, start=1)
    assert list(batches) == first[2:]
    batches.begin(1)
    assert next(iter(batches)) != first[0]
    repeated = EpochBatches(data, 16, 1, seed=5, repeated_aug=2).order(0)
    assert len(repeated) == 64
    assert len(set(repeated)) == 32
    assert repeated[0] == repeated[1]


def test_images_do_not_depend_on_workers():
    def read(workers):
        loader, _ = build_loader(Noisy(32, augmented=True), config(batch_size=8, workers=workers), 1)
        return torch.cat([images for images, _ in loader])

    assert torch.equal(read(0), read(2))


class Endless(torch.utils.data.IterableDataset):
    """Images in an order of their own, fewer than they say."""

    def __len__(self):
        return 64

    def __iter__(self):
        data = Noisy()
        return (data[i] for i in range(40))


def test_images_that_come_in_an_order_of_their_own():
    log = timm_stitch.train(network(), config(epochs=2, batch_size=16), train_data=Endless(), progress=False)
    assert log["steps"] == 8


def test_trackers_take_the_losses_by_macs(tmp_path):
    from accelerate.tracking import GeneralTracker

    seen = []

    class Tracker(GeneralTracker):
        name, requires_logging_directory, tracker = "ours", False, None

        def store_init_configuration(self, values):
            seen.append(values["lr"])

        def log(self, values, step=None, **kwargs):
            seen.append(values)

    original = timm_stitch.training.metrics.tracker_names
    try:
        timm_stitch.training.trainer.tracker_names = lambda config: [Tracker()]
        timm_stitch.train(network(), config(**ONE), train_data=Noisy(), progress=False)
    finally:
        timm_stitch.training.trainer.tracker_names = original
    assert seen[0] == 1e-2
    assert any(name.startswith("loss/≤") for name in seen[1])
    assert original(config(trackers=["wandb"])) == ["wandb"]
    assert original(config(trackers="none")) == original(config(trackers="auto")) == []


# ── evaluation ────────────────────────────────────────────────────────────────────────────────────────


def test_evaluation_takes_up_where_it_was(tmp_path, monkeypatch):
    model, loader, file = network().eval(), DataLoader(Noisy(20), batch_size=7), tmp_path / "rows.jsonl"
    whole = timm_stitch.evaluate(model, loader)
    other = [row | {"weights": "other"} for row in whole]
    write_rows(file, other)
    timm_stitch.evaluate(model, loader, [0, 1, 5], results=file)
    assert len(read_rows(file)) == len(other) + 3
    ran = []
    original = type(model).forward_each
    monkeypatch.setattr(type(model), "forward_each", lambda self, x, ids: (ran.append(ids), original(self, x, ids))[1])
    assert timm_stitch.evaluate(model, loader, results=file, passes=3) == whole
    assert not {0, 1, 5} & {i for ids in ran for i in ids}
    assert len({tuple(ids) for ids in ran}) == 3
    assert len(read_rows(file)) == len(other) + len(whole)
    ran.clear()
    assert timm_stitch.evaluate(model, loader, results=file) == whole
    assert not ran
    assert timm_stitch.evaluate(model, DataLoader(Noisy(10), batch_size=5), [1], results=file)[0]["images"] == 10
    with pytest.raises(ValueError, match="passes must be 1 or more, got 0"):
        timm_stitch.evaluate(model, loader, passes=0)


class TokenNorm(torch.nn.BatchNorm1d):
    """BatchNorm of the channels of tokens (B, N, C)."""

    def forward(self, x):
        return super().forward(x.transpose(1, 2)).transpose(1, 2)


def batch_normed():
    torch.manual_seed(0)
    sizes = {"img_size": 64, "patch_size": 16, "num_classes": 4, "depth": 3, "num_heads": 2, "norm_layer": TokenNorm}
    return timm_stitch.stitch([timm.models.VisionTransformer(embed_dim=width, **sizes) for width in (16, 32)]).eval()


def test_statistics_are_measured_again():
    model = batch_normed()
    images = torch.randn(8, 3, 64, 64) * 2 + 1
    stitch_id = model.stitch_ids[-1]
    before = {k: v.clone() for k, v in model.state_dict().items()}
    statistics = timm_stitch.recalibrate(model, [images[:4], images[4:]], stitch_id)
    small = model.extract(stitch_id)
    norms = {n for n, m in small.named_modules() if isinstance(m, torch.nn.BatchNorm1d)}
    assert {key.rpartition(".")[0] for key in statistics} == norms
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]) == (key not in statistics), key
    first = next(n for n, m in small.named_modules() if isinstance(m, torch.nn.BatchNorm1d))
    assert statistics[f"{first}.num_batches_tracked"] == 2
    assert not any(m.training for m in model.modules())
    assert all(m.momentum == 0.1 for m in model.modules() if isinstance(m, torch.nn.BatchNorm1d))
    # with the statistics of one batch, eval mode gives what train mode gives
    timm_stitch.recalibrate(model, DataLoader(TensorDataset(images, torch.zeros(8)), batch_size=8), stitch_id)
    with torch.no_grad():
        evaluated, trained = model(images, stitch_id=stitch_id), model.train()(images, stitch_id=stitch_id)
    torch.testing.assert_close(evaluated, trained, rtol=0.2, atol=0.05)  # the variance is the unbiased one


def test_shared_statistics_and_networks_without():
    model = batch_normed()
    shared = timm_stitch.recalibrate(model, [torch.randn(4, 3, 64, 64)])
    assert {key.split(".")[1] for key in shared} == {"0", "1"}
    assert timm_stitch.recalibrate(network(), [torch.randn(4, 3, 32, 32)]) == {}
    with pytest.raises(ValueError, match="nothing to measure on: the loader gave no images"):
        timm_stitch.recalibrate(model, [])
    with pytest.raises(ValueError, match="stitch_id=99"):
        timm_stitch.recalibrate(model, [], 999)


@pytest.mark.parametrize(
    ("values", "kept"), [({}, False), ({"freeze_statistics": True}, True), ({"tune": "stitches"}, True)]
)
def test_batch_norm_statistics_are_kept_or_measured_as_configured(values, kept):
    model = batch_normed()
    before = {name: buffer.clone() for name, buffer in model.named_buffers() if "running" in name}
    weight = model.anchors[0].blocks[0].norm1.weight.clone()
    data = TensorDataset(torch.randn(16, 3, 64, 64) + 3, torch.arange(16) % 4)
    run = config(epochs=2, batch_size=8, lr=1e-2, trackers=None, evaluate_every=1, sampling="anchors", **values)
    timm_stitch.train(model, run, train_data=data, val_data=data, progress=False)
    same = [torch.equal(model.get_buffer(name), buffer) for name, buffer in before.items()]
    assert before
    assert all(same) if kept else not any(same)
    assert torch.equal(model.anchors[0].blocks[0].norm1.weight, weight) == ("tune" in values)
    assert all(module.training is False for module in model.modules())


def test_a_family_with_batch_norm_trains(tmp_path):
    log = timm_stitch.train(
        batch_normed(),
        config(epochs=1, batch_size=8, opt="sgd", tune="stitches", trackers=None),
        train_data=TensorDataset(torch.randn(16, 3, 64, 64), torch.arange(16) % 4),
        progress=False,
    )
    assert log["steps"] == 2
