"""The modules of an anchor that a view does not call: the anchor itself, and those that hold its blocks.

A view calls parts of a model. What a module around these parts does in its own call (its forward, its hooks) would be
lost without a word if somebody changed it. `Containers` remembers these modules and runs their hooks around the parts;
`Watch` compares them with what they were before each call.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from operator import attrgetter, itemgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from .modules import HOOKS, call_with_hooks, find_submodule, has_hooks

# Settings that change how a module computes, not what; and those that only the head reads, which the model itself runs.
_PASSING = ("training", "grad_checkpointing", "gradient_checkpointing", "fused_attn", "num_classes")


class Part(NamedTuple):
    """A piece of work of a view.

    Args:
        names: the names of the modules and tensors of the anchor that it uses.
        call: the function from the activation before it to that behind it.
    """

    names: tuple[str, ...]
    call: Callable[[Tensor], Tensor]


class Watch:
    """Compares modules with what they were, in a few operations for all together.

    Args:
        entries: the modules as they were.
    """

    def __init__(self, entries: Sequence[_Entry]) -> None:
        self._hooks = -1  # torch's number of hooks when there were none on these modules
        self._modules = [entry.module for entry in entries]
        self._dicts = [entry.module.__dict__ for entry in entries]
        self._forwards = [entry.signature.forward for entry in entries]
        self._sizes = [entry.size for entry in entries]
        self._children = [entry.children for entry in entries]
        self._settings = [
            (itemgetter(*_TWO, *entry.signature.settings), own, tuple(map(own.get, (*_TWO, *entry.signature.settings))))
            for entry, own in zip(entries, self._dicts, strict=True)
            if entry.signature.settings
        ]

    @torch.compiler.assume_constant_result  # type: ignore[untyped-decorator] # torch gives it no types
    def holds(self) -> bool:
        """Whether the modules are as they were, and have no hooks."""
        dicts = self._dicts
        if (
            list(map(len, dicts)) != self._sizes
            or list(map(_read_children, dicts)) != self._children
            or list(map(_read_forward, self._modules)) != self._forwards
        ):
            return False
        for read, own, values in self._settings:
            if read(own) != values:
                return False
        if self._hooks != RemovableHandle.next_id:  # somewhere in this process a hook was registered since
            if any(map(any, map(_read_hooks, dicts))):
                return False
            self._hooks = RemovableHandle.next_id
        return True


_TWO = ("_parameters", "_buffers")  # names that every module has: `itemgetter` gives a tuple from two names on
_read_forward = attrgetter("__class__.forward")
_read_children = itemgetter("_modules")
_read_hooks = itemgetter(*HOOKS)


class Containers:
    """What a view leaves out of its anchor.

    Args:
        anchor: the anchor, or a copy that holds a part of it.
        names: the names of the modules inside it that the view does not call.
        parts: the names of the modules and tensors that the view calls.
        with_settings: whether their plain settings count, since the view repeats what they did with them.

    Attributes:
        problem: what has changed, if the anchor cannot run in parts as it is now.
    """

    def __init__(
        self, anchor: nn.Module, names: Iterable[str], parts: Collection[str], with_settings: bool = False
    ) -> None:
        self._parts, self._with_settings, modules = frozenset(parts), with_settings, {"": anchor}
        modules |= {name: module for name in sorted(names) if (module := find_submodule(anchor, name)) is not None}
        self._modules: dict[str, nn.Module] = modules
        self.remember()

    def remember(self, problem: str = "") -> None:
        """Take the modules as they are now for those that were opened, or for ones that cannot run in parts."""
        self.problem = problem
        self.entries = {
            name: _Entry(module, self._signature(name, module), len(module.__dict__), dict(module._modules))
            for name, module in self._modules.items()
        }

    def has_changed(self) -> bool:
        """Whether a module is not as it was, hooks apart; also in ways that do not count."""
        return any(
            len(entry.module.__dict__) != entry.size
            or entry.module._modules != entry.children
            or self._signature(name, entry.module) != entry.signature
            for name, entry in self.entries.items()
        )

    @property
    def modules(self) -> Collection[nn.Module]:
        """The modules, the anchor first."""
        return self._modules.values()

    def changes(self) -> list[str]:
        """Say for each changed module what it is now."""
        texts: list[str] = []
        for name, module in self._modules.items():
            before, now = self.entries[name].signature, self._signature(name, module)
            owner = f"{name}." if name else ""
            if now.kind is not before.kind or now.forward is not before.forward:
                texts.append(f"{name or 'the model'} is a {now.kind.__name__} with another forward")
            texts += [f"{owner}{key} was replaced" for key in _differing(before.methods, now.methods)]
            texts += [f"{owner}{key} was replaced" for key in _differing(before.children, now.children)]
            changed = {key for key in {*before.settings, *now.settings} if _setting(before, key) != _setting(now, key)}
            texts += [f"{owner}{key} is {_setting(now, key)!r}" for key in sorted(changed)]
        return texts

    def hooked(self) -> list[str]:
        """List the names of the modules with hooks inside the anchor, outer ones first."""
        return [name for name, module in self._modules.items() if name and has_hooks(module)]

    def run(self, parts: Sequence[Part], h: Tensor) -> Tensor:
        """Run parts in their order, with the hooks of each module around those of its parts that follow each other.

        Raises:
            ValueError: if a hook belongs in the middle of a part.
        """
        return self._run(list(parts), h, self.hooked())

    def _run(self, parts: list[Part], h: Tensor, hooked: list[str]) -> Tensor:
        at = 0
        while at < len(parts):
            around = next((name for name in hooked if _holds(name, parts[at])), None)
            if around is None:
                h, at = parts[at].call(h), at + 1
                continue
            end = at + 1
            while end < len(parts) and _holds(around, parts[end]):
                end += 1
            inner, rest = parts[at:end], hooked[hooked.index(around) + 1 :]

            def run_inner(h: Tensor, inner: list[Part] = inner, rest: list[str] = rest) -> Tensor:
                return self._run(inner, h, rest)

            h, at = call_with_hooks(self._modules[around], run_inner, h), end
        return h

    def _signature(self, name: str, module: nn.Module) -> _Signature:
        own, kind = module.__dict__, type(module)
        settings: dict[str, object] = {}
        if self._with_settings:
            settings = {k: v for k, v in own.items() if k[0] != "_" and k not in _PASSING and _is_plain(v)}
        children = {
            key: child
            for key, child in module._modules.items()
            if (path := f"{name}.{key}".removeprefix(".")) in self._modules or (name and path not in self._parts)
        }
        return _Signature(kind, kind.forward, replaced_methods(module), settings, children)


class _Entry(NamedTuple):
    """A module as it was: with the number of its attributes, and its children."""

    module: nn.Module
    signature: _Signature
    size: int
    children: dict[str, nn.Module | None]


class _Signature(NamedTuple):
    """What makes a module compute as it does, besides its parts."""

    kind: type
    forward: object
    methods: dict[str, object]
    settings: dict[str, object]
    children: dict[str, nn.Module | None]


def replaced_methods(module: nn.Module) -> dict[str, object]:
    """Get the functions that were put on a module in the place of methods of its class, by name.

    Accelerate's forward, which calls the module's own, is none of them.
    """
    own, kind = module.__dict__, type(module)
    passing = ("forward",) if "_hf_hook" in own else ()
    return {
        name: value
        for name, value in own.items()
        if callable(value) and not isinstance(value, nn.Module) and name not in passing and hasattr(kind, name)
    }


def holders(names: Iterable[str]) -> set[str]:
    """List the names of all modules around these, without the anchor itself."""
    return {name[:at] for name in names for at, letter in enumerate(name) if letter == "."}


def _holds(container: str, part: Part) -> bool:
    inside = [name.startswith(container + ".") for name in part.names]
    if any(inside) and not all(inside):
        raise ValueError(
            f"hooks on {container!r} cannot run in a stitch, which runs it together with what is around it: put them "
            "on the modules inside, or on the anchor."
        )
    return bool(inside) and all(inside)


def _is_plain(value: object) -> bool:
    if isinstance(value, (tuple, list)):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (bool, int, float, str))


def _differing(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    return sorted(key for key in {*before, *now} if before.get(key) is not now.get(key))


def _setting(signature: _Signature, key: str) -> object:
    return signature.settings.get(key)
