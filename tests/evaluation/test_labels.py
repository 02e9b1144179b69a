"""Labels that are not class numbers: the figures of those that they stand for, or one line."""

import pytest
import torch
from tiny import bert, images, vits

import timm_stitch
from timm_stitch.training.linear_probe import linear_probe

LABELS = torch.tensor([0, 3, 4, 2])
ONE_HOT = torch.eye(10)[LABELS]
MIXED = 0.7 * ONE_HOT + 0.3 * ONE_HOT.roll(1, 0)
TRAIN = {"epochs": 1, "batch_size": 4, "workers": 0, "warmup_epochs": 0, "trackers": None, "lr": 0.0, "min_lr": 0.0}


@pytest.fixture(scope="module")
def net():
    return timm_stitch.stitch(vits()).eval()


@pytest.fixture(scope="module")
def texts():
    return {"input_ids": torch.randint(5, 99, (4, 10), generator=torch.Generator().manual_seed(0))}


def figures(net, labels):
    rows = timm_stitch.evaluate(net, [(images(4), labels)])
    return [(row["top1"], row["top5"], row["loss"], row["images"]) for row in rows]


@pytest.mark.parametrize(
    "labels",
    [ONE_HOT, ONE_HOT.long(), ONE_HOT.bool(), LABELS.int(), LABELS.to(torch.uint8), LABELS.tolist(), LABELS.numpy()],
    ids=["one-hot", "whole one-hot", "true and false", "int32", "uint8", "list", "numpy"],
)
def test_labels_that_stand_for_class_numbers_give_their_figures(net, labels):
    assert figures(net, labels) == figures(net, LABELS)


def test_labels_of_minus_100_are_left_out(net):
    rows = figures(net, torch.tensor([0, -100, 4, -100]))
    expected = timm_stitch.evaluate(net, [(images(4)[::2], LABELS[::2])])
    assert [row[0] for row in rows] == [row["top1"] for row in expected]
    assert [row[2] for row in rows] == pytest.approx([row["loss"] for row in expected])
    assert rows[0][3] == 2


STRANGE = {
    "mixed": (MIXED, "class numbers"),
    "multi-label": (ONE_HOT + ONE_HOT.roll(1, 0), "class numbers"),
    "whole multi-label": ((ONE_HOT + ONE_HOT.roll(1, 0)).long(), "class numbers"),
    "regression": (LABELS.float(), "class numbers"),
    "a column": (LABELS[:, None], "class numbers"),
    "two columns": (torch.eye(2)[LABELS % 2].long(), "class numbers"),
    "too few": (LABELS[:2], "class numbers"),
    "of other classes": (LABELS + 8, "from 0 to 9"),
    "negative": (LABELS - 1, "from 0 to 9"),
    "names": (["ant", "bee", "cat", "dog"], "class numbers"),
}


@pytest.mark.parametrize(("labels", "message"), STRANGE.values(), ids=STRANGE)
@pytest.mark.parametrize("verb", ["evaluate", "find_cascade", "linear_probe"])
def test_labels_that_are_no_classes_are_one_line(net, verb, labels, message):
    batch = [(images(4), labels)]
    with pytest.raises(ValueError, match=rf"labels must be [^\n]*{message}[^\n]*$"):
        {
            "evaluate": lambda: timm_stitch.evaluate(net, batch),
            "find_cascade": lambda: timm_stitch.find_cascade(net, batch, macs=1e12),
            "linear_probe": lambda: linear_probe(net, batch),
        }[verb]()


def test_a_cascade_and_a_linear_probe_take_one_hot_labels():
    first, second = (
        timm_stitch.find_cascade(timm_stitch.stitch(vits()), [(images(4), y)], macs=1e12) for y in (LABELS, ONE_HOT)
    )
    assert (first.top1, first.threshold) == (second.top1, second.threshold)
    nets = [timm_stitch.stitch(vits()).eval() for _ in range(2)]
    assert linear_probe(nets[0], [(images(4), LABELS)]) == linear_probe(nets[1], [(images(4), ONE_HOT)])
    assert torch.equal(nets[0](images(2)), nets[1](images(2)))


def loss(net, labels, **config):
    data = list(zip(images(4), labels, strict=True))
    return timm_stitch.train(net, timm_stitch.TrainConfig(**TRAIN | config), train_data=data, progress=False)["loss"]


@pytest.mark.parametrize("mixing", [{"mixup": 0, "cutmix": 0}, {"mixup": 0.8, "cutmix": 1.0}], ids=["plain", "mixup"])
def test_training_takes_one_hot_labels(net, mixing):
    assert loss(net, ONE_HOT, **mixing) == loss(net, LABELS, **mixing) == loss(net, ONE_HOT.long(), **mixing)


