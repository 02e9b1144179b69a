"""The Open Inference Protocol (KServe v2) with Triton's binary tensors: bodies read, and answers written.

Source: the protocol at https://github.com/kserve/open-inference-protocol, and the extension "binary tensor data" of
Triton Inference Server.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

INPUT, OUTPUT = "image", "logits"
HEADER_LENGTH = "inference-header-content-length"
EXTENSIONS = ("binary_tensor_data",)


@dataclass(frozen=True)
class Inference:
    """What a client sent.

    Args:
        images: prepared images, shape (N, C, H, W), or the bytes of N image files.
        parameters: of the request; plain values.
        identity: the request's `id`, given back.
        binary: whether the logits are to be bytes behind the JSON.
    """

    images: NDArray[np.float32] | list[bytes]
    parameters: Mapping[str, Any]
    identity: str | None
    binary: bool


def read_inference(body: bytes, header_length: str | None, shape: Sequence[int], most_images: int) -> Inference:
    """Read the body of an `infer` request.

    Args:
        body: JSON, with bytes of tensors behind it if `header_length` says where it ends.
        header_length: what the HTTP header of that name says.
        shape: (C, H, W) of the images that the network takes.
        most_images: that one request may have.

    Raises:
        ValueError: naming what is wrong.
    """
    end = len(body)
    if header_length is not None:
        if not (header_length.isascii() and header_length.isdigit() and int(header_length) <= len(body)):
            raise ValueError(f"{HEADER_LENGTH}={header_length!r:.40} is not the length of the JSON in this body.")
        end = int(header_length)
    try:
        said = json.loads(body[:end])
    except (ValueError, RecursionError):
        raise ValueError("the body is not JSON: expected a request of the Open Inference Protocol.") from None
    inputs = said.get("inputs") if isinstance(said, dict) else None
    if not isinstance(inputs, list) or len(inputs) != 1 or not isinstance(inputs[0], dict):
        raise ValueError(f"expected one input, {INPUT!r}: float32 of {['N', *shape]}, or N image files as BYTES.")
    tensor, wanted = inputs[0], said.get("outputs") or [{}]
    if tensor.get("name") != INPUT or not isinstance(wanted, list) or not isinstance(wanted[0], dict):
        raise ValueError(f"expected one input, {INPUT!r}, and one output, {OUTPUT!r}.")
    if len(wanted) != 1 or wanted[0].get("name", OUTPUT) != OUTPUT:
        raise ValueError(f"the only output is {OUTPUT!r}.")
    parameters = _plain(said.get("parameters"))
    binary = _plain(wanted[0].get("parameters")).get("binary_data", parameters.pop("binary_data_output", False))
    identity = said.get("id")
    return Inference(
        _images(tensor, body[end:], shape, most_images), parameters,
        identity[:256] if isinstance(identity, str) else None, bool(binary),
    )  # fmt: skip


def _plain(parameters: Any) -> dict[str, Any]:
    if parameters is None:
        return {}
    if not isinstance(parameters, dict) or not all(isinstance(v, (str, int, float)) for v in parameters.values()):
        raise ValueError("parameters are to be an object of plain values.")
    return dict(parameters)


def _images(
    tensor: Mapping[str, Any], behind: bytes, shape: Sequence[int], most: int
) -> NDArray[np.float32] | list[bytes]:
    """The images of an input tensor, its data in it or behind the JSON."""
    sizes, kind, parameters = tensor.get("shape"), tensor.get("datatype"), _plain(tensor.get("parameters"))
    files = kind == "BYTES"
    expected = [] if files else list(shape)
    plain = isinstance(sizes, list) and all(isinstance(n, int) and not isinstance(n, bool) for n in sizes)
    if (
        kind not in ("FP32", "BYTES")
        or not plain
        or not sizes
        or sizes[1:] not in (expected, [1] if files else expected)
    ):
        raise ValueError(
            f"{INPUT!r} has datatype {kind!r:.20} and shape {sizes!r:.60}: expected FP32 of {['N', *shape]}, or image "
            "files as BYTES of ['N']."
        )
    count = sizes[0]
    if not 1 <= count <= most:
        raise ValueError(f"the request has {count} images: 1 to {most} are taken.")
    if "binary_data_size" in parameters:
        if parameters["binary_data_size"] != len(behind):
            raise ValueError(f"binary_data_size={parameters['binary_data_size']!r:.40}, but {len(behind)} bytes came.")
        if files:
            return _cut(behind, count)
        if len(behind) != 4 * count * math.prod(shape):
            raise ValueError(f"{len(behind)} bytes are not float32 of {sizes}.")
        return _finite(np.frombuffer(behind, "<f4").astype(np.float32).reshape(count, *shape))
    data = tensor.get("data")
    if not isinstance(data, list):
        raise ValueError(f"{INPUT!r} has no data.")
    if files:
        return _decoded(data, count)
    try:
        with np.errstate(over="ignore"):  # what is too large becomes infinite, which is refused
            images = np.asarray(data, dtype=np.float32).reshape(count, *shape)
    except (ValueError, TypeError):
        raise ValueError(f"the data of {INPUT!r} are not numbers of shape {sizes}.") from None
    return _finite(images)


def _finite(images: NDArray[np.float32]) -> NDArray[np.float32]:
    if not np.isfinite(images).all():
        raise ValueError(f"{INPUT!r} holds what is no finite number.")
    return images


def _cut(data: bytes, count: int) -> list[bytes]:
    """Elements that stand behind their lengths, four bytes each."""
    found: list[bytes] = []
    at = 0
    while at + 4 <= len(data) and len(found) < count:
        (length,) = struct.unpack_from("<I", data, at)
        found.append(data[at + 4 : at + 4 + length])
        at += 4 + length
    if at != len(data) or len(found) != count:
        raise ValueError(f"the bytes of {INPUT!r} are not {count} elements, each behind its length.")
    return found


def _decoded(data: Sequence[Any], count: int) -> list[bytes]:
    """Files in JSON, as base64."""
    if len(data) != count or not all(isinstance(one, str) for one in data):
        raise ValueError(f"the data of {INPUT!r} are not {count} files as base64.")
    try:
        return [base64.b64decode(one, validate=True) for one in data]
    except (binascii.Error, ValueError):
        raise ValueError(f"the data of {INPUT!r} are not {count} files as base64.") from None


def write_inference(
    name: str, asked: Inference, logits: NDArray[np.float32], parameters: Mapping[str, Any]
) -> tuple[bytes, dict[str, str]]:
    """The body of an answer, and its headers.

    Args:
        name: of the network.
        asked: the request.
        logits: shape (N, classes).
        parameters: what else the answer says.
    """
    output: dict[str, Any] = {"name": OUTPUT, "datatype": "FP32", "shape": list(logits.shape)}
    said = {"model_name": name, "model_version": "1", "parameters": dict(parameters), "outputs": [output]}
    if asked.identity is not None:
        said["id"] = asked.identity
    if not asked.binary:
        output["data"] = logits.ravel().tolist()
        return json.dumps(said).encode(), {"content-type": "application/json"}
    data = logits.astype("<f4").tobytes()
    output["parameters"] = {"binary_data_size": len(data)}
    head = json.dumps(said).encode()
    return head + data, {"content-type": "application/octet-stream", HEADER_LENGTH: str(len(head))}


def describe(name: str, shape: Sequence[int], classes: int) -> dict[str, Any]:
    """A network's metadata."""
    return {
        "name": name,
        "versions": ["1"],
        "platform": "timm_stitch",
        "inputs": [{"name": INPUT, "datatype": "FP32", "shape": [-1, *shape]}],
        "outputs": [{"name": OUTPUT, "datatype": "FP32", "shape": [-1, classes]}],
    }
