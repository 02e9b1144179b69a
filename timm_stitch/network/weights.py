"""The identity of weights: fingerprints, and whether weights fit a network."""

from __future__ import annotations

import hashlib
import os
import re
import zlib
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from ..files import PathLike

# A flag among the weights says whether stitched paths run the final norm. Files of version 0.1 and fingerprints call it
# `stitched_norm`; the `state_dict()` of a network without that norm has it under torch's name for extra state.
NORM_FLAG, EXTRA_STATE = "stitched_norm", "_extra_state"

_LANES = 8191  # 64-bit words that are mixed at once, which a cache holds; a prime, so that equal rows begin elsewhere
_CHUNK = 1 << 17  # 32-bit words that are summed at once on other devices
_ODD, _HALF = np.uint64(0x9E3779B97F4A7C15), np.uint64(32)


def split_norm(state_dict: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], bool | None]:
    """Split weights from the flag for the final norm on stitched paths; None where there is no flag."""
    weights = dict(state_dict)
    flags = [flag for name in (NORM_FLAG, EXTRA_STATE) if (flag := weights.pop(name, None)) is not None]
    return weights, bool(flags[0]) if flags and not flags[0].is_meta else None


def fingerprint(model: nn.Module) -> str:
    """Compute the fingerprint of a network: 16 hexadecimal digits, equal for equal names and values of weights.

    It covers the flag for the final norm on stitched paths, which makes another network of the same weights.
    """
    return fingerprint_of(kept_state(model), getattr(model, NORM_FLAG, None))


def kept_state(model: nn.Module) -> Mapping[str, Tensor]:
    """Get the weights of a network by their names in files."""
    get_state: Callable[[], Mapping[str, Tensor]] = getattr(model, "kept_state", model.state_dict)
    return get_state()


def fingerprint_of(state_dict: Mapping[str, Tensor], stitched_norm: bool | None = None) -> str:
    """Compute the `fingerprint` of weights by name.

    Args:
        state_dict: the weights.
        stitched_norm: the network's flag, for weights that do not hold it.
    """
    weights, saved_flag = split_norm(state_dict)
    flag = stitched_norm if saved_flag is None else saved_flag
    if flag is not None:
        weights[NORM_FLAG] = torch.tensor(flag)
    digest = hashlib.blake2b(digest_size=8)
    for name, tensor in sorted(weights.items()):
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(_bytes_of(tensor))
    return digest.hexdigest()


def sum_tensors(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Compute a checksum of each tensor: 8 hexadecimal digits, by which a part of the weights can be checked alone."""
    return {
        name: f"{zlib.crc32(_bytes_of(tensor), zlib.crc32(f'{tuple(tensor.shape)}{tensor.dtype}'.encode())):08x}"
        for name, tensor in split_norm(tensors)[0].items()
    }


def _bytes_of(tensor: Tensor) -> memoryview:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    data: memoryview = flat.view(torch.uint8).numpy().data
    return data


def weights_version(model: nn.Module) -> bytes:
    """Compute a value that changes with a network's weights: a sum over all their bytes, on their own device.

    It is for comparisons in memory, and several times faster than `fingerprint`.
    """
    state = kept_state(model)
    sums = {name: _device_sums(tensor) for name, tensor in state.items() if tensor.device.type != "cpu"}
    by_device: dict[torch.device, list[Tensor]] = {}
    for parts in sums.values():
        for part in parts:
            by_device.setdefault(part.device, []).append(part)
    values = {device: iter(torch.stack(parts).tolist()) for device, parts in by_device.items()}  # one transfer each
    own = {name: tensor for name, tensor in state.items() if name not in sums}
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        mixed = dict(zip(own, pool.map(_mix, own.values()), strict=True))
    digest = hashlib.blake2b(str(getattr(model, NORM_FLAG, None)).encode(), digest_size=16)
    for name, tensor in state.items():
        value = mixed[name] if name in mixed else [next(values[part.device]) for part in sums[name]]
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}{value}".encode())
    return digest.digest()


def _mix(tensor: Tensor) -> str:
    """Mix the bytes of a tensor into as many lanes as a cache holds, by steps that lose no bit, and hash the lanes."""
    data = _bytes_of(tensor)
    words = np.frombuffer(data, np.uint64, len(data) // 8)
    lanes = np.zeros((2, min(len(words), _LANES)), np.uint64)
    for start in range(0, len(words), _LANES):
        chunk = words[start : start + _LANES]
        sums, high = lanes[:, : len(chunk)]
        np.right_shift(sums, _HALF, out=high)
        np.bitwise_xor(sums, high, out=sums)
        np.multiply(sums, _ODD, out=sums)
        np.add(sums, chunk, out=sums)
    return hashlib.blake2b(lanes[0].tobytes() + data[8 * len(words) :], digest_size=16).hexdigest()


def _device_sums(tensor: Tensor) -> list[Tensor]:
    """Sum the bytes of a tensor on its device, as 32-bit words times factors that depend on their positions."""
    if tensor.is_meta or not tensor.numel():
        return []
    words = tensor.detach().contiguous().reshape(-1)
    count, offset = words.nbytes, words.storage_offset() * words.itemsize
    if count % 4 or offset % 4:
        words = words.view(torch.uint8)
        words = torch.cat([words, words.new_zeros(-count % 4)])
    chunks = words.view(torch.int32).split(_CHUNK)
    return [(chunk * _factors(words.device)[: len(chunk)]).sum() for chunk in chunks]


@cache
def _factors(device: torch.device) -> Tensor:
    """Make the odd factors of a chunk, always the same ones."""
    generator = torch.Generator().manual_seed(0)
    return (torch.randint(-(1 << 62), 1 << 62, (_CHUNK,), generator=generator, device="cpu") | 1).to(device)


def cached_fingerprint(model: nn.Module) -> str:
    """Get the `fingerprint`, cached while `weights_version` is the same."""
    version = weights_version(model)
    cached_version, cached = model.__dict__.get("_fingerprint", (None, ""))
    if cached_version != version:
        cached = fingerprint(model)
        model.__dict__["_fingerprint"] = version, cached
    return str(cached)


def cache_fingerprint(model: nn.Module, fingerprint: str) -> None:
    """Cache the `fingerprint` of weights that were just compared with it."""
    model.__dict__["_fingerprint"] = weights_version(model), fingerprint


def save_file(tensors: Mapping[str, Tensor], path: PathLike, metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors to a safetensors file.

    Raises:
        OSError: if it cannot be written, which safetensors reports by an error of its own.
    """
    try:
        safetensors.torch.save_file(dict(tensors), path, None if metadata is None else dict(metadata))
    except SafetensorError as error:
        number = re.search(r"\(os error (\d+)\)|Os \{ code: (\d+)", str(error))
        if number is None:
            raise
        code = int(number[1] or number[2])
        raise OSError(code, f"cannot write {os.path.basename(path)}: {os.strerror(code)}") from error


def check_keys(state_dict: Mapping[str, Tensor], own: Mapping[str, Tensor], what: str) -> None:
    """Refuse weights of another network; the flag for the final norm does not matter here.

    Raises:
        ValueError: naming the tensors that are missing, unknown, or of another shape.
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
            "Give the file of this network, or create the network that the file belongs to."
        )
