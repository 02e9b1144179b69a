"""Which weights a figure belongs to, and whether weights are those of a network."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

# Whether stitched paths run the final norm stands among weights without being one: in files of version 0.1, and in what
# is fingerprinted, as `stitched_norm`; in the `state_dict()` of networks without, as torch names what is no tensor.
NORM_FLAG, EXTRA_STATE = "stitched_norm", "_extra_state"


def split_norm(state_dict: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], bool | None]:
    """The weights alone, and whether they say that stitched paths run the final norm; None if they say nothing."""
    weights = dict(state_dict)
    marks = [mark for name in (NORM_FLAG, EXTRA_STATE) if (mark := weights.pop(name, None)) is not None]
    return weights, bool(marks[0]) if marks and not marks[0].is_meta else None


def fingerprint(model: nn.Module) -> str:
    """A digest of a network: 16 hexadecimal digits, equal for equal names and values of weights.

    Whether stitched paths run the final norm is taken in too: with the same weights it is another network.
    """
    return fingerprint_of(kept_state(model), getattr(model, NORM_FLAG, None))


def kept_state(model: nn.Module) -> Mapping[str, Tensor]:
    """The weights of a network by the names that a file has them by."""
    own: Any = getattr(model, "kept_state", model.state_dict)
    found: Mapping[str, Tensor] = own()
    return found


def fingerprint_of(state_dict: Mapping[str, Tensor], stitched_norm: bool | None = None) -> str:
    """The `fingerprint` of weights by name.

    Args:
        state_dict: the weights.
        stitched_norm: of the network, where the weights do not hold it.
    """
    weights, said = split_norm(state_dict)
    flag = stitched_norm if said is None else said
    if flag is not None:
        weights[NORM_FLAG] = torch.tensor(flag)
    digest = hashlib.blake2b(digest_size=8)
    for name, tensor in sorted(weights.items()):
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def weights_version(model: nn.Module) -> Hashable:
    """A cheap value that changes when a network's weights do.

    It holds where each tensor lies, torch's count of its changes, and the sum of sixteen of its values.
    """
    found = []
    for name, tensor in kept_state(model).items():
        flat = tensor.detach().reshape(-1)
        some = flat[:: max(1, flat.numel() // 16)]
        total = some.double().sum().item() if some.numel() and not tensor.is_meta else 0.0
        found.append((name, tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version, total))
    return (getattr(model, NORM_FLAG, None), *found)


def cached_fingerprint(model: nn.Module) -> str:
    """The `fingerprint`, from memory while `weights_version` is the same."""
    now = weights_version(model)
    kept: Any = model.__dict__.get("_fingerprint")
    if kept is None or kept[0] != now:
        kept = now, fingerprint(model)
        model.__dict__["_fingerprint"] = kept
    return str(kept[1])


def note_fingerprint(model: nn.Module, fingerprint: str) -> None:
    """Remember the `fingerprint` of weights that were just compared with it."""
    model.__dict__["_fingerprint"] = weights_version(model), fingerprint


def check_keys(state_dict: Mapping[str, Tensor], own: Mapping[str, Tensor], what: str) -> None:
    """Refuse weights of another network; whether its stitched paths run the final norm does not matter here.

    Raises:
        ValueError: naming what is missing, unknown, or of another shape.
    """
    state_dict, own = split_norm(state_dict)[0], split_norm(own)[0]
    problems = []
    for label, names in (
        ("are missing", [k for k in own if k not in state_dict]),
        ("are unknown", [k for k in state_dict if k not in own]),
        ("have another shape", [k for k in own if k in state_dict and state_dict[k].shape != own[k].shape]),
    ):
        if names:
            problems.append(f"{len(names)} of {len(own)} tensors {label} (e.g. {names[0]!r})")
    if problems:
        raise ValueError(
            f"these weights are not those of {what}: {'; '.join(problems)}. "
            "Give the file of this very network, or create the network that the file belongs to."
        )
