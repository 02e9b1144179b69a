"""What a server tells of its network: images in, classes and stitches out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from PIL import Image
from timm.data import create_transform
from torch import Tensor

from ...data.dataset import image_config
from ...families.timm_models.network import SNNet
from ...plan.results import Row
from ..class_names import class_names, pillow_mode


@dataclass(frozen=True)
class ServedNetwork:
    """A network as its clients see it, taken from the network at once, so that no answer mixes two of them.

    Args:
        model: the network.
        mode: Pillow's mode of its images.
        preparation: the arguments of timm's transform.
        transform: the preparation of one image, shape (C, H, W).
        labels: the name of each class.
        stitches: the row of each stitch.
        accuracy: the known accuracy of each stitch, in per cent.
    """

    model: SNNet
    mode: str
    preparation: Mapping[str, object]
    transform: Callable[[Image.Image], Tensor]
    labels: Sequence[str]
    stitches: Mapping[int, Row]
    accuracy: Mapping[int, float | None]

    @classmethod
    def of(cls, model: SNNet) -> ServedNetwork:
        """Describe a network.

        Raises:
            ValueError: if it does not classify ordinary images.
        """
        preparation = image_config(model)
        stitches = {row["stitch_id"]: row for row in model.stitch_table()}
        return cls(
            model,
            pillow_mode(model, "the server takes"),
            preparation,
            create_transform(**preparation),
            class_names(model),
            stitches,
            {k: row.get("top1", row.get("published_top1")) for k, row in stitches.items()},
        )

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
        advice = "start another server for it."
        if self.shape != old.shape or len(self.labels) != len(old.labels):
            raise ValueError(
                f"the new network takes images of {self.shape} and has {len(self.labels)} classes, the old one "
                f"{old.shape} and {len(old.labels)}: {advice}"
            )
        for number, (new, former) in enumerate(zip(self.labels, old.labels, strict=True)):
            if new != former:
                raise ValueError(f"class {number} of the new network is {new!r:.60}, it was {former!r:.60}: {advice}")
        for name, value in self.preparation.items():
            if value != old.preparation.get(name):
                former_value = old.preparation.get(name)
                raise ValueError(f"the new network prepares images with {name}={value}, not {former_value}: {advice}")
