"""What a server tells of its network: images or texts in, classes and stitches out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image
from timm.data import create_transform
from torch import Tensor
from torchvision import transforms
from torchvision.transforms.functional import pil_modes_mapping

from ...data.dataset import image_config
from ...data.decoding import Resize
from ...families.timm_models.network import SNNet
from ...plan.metrics import main_score
from ...plan.results import Row
from ..class_names import class_names, pillow_mode, task_of
from ..maps import MapPredictor

ADVICE = "start another server for it."


@dataclass(frozen=True)
class Served:
    """A network as its clients see it, taken from the network at once, so that no answer mixes two of them.

    Args:
        model: the network.
        labels: the name of each class; none for depth and for embeddings.
        stitches: the row of each stitch.
        score: the key of the accuracy in rows: `top1`, or another metric.
        accuracy: the known accuracy of each stitch, for `top1` in per cent.
    """

    model: Any
    labels: Sequence[str]
    stitches: Mapping[int, Row]
    score: str
    accuracy: Mapping[int, float | None]

    def check_labels(self, old: Served) -> None:
        """Refuse other classes than those of another network.

        Raises:
            ValueError: naming the first that differs.
        """
        if len(self.labels) != len(old.labels):
            raise ValueError(f"the new network has {len(self.labels)} classes, the old one {len(old.labels)}: {ADVICE}")
        for number, (new, former) in enumerate(zip(self.labels, old.labels, strict=True)):
            if new != former:
                raise ValueError(f"class {number} of the new network is {new!r:.60}, it was {former!r:.60}: {ADVICE}")


def known_accuracy(stitches: Mapping[int, Row], score: str) -> dict[int, float | None]:
    """Find the measured or published accuracy of each stitch."""
    return {k: row.get(score, row.get(f"published_{score}")) for k, row in stitches.items()}


@dataclass(frozen=True)
class ServedNetwork(Served):
    """A network of images as its clients see it.

    Args:
        model, labels, stitches, score, accuracy: the arguments of `Served`.
        mode: Pillow's mode of its images.
        preparation: the arguments of timm's transform.
        transform: the preparation of one image, shape (C, H, W).
        maps: the predictor of a dense network's masks or depths; None for a classifier.
        resize: the first step of the preparation, if it can be taken where images are decoded.
    """

    model: SNNet
    mode: str
    preparation: Mapping[str, object]
    transform: Callable[[Image.Image], Tensor]
    maps: MapPredictor | None = None
    resize: Resize | None = None

    @classmethod
    def of(cls, model: SNNet) -> ServedNetwork:
        """Describe a network.

        Raises:
            ValueError: if it does not take ordinary images.
        """
        mode, preparation = pillow_mode(model, "the server takes"), image_config(model)
        stitches = {row["stitch_id"]: row for row in model.stitch_table()}
        score, maps, resize = main_score(stitches.values()), None, None
        if task_of(model) == "classification":
            transform, labels = create_transform(**preparation), class_names(model)
            resize = first_resize(transform)
        else:  # all images in one size, for which latencies hold
            maps = MapPredictor.of(model, "the server takes", size=model.image_size)
            transform, labels = maps.prepare, list(maps.labels)
        accuracy = known_accuracy(stitches, score)
        return cls(model, labels, stitches, score, accuracy, mode, preparation, transform, maps, resize)

    @property
    def shape(self) -> tuple[int, int, int]:
        """The shape (C, H, W) of the images."""
        height, width = self.model.image_size
        return self.model.in_chans, height, width

    def check_replaces(self, old: ServedNetwork) -> None:
        """Refuse to serve in place of another network, unless clients need not know.

        Raises:
            ValueError: naming what differs: images, classes or preparation.
        """
        if task_of(self.model) != task_of(old.model):
            raise ValueError(
                f"the new network is for {task_of(self.model)}, the old one {task_of(old.model)}: {ADVICE}"
            )
        if self.shape != old.shape or len(self.labels) != len(old.labels):
            raise ValueError(
                f"the new network takes images of {self.shape} and has {len(self.labels)} classes, the old one "
                f"{old.shape} and {len(old.labels)}: {ADVICE}"
            )
        self.check_labels(old)
        for name, value in self.preparation.items():
            if value != old.preparation.get(name):
                former_value = old.preparation.get(name)
                raise ValueError(f"the new network prepares images with {name}={value}, not {former_value}: {ADVICE}")


def first_resize(transform: object) -> Resize | None:
    """Find the step by which timm's transform resizes an image before all others; None if another one comes first."""
    first = next(iter(getattr(transform, "transforms", ())), None)
    if not isinstance(first, transforms.Resize) or first.max_size is not None:
        return None
    size = (first.size,) if isinstance(first.size, int) else tuple(first.size)
    filter = pil_modes_mapping.get(first.interpolation)
    return None if filter is None else Resize(size, int(filter))
