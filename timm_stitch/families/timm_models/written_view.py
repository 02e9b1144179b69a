"""What the views that are written for one architecture have in common: they fit timm's own code only."""

from __future__ import annotations

from torch import nn
from typing_extensions import Self

from ...anchors.block_view import BlockView
from ...anchors.containers import replaced_methods
from .traced_view import TracedView


class WrittenView(BlockView):
    """A view that repeats a forward pass of timm's, which it knows; a model that runs otherwise is recorded."""

    def __init__(self, anchor: nn.Module) -> None:
        raise NotImplementedError

    @staticmethod
    def fits(model: nn.Module) -> bool:
        """Whether a model has the structure that this view needs."""
        raise NotImplementedError

    @classmethod
    def open(cls, model: nn.Module) -> Self | None:
        """Open a model whose structure fits and whose code around the blocks is timm's; None for others."""
        if not (cls.fits(model) and runs_published_code(model, "forward_features")):
            return None
        view = cls(model)
        view.watch()
        return view if all(runs_published_code(module) for module in view.containers.modules) else None

    def reopen(self) -> BlockView:
        return self.open(self.anchor) or TracedView(self.anchor)


def runs_published_code(module: nn.Module, *methods: str) -> bool:
    """Whether forward and these methods of a module are those of a class of timm or torch."""
    own = [getattr(getattr(type(module), name), "__module__", "") for name in ("forward", *methods)]
    return not replaced_methods(module) and all(name.startswith(("timm.", "torch.")) for name in own)
