"""What users change around an anchor's layers after stitching: its splits must still equal the whole, or it is refused.

A stitch runs a part of the anchor's own forward. A new forward of a module around the layers may need more of the
layers before than the activation that a stitch inserts. So such a change is noticed, and the splits are checked again.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import NamedTuple

from torch import nn

from ...anchors.containers import replaced_methods
from ...anchors.modules import find_submodule

Methods = dict[str, object]


class _Entry(NamedTuple):
    """A module as it was: its owner's modules and its name in them, and what changes with its methods."""

    modules: Mapping[str, nn.Module | None]
    key: str
    module: nn.Module
    size: int
    forward: object
    class_forward: object

    def holds(self) -> bool:
        """Whether the module is as it was."""
        modules, key, module, size, forward, class_forward = self
        own = module.__dict__
        return (
            modules.get(key) is module
            and len(own) == size
            and own.get("forward") is forward
            and module.__class__.forward is class_forward
        )


class Surroundings:
    """The anchor and the modules around its layers, as they were when the splits were checked last.

    Args:
        anchor: the model.
        layers_path: the name of its list of layers.

    Attributes:
        problem: the reason why the anchor, as it is now, cannot run in parts; empty if it can.
    """

    def __init__(self, anchor: nn.Module, layers_path: str) -> None:
        atoms = layers_path.split(".")
        self._names = [".".join(atoms[:end]) for end in range(len(atoms))]
        self.problem = ""
        self._look: list[_Entry] | None = self._glance(anchor)
        self._opened = self._checked = self._methods(anchor)

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_look": None, "_opened": {}, "_checked": {}}  # functions that may not be pickled

    def __deepcopy__(self, memo: dict[int, object]) -> Surroundings:
        twin = object.__new__(type(self))
        twin.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return twin

    def update(self, anchor: nn.Module, check: Callable[[], str | None]) -> None:
        """Look at the modules, and check the splits again if what they compute may have changed.

        Args:
            anchor: the model.
            check: the check, which returns the problem; None if it could not be made.
        """
        if self._look and all(map(_Entry.holds, self._look)):
            return
        methods = self._methods(anchor)
        if self._look is None:  # just unpickled: what was saved had been checked
            self._opened = self._checked = methods
        if methods != self._checked:
            changed = sorted(k for k in {*methods, *self._opened} if methods.get(k) != self._opened.get(k))
            reason = check()
            if reason is None:
                return
            self.problem = f"{', '.join(changed[:3])} was replaced: {reason}" if reason else ""
        self._look, self._checked = self._glance(anchor), methods

    def _glance(self, anchor: nn.Module) -> list[_Entry]:
        """List what changes with everything in `_methods`, and is compared in a few operations."""
        entries: list[_Entry] = []
        modules: Mapping[str, nn.Module | None] = {"": anchor}
        for name in self._names:
            key = name.rpartition(".")[2]
            module = modules.get(key)
            if module is None:
                break
            own = module.__dict__
            entries.append(_Entry(modules, key, module, len(own), own.get("forward"), type(module).forward))
            modules = module._modules
        return entries

    def _methods(self, anchor: nn.Module) -> Methods:
        """Get the forward of each module's class, and the methods of its own that are none of torch's."""
        methods: Methods = {}
        for name in self._names:
            module = find_submodule(anchor, name) if name else anchor
            if module is None:
                continue
            kind, owner = type(module), f"{name}." if name else ""
            methods[f"the class of {name or 'the model'}"] = kind.forward
            for key, value in replaced_methods(module).items():
                if key == "forward" or not hasattr(nn.Module, key):
                    methods[owner + key] = value
        return methods
