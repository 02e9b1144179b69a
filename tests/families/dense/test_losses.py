"""Losses equal the papers' formulas, and do not depend on how a batch is split."""

import pytest
import torch
from torch import nn

from timm_stitch.families.dense.losses import (
    check_depth,
    check_labels,
    depth_distillation,
    depth_loss,
    segmentation_distillation,
    segmentation_loss,
)


@pytest.fixture
def masks():
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 3, (4, 6, 6), generator=generator)
    labels[:, 0] = 255
    return torch.randn(4, 3, 6, 6, generator=generator, requires_grad=True), labels


@pytest.fixture
def depths():
    generator = torch.Generator().manual_seed(0)
    depth = torch.rand(4, 6, 6, generator=generator) * 9 + 0.5
    depth[:, 0] = 0
    return torch.rand(4, 1, 6, 6, generator=generator).add(1).requires_grad_(), depth


def test_cross_entropy_is_mmsegmentations(masks) -> None:
    logits, labels = masks
    expected = nn.functional.cross_entropy(logits, labels, ignore_index=255, reduction="none").mean()
    assert torch.equal(segmentation_loss([logits], labels), expected)
    weights = torch.tensor([1.0, 2.0, 0.5])
    weighted = nn.functional.cross_entropy(logits, labels, weights, ignore_index=255, reduction="none").mean()
    assert torch.equal(segmentation_loss([logits], labels, weights), weighted)


def test_auxiliary_outputs_count_four_tenths(masks) -> None:
    logits, labels = masks
    small = torch.randn(4, 3, 3, 3)
    large = nn.functional.interpolate(small, (6, 6), mode="bilinear", align_corners=False)
    expected = segmentation_loss([logits], labels) + 0.4 * segmentation_loss([large], labels)
    assert torch.allclose(segmentation_loss([logits, small], labels), expected)


def test_scale_invariant_log_loss_is_the_toolboxs_by_image(depths) -> None:
    predicted, depth = depths
    expected = []
    for ours, theirs in zip(predicted[:, 0], depth, strict=True):
        ratio = (ours[theirs > 0] + 0.001).log() - (theirs[theirs > 0] + 0.001).log()
        expected.append((ratio.var() + 0.15 * ratio.mean() ** 2).sqrt())
    assert torch.allclose(depth_loss([predicted], depth), torch.stack(expected).mean())
    near = depth.where(depth <= 5, 0)
    assert torch.allclose(depth_loss([predicted], depth, max_depth=5.0), depth_loss([predicted], near))


def test_losses_do_not_depend_on_the_split(masks, depths) -> None:
    logits, labels = masks
    predicted, depth = depths
    labels[0], depth[0] = 255, 0
    guide, metres = torch.randn(4, 3, 6, 6), predicted.detach() + 0.5
    for loss in (
        lambda n: segmentation_loss([logits[n]], labels[n]),
        lambda n: segmentation_distillation(logits[n], guide[n], labels[n]),
        lambda n: depth_loss([predicted[n]], depth[n]),
        lambda n: depth_distillation(predicted[n], metres[n], depth[n]),
    ):
        halves = (loss(slice(0, 2)) + loss(slice(2, 4))) / 2
        assert torch.allclose(loss(slice(0, 4)), halves)


def test_empty_masks_have_no_gradient(masks, depths) -> None:
    logits, labels = masks
    segmentation_loss([logits], torch.full_like(labels, 255)).backward()
    assert not logits.grad.any()
    predicted, depth = depths
    depth_loss([predicted], torch.zeros_like(depth)).backward()
    assert not predicted.grad.any()


def test_exact_depths_have_a_finite_gradient(depths) -> None:
    _, depth = depths
    predicted = depth[:, None].clone().requires_grad_()
    depth_loss([predicted], depth).backward()
    assert torch.isfinite(predicted.grad).all()


def test_distillation_pulls_towards_the_guide(masks, depths) -> None:
    logits, labels = masks
    guide = torch.randn(4, 3, 6, 6)
    counts = labels != 255
    expected = nn.functional.cross_entropy(logits, guide.softmax(1), reduction="none")[counts].sum() / labels.numel()
    assert torch.allclose(segmentation_distillation(logits, guide, labels), expected)
    predicted, depth = depths
    assert not depth_distillation(predicted, predicted.detach(), depth).any()
    ratio = ((predicted.detach() * 2 + 0.001) / (predicted.detach() + 0.001)).log()[:, 0]
    expected = torch.stack([r[d > 0].mean() for r, d in zip(ratio, depth, strict=True)]).mean()
    assert torch.allclose(depth_distillation(predicted, predicted.detach() * 2, depth), expected)


def test_labels_that_are_no_classes_are_refused() -> None:
    labels = torch.tensor([[[0, 1], [255, 2]]])
    assert check_labels(labels, 3) is labels
    with pytest.raises(ValueError, match=r"labels must be from 0 to 1, or 255 .* got 2: .* num_classes=3"):
        check_labels(labels, 2)
    with pytest.raises(ValueError, match=r"class numbers \(B, H, W\), got torch.int64 of shape \(1, 3, 2, 2\)"):
        check_labels(torch.zeros(1, 3, 2, 2, dtype=torch.int64), 3)
    with pytest.raises(ValueError, match="class numbers"):
        check_labels(torch.rand(1, 2, 2), 3)


def test_labels_that_are_no_depths_are_refused() -> None:
    assert check_depth(torch.rand(1, 2, 2)).shape == (1, 2, 2)
    with pytest.raises(ValueError, match="metres"):
        check_depth(torch.ones(1, 2, 2, dtype=torch.int64))
    for wrong in (-1.0, float("nan")):
        with pytest.raises(ValueError, match="0 or more"):
            check_depth(torch.full((1, 2, 2), wrong))
