"""One configuration, not two: fields of a network's configuration are those of its anchors' configurations.

The code of transformers' models reads the configuration of the anchor that it belongs to. So a field that is set in the
network's configuration is set in those of the anchors, and the fields that all models have are read from there. What is
set before there are anchors, such as an argument of `from_pretrained`, is kept for the moment when they are built.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .saved_fields import has_field

if TYPE_CHECKING:
    from typing_extensions import Self

# The network's own fields: what it is made of, where it comes from, and what transformers keeps of each model.
_OWN_FIELDS = frozenset(
    ("anchors", "classes", "openings", "plan", "stitch_id", "only", "length", "model_type", "dtype", "torch_dtype",
     "name_or_path", "architectures", "transformers_version", "quantization_config", "is_encoder_decoder", "use_cache")
)  # fmt: skip
# The fields that are read from the last anchor, so that there is no second value to believe.
_READ_THROUGH = frozenset(
    ("output_hidden_states", "output_attentions", "return_dict", "chunk_size_feed_forward", "problem_type", "id2label",
     "label2id", "vocab_size", "pad_token_id", "bos_token_id", "eos_token_id")
)  # fmt: skip
# The fields that transformers expects of every configuration.
COMMON_FIELDS = (
    "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "pad_token_id", "bos_token_id",
    "eos_token_id", "image_size", "num_channels", "patch_size",
)  # fmt: skip
_CLASSES = ("num_labels", "id2label", "label2id")
_MISSING = object()

_logger = logging.getLogger(__name__)


class AnchorFields:
    """The part of a network's configuration that connects it with those of its anchors; a base before transformers'.

    Attributes:
        anchor_configs: the configurations of the anchors; empty before they are built.
    """

    @property
    def anchor_configs(self) -> tuple[Any, ...]:
        anchor_configs: tuple[Any, ...] = self.__dict__.get("_anchor_configs", ())
        return anchor_configs

    def record_changes(self) -> None:
        """Keep what is set from now on, until there are anchors."""
        self.__dict__["_changes"] = {}

    def bind(self, anchor_configs: Sequence[Any]) -> None:
        """Connect this configuration with those of the anchors, from which its fields are read from now on."""
        self._give_names(anchor_configs)
        differing = []
        for name in sorted(_READ_THROUGH & set(self.__dict__)):
            own, last = self.__dict__[name], _read(anchor_configs[-1], name)
            if last is not _MISSING and own not in (last, getattr(type(self), name, None)):
                differing.append(f"{name}={own!r:.40} where the anchors have {last!r:.40}")
        if differing:
            _logger.warning("the configuration has %s: what the anchors have counts.", ", ".join(differing))
        self.__dict__.pop("_changes", None)
        self.__dict__["_anchor_configs"] = tuple(anchor_configs)

    def follow(self, anchor_configs: Sequence[Any]) -> None:
        """Read the fields from these configurations, if an anchor has another one than before."""
        before = self.anchor_configs
        if before and any(new is not old for new, old in zip(anchor_configs, before, strict=True)):
            self.__dict__["_anchor_configs"] = tuple(anchor_configs)

    def _give_names(self, anchor_configs: Sequence[Any]) -> None:
        """Give the anchors the names of classes that stand here alone, as earlier versions saved them."""
        names = self.__dict__.get("id2label") or {}
        own, anchors = set(names.values()), set((_read(anchor_configs[-1], "id2label") or {}).values())
        if len(own) == len(anchors) and own != anchors == {f"LABEL_{i}" for i in range(len(anchors))}:
            for name in ("id2label", "label2id"):
                _set_all(anchor_configs, name, self.__dict__[name])

    def unbound(self) -> Self:
        """Copy this configuration without the connection, or get it itself where there is none."""
        if not self.anchor_configs:
            return self
        twin = copy.copy(self)
        del twin.__dict__["_anchor_configs"]
        for name in _READ_THROUGH & set(twin.__dict__):
            twin.__dict__[name] = getattr(self, name)
        twin.__dict__.update(_output_attentions=self.output_attentions, anchors=self.anchor_dicts())
        return copy.deepcopy(twin)

    def apply_changes(self, anchor_configs: Sequence[Any]) -> None:
        """Set in the anchors' configurations what was set in this one before there were anchors."""
        for name, value in self.__dict__.get("_changes", {}).items():
            _set_all(_holders(anchor_configs, name), name, value)

    def anchor_dicts(self) -> list[Any]:
        """The anchors' configurations as they are now, in the form in which they are saved."""
        raise NotImplementedError

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain values, as transformers does, with the anchors as they are configured now."""
        values: dict[str, Any] = super().to_dict()  # type: ignore[misc] # of transformers' class, which comes after
        values.pop("_changes", None)
        if not values.pop("_anchor_configs", None):
            return values
        for name in list(values):
            if name in _READ_THROUGH:
                values[name] = copy.deepcopy(getattr(self, name))
            elif not self._keeps(name):
                del values[name]
        return values | {"anchors": self.anchor_dicts()}

    def _keeps(self, name: str) -> bool:
        """Whether a field is saved here; others are among the anchors' fields."""
        is_own = name[0] == "_" or name in _OWN_FIELDS or name in COMMON_FIELDS or hasattr(type(self), name)
        return is_own or not _holders(self.anchor_configs, name)

    def __getattribute__(self, name: str) -> Any:
        if name in _READ_THROUGH:
            anchor_configs = super().__getattribute__("__dict__").get("_anchor_configs")
            value = _read(anchor_configs[-1], name) if anchor_configs else _MISSING
            if value is not _MISSING:
                return value
        return super().__getattribute__(name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name[0] == "_" or name in _OWN_FIELDS:
            super().__setattr__(name, value)
            return
        anchor_configs = self.anchor_configs
        holders = _holders(anchor_configs, name)
        self._check(holders, name, value)
        before = _set_all(holders, name, value)
        try:
            super().__setattr__(name, value)
        except BaseException:
            _restore(before, name)
            raise
        if "_changes" in self.__dict__:
            self.__dict__["_changes"][name] = value

    def _check(self, holders: Sequence[Any], name: str, value: Any) -> None:
        """Refuse a field that one value cannot be right for, or that built anchors cannot follow.

        Raises:
            ValueError: saying what to do instead.
        """
        values = [_read(config, name) for config in holders]
        differ = any(other != values[0] for other in values)
        if differ and isinstance(value, (int, list, tuple, dict)) and not isinstance(value, bool):
            raise ValueError(
                f"config.{name} differs between the anchors ({', '.join(f'{v!s:.40}' for v in values)}): set it in "
                "model.anchors[i].config."
            )
        if holders and name in _CLASSES:
            count = value if name == "num_labels" else len(value or ())
            classes = holders[-1].num_labels
            if count != classes:
                raise ValueError(
                    f"config.{name} has {count} classes, and the anchors were built with {classes}: load the network "
                    "with num_labels=… and ignore_mismatched_sizes=True, or stitch anchors that have as many."
                )


def _read(config: Any, name: str) -> Any:
    """Read a field; XLNet's configuration raises for some that it does not have."""
    try:
        return getattr(config, name, _MISSING)
    except NotImplementedError:
        return _MISSING


def _holders(anchor_configs: Sequence[Any], name: str) -> list[Any]:
    """List the configurations that have a field, or whose models read it, each once."""
    distinct = {id(config): config for config in anchor_configs}.values()
    return [c for c in distinct if _read(c, name) is not _MISSING or has_field(type(c), name)]


def _set_all(configs: Sequence[Any], name: str, value: object) -> list[tuple[Any, Any]]:
    """Set a field of several configurations, or of none; returns their values before."""
    before: list[tuple[Any, Any]] = []
    try:
        for config in configs:
            before.append((config, _read(config, name)))
            setattr(config, name, value)
    except BaseException:
        _restore(before, name)
        raise
    return before


def _restore(before: Sequence[tuple[Any, Any]], name: str) -> None:
    for config, value in before:
        if value is not _MISSING:
            setattr(config, name, value)
        elif name in config.__dict__:
            delattr(config, name)