def test_training_takes_mixed_labels_that_sum_to_one(net):
    alone = net.extract(1, copy=True)
    expected = -(MIXED * alone(images(4)).log_softmax(-1)).sum(1).mean().item()
    assert loss(alone, MIXED, mixup=0, cutmix=0) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("labels", "config", "message"),
    [
        (MIXED, {}, "must be class numbers for mixup=0.8"),
        (
            ONE_HOT + ONE_HOT.roll(1, 0),
            {"mixup": 0, "cutmix": 0},
            "must be probabilities of classes, .* sums of 2 to 2",
        ),
        (LABELS.float(), {"mixup": 0, "cutmix": 0}, r"must be class numbers of shape \(4,\)"),
        (torch.eye(5)[LABELS], {"mixup": 0, "cutmix": 0}, r"must be class numbers of shape \(4,\)"),
        (LABELS + 8, {"mixup": 0, "cutmix": 0}, "must be from 0 to 9"),
    ],
    ids=["mixed twice", "multi-label", "regression", "of other classes", "too large"],
)
def test_training_refuses_labels_that_are_no_classes(net, labels, config, message):
    with pytest.raises(ValueError, match=rf"labels [^\n]*{message}[^\n]*$"):
        loss(net, labels, **({"mixup": 0.8} | config))


TASKS = {
    "multi-label": ({"problem_type": "multi_label_classification"}, torch.ones(4, 3), "is for multi-label"),
    "regression": ({"num_labels": 1}, torch.ones(4), "by its float labels"),
    "regression by name": ({"problem_type": "regression", "num_labels": 1}, torch.ones(4).long(), "is for regression"),
    "one output": ({"num_labels": 1}, torch.zeros(4).long(), "a network of one output is a regression"),
    "floats": ({}, torch.eye(3)[[0, 1, 2, 0]], "by its float labels"),
    "one-hot": ({}, torch.eye(3).long()[[0, 1, 2, 0]], r"labels must be class numbers of shape \(4,\)"),
    "too large": ({}, torch.tensor([0, 1, 2, 3]), "labels must be from 0 to 2"),
}


@pytest.mark.parametrize(("fields", "labels", "message"), TASKS.values(), ids=TASKS)
@pytest.mark.parametrize("verb", ["evaluate", "find_cascade", "train"])
def test_texts_of_another_task_are_one_line(texts, verb, fields, labels, message):
    net = timm_stitch.stitch([bert(32, 2, **fields), bert(48, 3, **fields)]).eval()
    batch = texts | {"labels": labels}
    items = [{name: value[i] for name, value in batch.items()} for i in range(4)]
    config = timm_stitch.TrainConfig(**TRAIN)
    with pytest.raises(ValueError, match=rf"^[^\n]*{message}[^\n]*$"):
        {
            "evaluate": lambda: timm_stitch.evaluate(net, [batch]),
            "find_cascade": lambda: timm_stitch.find_cascade(net, [batch], macs=1e12),
            "train": lambda: timm_stitch.train(net, config, train_data=items, progress=False),
        }[verb]()


def test_answers_outside_of_the_text_count_for_nothing(texts):
    hf = pytest.importorskip("transformers", minversion="5.20")

    anchors = [
        bert(32, 2, hf.BertForQuestionAnswering, num_labels=2),
        bert(48, 3, hf.BertForQuestionAnswering, num_labels=2),
    ]
    net = timm_stitch.stitch(anchors).eval()
    inside = {"start_positions": torch.tensor([1, 2, 3]), "end_positions": torch.tensor([2, 3, 4])}
    whole = {name: torch.cat([value, torch.tensor([10])]) for name, value in inside.items()}
    three = {"input_ids": texts["input_ids"][:3]}
    rows, expected = (timm_stitch.evaluate(net, [batch]) for batch in (texts | whole, three | inside))
    assert [(row["top1"], row["loss"]) for row in rows] == [(row["top1"], row["loss"]) for row in expected]
    with torch.no_grad():
        assert rows[0]["loss"] == pytest.approx(net(**texts, **whole, stitch_id=0).loss.item(), rel=1e-5)


@pytest.mark.parametrize(
    ("start", "message"),
    [
        (torch.tensor([1, 2]), r"must be the numbers of tokens, one for each of 4 texts, got shapes \(2,\) and \(4,\)"),
        (torch.ones(4, 1).long(), r"got shapes \(4, 1\) and"),
        (torch.ones(4), "of torch.float32"),
        (None, "this batch has no labels"),
    ],
    ids=["too few", "a column", "floats", "none"],
)
def test_answers_that_are_no_positions_are_one_line(texts, start, message):
    hf = pytest.importorskip("transformers", minversion="5.20")

    anchors = [bert(width, 2, hf.BertForQuestionAnswering, num_labels=2) for width in (32, 48)]
    batch = texts | {"end_positions": torch.ones(4).long()} | ({} if start is None else {"start_positions": start})
    with pytest.raises(ValueError, match=message):
        timm_stitch.evaluate(timm_stitch.stitch(anchors), [batch])


def test_a_linear_probe_of_texts_is_refused(texts):
    net = timm_stitch.stitch([bert(32, 2), bert(48, 3)])
    with pytest.raises(ValueError, match="linear_probe fits the classifiers of timm's models"):
        linear_probe(net, [texts])
