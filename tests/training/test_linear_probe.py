"""New classifiers begin with what the anchors know."""

import pytest
import timm
import torch
from PIL import Image
from tiny import deit_specs

import timm_stitch
from timm_stitch.training import linear_probe as probes
from timm_stitch.training.linear_probe import linear_probe


def coloured(count, seed):
    """Images whose class is their colour, with noise."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 5
    colours = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [0, 1, 1]])
    noise = torch.randn(count, 3, 32, 32, generator=generator)
    return colours[labels][:, :, None, None] + 0.5 * noise, labels


def rates(net, images, labels):
    return [row["top1"] for row in timm_stitch.evaluate(net, [(images, labels)], [0, net.plan.anchor_id(1)])]


def test_a_fit_is_ridge_regression_and_rated_by_images_left_out(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, 6, generator=generator, dtype=torch.float64) * torch.arange(1, 7) + 3
    labels = (x @ torch.randn(6, 3, generator=generator, dtype=torch.float64)).argmax(1)
    monkeypatch.setattr(probes, "RIDGES", (0.1,))
    monkeypatch.setattr(probes, "SCALES", (1.0,))
    weight, bias, rate = probes._fit(x, labels, 3)

    def by_hand(x, labels, strength):
        y = torch.nn.functional.one_hot(labels, 3).double()
        centred = x - x.mean(0)
        solution = torch.linalg.solve(
            centred.T @ centred + strength * torch.eye(6, dtype=torch.float64), centred.T @ (y - y.mean(0))
        )
        return solution.T, y.mean(0) - x.mean(0) @ solution

    strength = 0.1 * torch.linalg.svdvals(x - x.mean(0)).square().mean()
    torch.testing.assert_close((weight, bias), by_hand(x, labels, strength))
    right = 0
    for n in range(40):
        others = [i for i in range(40) if i != n]
        w, b = by_hand(x[others], labels[others], strength)
        right += int((w @ x[n] + b).argmax() == labels[n])
    assert rate == pytest.approx(100 * right / 40, abs=2.6)


def test_classifiers_are_fitted_to_labelled_images():
    torch.manual_seed(0)
    net = timm.create_model("snnet", anchors=deit_specs(depth=2, num_classes=5)).eval()
    test = coloured(200, 1)
    before = rates(net, *test)
    body = net.anchors[0].blocks[0].attn.qkv.weight.clone()
    left_out = linear_probe(net, [coloured(60, 2), coloured(60, 3)], images=100)
    after = rates(net, *test)
    assert min(after) > 90
    assert min(before) < 50
    assert min(left_out) > 85
    assert torch.equal(net.anchors[0].blocks[0].attn.qkv.weight, body)
    losses = [row["loss"] for row in timm_stitch.evaluate(net, [test], [0, 1])]
    assert max(losses) < 0.7  # the logits have a scale that says so
    with pytest.raises(ValueError, match="there are no images to fit classifiers to"):
        linear_probe(net, [])


def test_other_classifiers_are_left_as_they_are(caplog):
    sizes = {"num_heads": 2, "depth": 2, "img_size": 32, "patch_size": 8, "num_classes": 5}
    anchors = [
        timm.create_model(name, embed_dim=w, **sizes)
        for name, w in (("deit_tiny_distilled_patch16_224", 32), ("deit_small_distilled_patch16_224", 64))
    ]
    before = [head.weight.clone() for anchor in anchors for head in anchor.get_classifier()]
    net = timm_stitch.stitch(anchors)
    assert linear_probe(net, [coloured(20, 0)]) == [None, None]
    assert "the classifier of anchor 0 is left as it is" in caplog.text
    after = [head.weight for anchor in anchors for head in anchor.get_classifier()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_a_recipe_begins_with_a_linear_probe(tmp_path):
    for split in ("train", "validation"):
        images, labels = coloured(40, len(split))
        for n, (image, label) in enumerate(zip(images, labels, strict=True)):
            (tmp_path / split / f"c{label}").mkdir(parents=True, exist_ok=True)
            pixels = (image.clamp(0, 1) * 255).byte().permute(1, 2, 0).numpy()
            Image.fromarray(pixels).save(tmp_path / split / f"c{label}" / f"{n}.png")
    args = {"anchors": deit_specs(depth=2, num_classes=5), "num_classes": 5}
    values = {
        "model_args": args, "pretrained": False, "data_dir": str(tmp_path), "max_steps": 1, "batch_size": 4,
        "lr": 1e-6, "min_lr": 1e-6, "workers": 0, "auto_augment": None, "warmup_epochs": 0,
        "evaluate_every": 0, "init_images": 0,
    }  # fmt: skip
    test = coloured(100, 9)
    found = []
    for count in (0, 40):
        torch.manual_seed(0)
        net, _ = timm_stitch.train_recipe("folder", values | {"init_classifiers": count}, progress=False)
        found.append(max(rates(net, (test[0] - 0.5) / 0.5, test[1])))
    assert found[1] > found[0] + 30


CLASSES = ["c0", "c1", "c2", "c3", "c4"]


@pytest.mark.parametrize(
    ("names", "count", "outcome"),
    [
        (CLASSES, 5, "kept"),
        (None, 5, "kept"),
        (CLASSES[::-1], 5, "reordered"),
        (["ant", "bee", "cat", "dog", "emu"], 5, "fitted"),
        (None, 7, "fitted"),
    ],
    ids=["the same classes", "as many unnamed", "another order", "other classes", "another number"],
)
def test_a_pretrained_classifier_of_these_classes_stays(tmp_path, capsys, caplog, names, count, outcome):
    for split in ("train", "validation"):
        for label in CLASSES:
            (tmp_path / split / label).mkdir(parents=True)
            for n in range(4):
                Image.effect_noise((32, 32), 30 + 9 * n).convert("RGB").save(tmp_path / split / label / f"{n}.png")
    before = []
    for spec in deit_specs(depth=2, num_classes=count)[:2]:
        anchor = timm.create_model(spec["architecture"], **{k: v for k, v in spec.items() if k != "architecture"})
        anchor.pretrained_cfg = {**anchor.pretrained_cfg, **({"label_names": names} if names else {})}
        torch.nn.init.normal_(anchor.head.weight)
        kept = {k: v for k, v in spec.items() if k not in ("architecture", "num_classes")}
        timm.models.save_for_hf(anchor, tmp_path / spec["architecture"], {"label_names": names}, model_args=kept)
        before.append(anchor.head.weight.detach().clone())
    args = {"anchors": [f"local-dir:{tmp_path / s['architecture']}" for s in deit_specs()[:2]], "num_classes": 5}
    values = {
        "model_args": args, "data_dir": str(tmp_path), "max_steps": 1, "batch_size": 4, "lr": 0.0, "min_lr": 0.0,
        "warmup_lr": 0.0, "workers": 0, "auto_augment": None, "evaluate_every": 0, "init_images": 0,
    }  # fmt: skip
    net, _ = timm_stitch.train_recipe("folder", values, progress=outcome != "reordered")
    after = [anchor.head.weight for anchor in net.anchors]
    if outcome != "fitted":
        assert all(torch.equal(a, b if outcome == "kept" else b.flip(0)) for a, b in zip(after, before, strict=True))
    else:
        assert not any(a.shape == b.shape and torch.equal(a, b) for a, b in zip(after, before, strict=True))
    err = capsys.readouterr().err
    if outcome == "kept":
        assert "classifiers fitted to these images: none; kept, as trained on these classes: anchor 0, 1." in err
    if outcome == "fitted":
        assert "classifiers fitted to these images: anchor 0 (" in err
        assert ("anchor 0 classifies others (ant, …): its classifier is replaced" in caplog.text) == (names is not None)


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (lambda x: x, {"images": 0}, "images must be 1 or more, got 0"),
        (lambda x: x, {"keep": [2]}, r"keep must name anchors from 0 to 1, got \[2\]"),
        (lambda x: x * float("nan"), {}, "give different images, with finite values"),
        (lambda x: x[:1].expand_as(x), {}, "give different images, with finite values"),
    ],
)
def test_a_fit_that_cannot_be_leaves_the_network(change, options, message):
    net = timm.create_model("snnet", anchors=deit_specs(num_classes=5)[:2])
    before = {name: value.clone() for name, value in net.state_dict().items()}
    images, labels = coloured(10, 0)
    with pytest.raises(ValueError, match=message):
        linear_probe(net, [(change(images), labels)], **options)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
