"""Metrics of segmentation and depth equal torchmetrics, or a case worked by hand."""

import math

import pytest
import torch
from torch import nn

from timm_stitch.families.dense.metrics import DepthMetrics, SegmentationMetrics, eigen_crop

torchmetrics = pytest.importorskip("torchmetrics")
classification = torchmetrics.classification


def batches(classes: int, seed: int = 0):
    """Logits and labels of which some are ignored; class 4 occurs nowhere."""
    generator = torch.Generator().manual_seed(seed)
    for size in ((6, 5), (4, 7), (3, 3)):
        logits = torch.randn(2, classes, *size, generator=generator)
        logits[:, 4] = -100
        labels = torch.randint(0, classes - 1, (2, *size), generator=generator)
        labels[:, 0, :2] = 255
        yield logits, labels


def test_segmentation_equals_torchmetrics() -> None:
    metrics, sums = SegmentationMetrics(5), torch.zeros(26, dtype=torch.float64)
    jaccard = classification.MulticlassJaccardIndex(5, ignore_index=255, average="none")
    micro = classification.MulticlassAccuracy(5, ignore_index=255, average="micro")
    macro = classification.MulticlassAccuracy(5, ignore_index=255, average="macro")
    losses = []
    for logits, labels in batches(5):
        sums += metrics.sums(logits, labels)
        for metric in (jaccard, micro, macro):
            metric.update(logits.argmax(1), labels)
        losses.append(nn.functional.cross_entropy(logits, labels, ignore_index=255, reduction="none").flatten())
    row = metrics.row(sums)
    assert row["miou"] == pytest.approx(100 * float(jaccard.compute()[:4].mean()), abs=1e-4)
    assert row["aacc"] == pytest.approx(100 * float(micro.compute()), abs=1e-4)
    assert row["macc"] == pytest.approx(100 * float(macro.compute()), abs=1e-4)
    assert row["loss"] == pytest.approx(float(torch.cat(losses).sum()) / metrics.count(sums), rel=1e-5)


def test_a_class_that_is_only_predicted_counts_for_the_iou_alone() -> None:
    # Labels 0 0 1 1, predictions 0 2 1 1: IoU 1/2, 1 and 0 (mmsegmentation's mIoU 50); accuracies 1/2 and 1 (mAcc 75).
    logits = torch.eye(3)[[0, 2, 1, 1]].T.reshape(1, 3, 1, 4)
    row = SegmentationMetrics(3).row(SegmentationMetrics(3).sums(logits, torch.tensor([[[0, 0, 1, 1]]])))
    assert (row["miou"], row["aacc"], row["macc"]) == (50, 75, 75)


def test_sums_of_parts_are_the_sum_of_the_whole() -> None:
    metrics = SegmentationMetrics(5)
    logits, labels = next(batches(5))
    parts = metrics.sums(logits[:1], labels[:1]) + metrics.sums(logits[1:], labels[1:])
    assert torch.equal(parts[:-1], metrics.sums(logits, labels)[:-1])


def test_an_empty_mask_counts_for_nothing() -> None:
    metrics = SegmentationMetrics(3)
    sums = metrics.sums(torch.randn(1, 3, 2, 2), torch.full((1, 2, 2), 255))
    assert metrics.count(sums) == 0
    assert not sums.any()


def test_outputs_are_resized_to_the_labels() -> None:
    logits, labels = torch.randn(1, 3, 4, 4), torch.randint(0, 3, (1, 9, 7))
    resized = nn.functional.interpolate(logits, (9, 7), mode="bilinear", align_corners=False)
    metrics = SegmentationMetrics(3)
    assert torch.equal(metrics.sums(logits, labels), metrics.sums(resized, labels))
    with pytest.raises(ValueError, match=r"outputs must be \(B, C, H, W\) and labels \(B, H, W\)"):
        metrics.sums(logits, labels[0])


def depths():
    generator = torch.Generator().manual_seed(1)
    depth = torch.rand(3, 6, 8, generator=generator) * 9 + 0.5
    depth[0, :2] = 0
    predicted = depth * (1 + 0.3 * torch.randn(depth.shape, generator=generator)).clamp(0.3) + 0.05
    return predicted[:, None], depth


def test_depth_equals_torchmetrics_image_by_image() -> None:
    predicted, depth = depths()
    row = DepthMetrics().row(DepthMetrics().sums(predicted, depth))
    relative, rmse, delta, silog = [], [], [], []
    for ours, theirs in zip(predicted[:, 0], depth, strict=True):
        valid = theirs > 0
        ours, theirs = ours[valid].double(), theirs[valid].double()
        relative.append(torchmetrics.functional.mean_absolute_percentage_error(ours, theirs))
        rmse.append(torchmetrics.functional.mean_squared_error(ours, theirs, squared=False))
        delta.append(((ours / theirs).maximum(theirs / ours) < 1.25).double().mean())
        logs = ours.log() - theirs.log()
        silog.append((logs.square().mean() - logs.mean().square()).sqrt())
    assert row["abs_rel"] == pytest.approx(float(torch.stack(relative).mean()), rel=1e-6)
    assert row["rmse"] == pytest.approx(float(torch.stack(rmse).mean()), rel=1e-6)
    assert row["delta1"] == pytest.approx(100 * float(torch.stack(delta).mean()), rel=1e-6)
    assert row["silog"] == pytest.approx(100 * float(torch.stack(silog).mean()), rel=1e-6)


def test_depth_by_hand() -> None:
    # 2 for 1 and 1 for 1: relative errors 1 and 0, log ratios ln 2 and 0.
    metrics = DepthMetrics()
    sums = metrics.sums(torch.tensor([[[[2.0, 1.0, 9.0]]]]), torch.tensor([[[1.0, 1.0, 0.0]]]))
    row = metrics.row(sums)
    assert row["abs_rel"] == 0.5
    assert row["delta1"] == 50
    assert row["rmse"] == pytest.approx(math.sqrt(0.5))
    assert row["silog"] == pytest.approx(100 * math.log(2) / 2)


def test_an_image_without_depth_counts_for_nothing() -> None:
    predicted, depth = depths()
    depth[1] = 0
    metrics = DepthMetrics()
    keep = torch.tensor([0, 2])
    assert torch.allclose(metrics.sums(predicted, depth), metrics.sums(predicted[keep], depth[keep]))
    assert metrics.count(metrics.sums(predicted, depth)) == 2


def test_depths_out_of_range_and_of_the_crop_are_left_out() -> None:
    depth = torch.zeros(1, 480, 640)
    depth[:, 45:471, 41:601] = 2.0
    depth[:, 100, 100] = 10.0
    predicted = torch.where(depth == 2, 2.2, 5.0)[:, None]
    depth[:, 0, 0] = 1.0
    metrics = DepthMetrics(1e-3, 10.0)
    assert metrics.row(metrics.sums(predicted, eigen_crop(depth)))["abs_rel"] == pytest.approx(0.1)
    assert metrics.row(metrics.sums(predicted, depth))["abs_rel"] > 0.1
    with pytest.raises(ValueError, match="eigen_crop is of NYUv2's images of 480 x 640 pixels, got 4 x 4"):
        eigen_crop(torch.ones(1, 4, 4))
