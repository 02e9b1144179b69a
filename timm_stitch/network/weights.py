"""Which weights a figure belongs to, and whether weights are those of a network. Imports torch."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor, nn


def fingerprint(model: nn.Module) -> str:
    """A digest of a network's weights: 16 hexadecimal digits, equal for equal names and values."""
    return fingerprint_of(model.state_dict())


def fingerprint_of(state_dict: Mapping[str, Tensor]) -> str:
    """The `fingerprint` of weights by name."""
    digest = hashlib.blake2b(digest_size=8)
    for name, tensor in sorted(state_dict.items()):
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def fingerprint_again(model: nn.Module) -> str:
    """The `fingerprint`, from memory while no tensor has changed.

    Whether one has is told from where each lies, torch's count of its changes, and sixteen of its values.
    """
    glance = []
    for name, tensor in model.state_dict().items():
        flat = tensor.detach().reshape(-1)
        few = flat[:: max(1, flat.numel() // 16)].double().sum().item() if flat.numel() else 0.0
        version = 0 if tensor.is_inference() else tensor._version
        glance.append((name, tensor.data_ptr(), version, few))
    kept = model.__dict__.get("_fingerprint")
    if kept is None or kept[0] != glance:
        kept = glance, fingerprint(model)
        model.__dict__["_fingerprint"] = kept
    return kept[1]


def check_keys(state_dict: Mapping[str, Tensor], own: Mapping[str, Tensor], what: str) -> None:
    """Refuse weights of another network.

    Raises:
        ValueError: naming what is missing, unknown, or of another shape.
    """
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
