"""Modules by the paths that earlier versions had, which scripts and pickled networks name."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

_TIMM, _TRANSFORMERS = "timm_stitch.families.timm_models.", "timm_stitch.families.transformers_models."
MOVED = {
    "timm_stitch.anchors.auto": _TIMM + "views",
    "timm_stitch.anchors.timm_vit": _TIMM + "vit_view",
    "timm_stitch.anchors.timm_staged": _TIMM + "staged_views",
    "timm_stitch.anchors.traced": _TIMM + "traced_view",
    "timm_stitch.anchors.keywords": _TRANSFORMERS + "inputs",
    "timm_stitch.anchors.transformers_view": _TRANSFORMERS + "views",
    "timm_stitch.anchors.transformers_row": _TRANSFORMERS + "layer_list",
    "timm_stitch.hub.arguments": _TIMM + "arguments",
    "timm_stitch.hub.pull": "timm_stitch.hub.loading",
    "timm_stitch.models.at_hand": "timm_stitch.families.stitching",
    "timm_stitch.network.features": _TIMM + "features",
    "timm_stitch.network.network": _TIMM + "network",
    "timm_stitch.network.stitching": _TIMM + "stitching",
    "timm_stitch.network.task_names": _TRANSFORMERS + "task_names",
    "timm_stitch.network.timm_model": _TIMM + "timm_api",
}


class _Finder(MetaPathFinder, Loader):
    """Finds a module at its new path; it is the same module under both names."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return ModuleSpec(fullname, self) if fullname in MOVED else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = importlib.import_module(MOVED[spec.name])
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        spec = module.__spec__
        if spec is not None and spec.loader is self:
            module.__spec__ = spec.loader_state


sys.meta_path.append(_Finder())
