"""What the views that are written for one architecture have in common: they fit timm's own code only."""

from __future__ import annotations

from torch import nn

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
    def opens(cls, model: nn.Module) -> bool:
        """Whether the view does what the model does: its structure fits, and the code around its blocks is timm's."""
        if not (cls.fits(model) and runs_published_code(model, "forward_features")):
            return False
        view = cls(model)
        view.watch()
        return all(runs_published_code(module) for module in view.containers.modules)

    def reopen(self) -> BlockView:
        kind = type(self)
        return kind(self.anchor) if kind.opens(self.anchor) else TracedView(self.anchor)


def runs_published_code(module: nn.Module, *methods: str) -> bool:
    """Whether forward and these methods of a module are those of a class of timm or torch."""
    own = [getattr(getattr(type(module), name), "__module__", "") for name in ("forward", *methods)]
    return not replaced_methods(module) and all(name.startswith(("timm.", "torch.")) for name in own)
