"""The Open Inference Protocol (KServe v2) with Triton's binary tensors: reads bodies and writes answers.

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
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

INPUT, OUTPUT = "image", "logits"
HEADER_LENGTH = "inference-header-content-length"
EXTENSIONS = ("binary_tensor_data", "classification")
INPUT_FIELDS = ("name", "datatype", "shape", "data", "parameters")
_FIELDS = ("id", "parameters", "inputs", "outputs")
_MOST_ID = 256  # letters


@dataclass(frozen=True)
class Inference:
    """A request.

    Args:
        parameters: the request's parameters, plain values.
        identity: the request's `id`, which the answer repeats.
        binary: whether the answer has its output as bytes behind its JSON.
        class_count: the number of best classes to return instead of all logits; None for the logits.
        inputs: prepared images, shape (N, C, H, W), or the bytes of N image files; texts, or the arguments of a call.
    """

    parameters: Mapping[str, str | int | float]
    identity: str | None
    binary: bool
    class_count: int | None = None
    inputs: Any = None


def read_inference(
    body: bytes, header_length: str | None, shape: Sequence[int], most_images: int, classes: int | None = None
) -> Inference:
    """Read the body of an `infer` request.

    Args:
        body: JSON, with bytes of tensors behind it if `header_length` is given.
        header_length: the length of the JSON, from the HTTP header of that name.
        shape: the shape (C, H, W) of the images that the network takes.
        most_images: the largest number of images in a request.
        classes: the number of classes of the network; without it the extension "classification" is refused.

    Raises:
        ValueError: naming the part that is wrong or not supported.
    """
    request, behind = read_json(body, header_length)
    inputs = request.get("inputs")
    if not isinstance(inputs, list) or len(inputs) != 1 or not isinstance(inputs[0], dict):
        raise ValueError(f"expected one input, {INPUT!r}: float32 of {['N', *shape]}, or N image files as BYTES.")
    tensor, outputs = inputs[0], request.get("outputs") or [{}]
    if tensor.get("name") != INPUT or not isinstance(outputs, list) or not isinstance(outputs[0], dict):
        raise ValueError(f"expected one input, {INPUT!r}, and one output, {OUTPUT!r}.")
    only(tensor, INPUT_FIELDS, "fields of an input")
    inference = read_fields(request, OUTPUT, classes)
    return replace(inference, inputs=_images(tensor, behind, shape, most_images))


def read_json(body: bytes, header_length: str | None) -> tuple[dict[str, Any], bytes]:
    """Read the JSON of a request, and the bytes behind it.

    Raises:
        ValueError: if it is no JSON object.
    """
    end = len(body)
    if header_length is not None:
        if not (header_length.isascii() and header_length.isdigit() and int(header_length) <= len(body)):
            raise ValueError(f"{HEADER_LENGTH}={header_length!r:.40} is not the length of the JSON in this body.")
        end = int(header_length)
    try:
        request = json.loads(body[:end], parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        raise ValueError("the body is not JSON: expected a request of the Open Inference Protocol.") from None
    return (request if isinstance(request, dict) else {}), body[end:]


def read_fields(request: Mapping[str, Any], output: str, classes: int | None) -> Inference:
    """Read what a request has besides its inputs.

    Args:
        request: the JSON of the request.
        output: the name of the only output.
        classes: the number of classes; without it the extension "classification" is refused.

    Raises:
        ValueError: naming the field that is wrong or not supported.
    """
    outputs = request.get("outputs") or [{}]
    if not isinstance(outputs, list) or len(outputs) != 1 or not isinstance(outputs[0], dict):
        raise ValueError(f"the only output is {output!r}.")
    if outputs[0].get("name", output) != output:
        raise ValueError(f"the only output is {output!r}.")
    only(request, _FIELDS, "fields of a request")
    only(outputs[0], ("name", "parameters"), "fields of an output")
    parameters, wanted = plain_values(request.get("parameters")), plain_values(outputs[0].get("parameters"))
    only(wanted, ("binary_data", "classification"), "parameters of an output")
    binary = wanted.get("binary_data", parameters.pop("binary_data_output", False))
    if not isinstance(binary, bool):
        raise ValueError(f"binary_data must be true or false, got {binary!r:.40}.")
    class_count = wanted.get("classification")
    if class_count is not None and (type(class_count) is not int or class_count < 1 or not classes):
        raise ValueError(f"classification must be a number of classes, 1 or more, got {class_count!r:.40}.")
    identity = request.get("id")
    if identity is not None and not (isinstance(identity, str) and len(identity) <= _MOST_ID):
        raise ValueError(f"id must be a text of at most {_MOST_ID} letters, got {identity!r:.40}.")
    return Inference(parameters, identity, binary, class_count)


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def only(values: Mapping[str, object], names: Sequence[str], kind: str) -> None:
    """Refuse what would be ignored.

    Raises:
        ValueError: naming it.
    """
    for name in values:
        if name not in names:
            raise ValueError(f"{name!r:.60} is not supported: {kind} are {', '.join(names)}.")


def plain_values(parameters: object) -> dict[str, str | int | float]:
    """Read the parameters of a request or a tensor.

    Raises:
        ValueError: if they are not plain values.
    """
    if parameters is None:
        return {}
    if not isinstance(parameters, dict) or not all(isinstance(v, (str, int, float)) for v in parameters.values()):
        raise ValueError("parameters must be an object of plain values.")
    return dict(parameters)


def _images(
    tensor: Mapping[str, Any], behind: bytes, shape: Sequence[int], most: int
) -> NDArray[np.float32] | list[bytes]:
    """Read the images of an input tensor, whose data is in it or behind the JSON."""
    sizes, kind, parameters = tensor.get("shape"), tensor.get("datatype"), plain_values(tensor.get("parameters"))
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
    only(parameters, ("binary_data_size",), "parameters of an input")
    count = sizes[0]
    if not 1 <= count <= most:
        raise ValueError(f"the request has {count} images: 1 to {most} are accepted.")
    if "binary_data_size" in parameters:
        if "data" in tensor:
            raise ValueError(f"{INPUT!r} has data twice, in the JSON and behind it: give it once.")
        if parameters["binary_data_size"] != len(behind) or isinstance(parameters["binary_data_size"], bool):
            raise ValueError(f"binary_data_size={parameters['binary_data_size']!r:.40}, but {len(behind)} bytes came.")
        if files:
            return cut_elements(behind, count, INPUT)
        if len(behind) != 4 * count * math.prod(shape):
            raise ValueError(f"{len(behind)} bytes are not float32 of {sizes}.")
        return _finite(np.frombuffer(behind, "<f4").astype(np.float32).reshape(count, *shape))
    if behind:
        raise ValueError(f"{len(behind)} bytes stand behind the JSON, but {INPUT!r} has no binary_data_size.")
    data = tensor.get("data")
    if not isinstance(data, list):
        raise ValueError(f"{INPUT!r} has no data.")
    if files:
        return _decoded(data, count)
    try:
        numbers = np.asarray(data)
        if numbers.dtype.kind not in "iuf":  # texts and truth values would become numbers
            raise TypeError
        with np.errstate(over="ignore"):  # too large a number becomes infinite, which is refused
            images = numbers.astype(np.float32).reshape(count, *shape)
    except (ValueError, TypeError):
        raise ValueError(f"the data of {INPUT!r} are not numbers of shape {sizes}.") from None
    return _finite(images)


def _finite(images: NDArray[np.float32]) -> NDArray[np.float32]:
    if not np.isfinite(images).all():
        raise ValueError(f"{INPUT!r} must hold finite numbers.")
    return images


def cut_elements(data: bytes, count: int, name: str) -> list[bytes]:
    """Split the elements of an input that stand behind their lengths, four bytes each.

    Raises:
        ValueError: if the bytes are not as many elements.
    """
    elements: list[bytes] = []
    at = 0
    while at + 4 <= len(data) and len(elements) < count:
        (length,) = struct.unpack_from("<I", data, at)
        elements.append(data[at + 4 : at + 4 + length])
        at += 4 + length
    if at != len(data) or len(elements) != count:
        raise ValueError(f"the bytes of {name!r} are not {count} elements, each behind its length.")
    return elements


def _decoded(data: Sequence[Any], count: int) -> list[bytes]:
    """Decode files that stand in JSON as base64."""
    if len(data) != count or not all(isinstance(one, str) for one in data):
        raise ValueError(f"the data of {INPUT!r} are not {count} files as base64.")
    try:
        return [base64.b64decode(one, validate=True) for one in data]
    except (binascii.Error, ValueError):
        raise ValueError(f"the data of {INPUT!r} are not {count} files as base64.") from None


def write_inference(
    name: str,
    request: Inference,
    logits: NDArray[np.float32],
    parameters: Mapping[str, object],
    labels: Sequence[str] = (),
    name_of_output: str = OUTPUT,
) -> tuple[bytes, dict[str, str]]:
    """Write the body of an answer, and its headers.

    Args:
        name: the name of the network.
        request: the request.
        logits: the logits, shape (N, classes).
        parameters: further plain values of the answer.
        labels: the name of each class, for the extension "classification".
        name_of_output: the name of the output.
    """
    output: dict[str, object] = {"name": name_of_output, "datatype": "FP32", "shape": list(logits.shape)}
    answer = {"model_name": name, "model_version": "1", "parameters": dict(parameters), "outputs": [output]}
    if request.identity is not None:
        answer["id"] = request.identity
    values: list[float] | list[str]
    if request.class_count is None:
        values, data = logits.ravel().tolist(), logits.astype("<f4").tobytes()
    else:
        best = np.argsort(-logits, axis=1, kind="stable")[:, : request.class_count]
        values = texts = [
            f"{row[k]:f}:{k}:{labels[k]}" for row, classes in zip(logits, best, strict=True) for k in classes
        ]
        encoded = [text.encode() for text in texts]
        data = b"".join(struct.pack("<I", len(value)) + value for value in encoded)
        output |= {"datatype": "BYTES", "shape": list(best.shape)}
    if not request.binary:
        output["data"] = values
        return json.dumps(answer, allow_nan=False).encode(), {"content-type": "application/json"}
    output["parameters"] = {"binary_data_size": len(data)}
    head = json.dumps(answer, allow_nan=False).encode()
    return head + data, {"content-type": "application/octet-stream", HEADER_LENGTH: str(len(head))}


def describe(name: str, shape: Sequence[int], output: Sequence[int]) -> dict[str, object]:
    """Describe a network, as the protocol's metadata, with the shape of an image's output."""
    return describe_tensors(name, [tensor_metadata(INPUT, "FP32", shape)], [tensor_metadata(OUTPUT, "FP32", output)])


def describe_tensors(name: str, inputs: Sequence[object], outputs: Sequence[object]) -> dict[str, object]:
    """Describe a network by its tensors."""
    return {
        "name": name, "versions": ["1"], "platform": "timm_stitch", "inputs": list(inputs), "outputs": list(outputs),
    }  # fmt: skip


def tensor_metadata(name: str, datatype: str, shape: Sequence[int]) -> dict[str, object]:
    """Describe a tensor, with the shape of one of its N elements."""
    return {"name": name, "datatype": datatype, "shape": [-1, *shape]}
