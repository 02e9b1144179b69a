"""Reads texts of requests: from the body of `/predict`, and from tensors of the Open Inference Protocol."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from email.message import Message
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...families.text_endpoint import TextEndpoint
from .open_inference import (
    INPUT_FIELDS,
    Inference,
    cut_elements,
    describe_tensors,
    only,
    plain_values,
    read_fields,
    read_json,
    tensor_metadata,
)

TEXT, IDS, MASK = "text", "input_ids", "attention_mask"
# What curl sends of its own accord, and what says nothing of the body, stand for a text.
_PLAIN = ("text/plain", "application/octet-stream", "application/x-www-form-urlencoded")
_EXPECTED = f"expected {TEXT!r}, N texts as BYTES, or {IDS!r} and {MASK!r}, INT64 of [N, L]"


@dataclass(frozen=True)
class Texts:
    """The texts of a request to `/predict`.

    Args:
        texts: the texts.
        is_list: whether they came as a list, and the answer is one too.
    """

    texts: list[str]
    is_list: bool


def read_texts(body: bytes, content_type: str, most: int) -> Texts:
    """Read the body of a request to `/predict`: one text, or JSON with `text` or `texts`.

    Args:
        body: the body.
        content_type: the HTTP header of that name.
        most: the largest number of texts.

    Raises:
        ValueError: if it is neither, or has too many texts.
    """
    kind = Message()
    kind["content-type"] = content_type or "text/plain"
    if kind.get_content_type() != "application/json":
        charset = kind.get_param("charset", "utf-8")
        is_text = kind.get_content_type() in _PLAIN and str(charset).lower() in ("utf-8", "us-ascii")
        if not is_text:
            raise ValueError(f"content-type {content_type!r:.60} is not read: send text/plain in UTF-8, or JSON.")
        return Texts([_decode(body)], False)
    try:
        values = json.loads(body)
    except (ValueError, RecursionError):
        raise ValueError('the body is not JSON: expected {"text": …} or {"texts": […]}.') from None
    if not isinstance(values, dict) or len(values) != 1 or not values.keys() <= {"text", "texts"}:
        raise ValueError('expected {"text": …} or {"texts": […]}, and options in the query.')
    is_list = "texts" in values
    texts = values["texts"] if is_list else [values["text"]]
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise ValueError("text must be a text, and texts a list of them.")
    _check_count(len(texts), most)
    return Texts(texts, is_list)


def read_text_inference(
    body: bytes, header_length: str | None, endpoint: TextEndpoint, most: int, classes: int | None
) -> Inference:
    """Read the body of an `infer` request.

    Args:
        body, header_length: the arguments of `read_inference`.
        endpoint: the texts that the network takes, and its output.
        most: the largest number of texts.
        classes: the number of classes; without it the extension "classification" is refused.

    Returns:
        The request, whose inputs are a list of texts, or arrays of int64 by name for tokens.

    Raises:
        ValueError: naming the part that is wrong or not supported.
    """
    request, behind = read_json(body, header_length)
    tensors = request.get("inputs")
    if not isinstance(tensors, list) or not all(isinstance(tensor, dict) for tensor in tensors):
        raise ValueError(f"a request must have inputs: {_EXPECTED}.")
    names = [tensor.get("name") for tensor in tensors]
    if names != [TEXT] and (len(names) != 2 or set(map(str, names)) != {IDS, MASK}):
        raise ValueError(f"the inputs are {', '.join(f'{name!r:.40}' for name in names[:4])}: {_EXPECTED}.")
    inference = read_fields(request, endpoint.output, classes)
    data: dict[str, Any] = {}
    for tensor in tensors:
        only(tensor, INPUT_FIELDS, "fields of an input")
        behind = _read_tensor(tensor, behind, endpoint.max_length, most, data)
    if behind:
        raise ValueError(f"{len(behind)} bytes stand behind the JSON that no input's binary_data_size counts.")
    if names == [TEXT]:
        return replace(inference, inputs=data[TEXT])
    _check_tokens(data[IDS], data[MASK], endpoint.vocab_size)
    return replace(inference, inputs=data)


def describe_texts(name: str, endpoint: TextEndpoint) -> dict[str, object]:
    """Describe a network of texts, as the protocol's metadata; either `text` is given, or the two others."""
    inputs = [tensor_metadata(TEXT, "BYTES", ()), *(tensor_metadata(n, "INT64", (-1,)) for n in (IDS, MASK))]
    about = describe_tensors(name, inputs, [tensor_metadata(endpoint.output, "FP32", (endpoint.width,))])
    return {**about, "max_length": endpoint.max_length}


def _read_tensor(tensor: Mapping[str, Any], behind: bytes, longest: int, most: int, data: dict[str, Any]) -> bytes:
    """Read an input, whose data is in it or behind the JSON; returns the bytes that are left."""
    name, shape, kind = tensor["name"], tensor.get("shape"), tensor.get("datatype")
    parameters = plain_values(tensor.get("parameters"))
    only(parameters, ("binary_data_size",), "parameters of an input")
    sizes = shape if isinstance(shape, list) and all(type(size) is int for size in shape) else []
    is_text = name == TEXT
    fits = kind == "BYTES" and sizes[1:] in ([], [1]) if is_text else kind == "INT64" and len(sizes) == 2
    if not (sizes and fits):
        raise ValueError(f"{name!r} has datatype {kind!r:.20} and shape {shape!r:.60}: {_EXPECTED}.")
    count = sizes[0]
    _check_count(count, most)
    if not is_text and not 1 <= sizes[1] <= longest:
        raise ValueError(f"{name!r} has texts of {sizes[1]} tokens: 1 to {longest} are accepted.")
    size, values = parameters.get("binary_data_size"), tensor.get("data")
    if (size is None) == (values is None):
        raise ValueError(f"{name!r} must have its data either in the JSON or behind it, by binary_data_size.")
    if size is not None:
        if type(size) is not int or not 0 <= size <= len(behind):
            raise ValueError(f"binary_data_size={size!r:.40} of {name!r}, but {len(behind)} bytes came.")
        own, behind = behind[:size], behind[size:]
        if is_text:
            data[name] = [_decode(element) for element in cut_elements(own, count, name)]
        elif size != 8 * count * sizes[1]:
            raise ValueError(f"{size} bytes of {name!r} are not int64 of {sizes}.")
        else:
            data[name] = np.frombuffer(own, "<i8").astype(np.int64).reshape(sizes)
        return behind
    flat = values if isinstance(values, list) else []
    if flat and all(isinstance(row, list) for row in flat):
        flat = [value for row in flat for value in row]
    number = count * (1 if is_text else sizes[1])
    if len(flat) != number or not all(type(value) is (str if is_text else int) for value in flat):
        raise ValueError(f"the data of {name!r} are not {number} {'texts' if is_text else 'whole numbers'}.")
    data[name] = flat if is_text else _whole_numbers(name, flat, sizes)
    return behind


def _whole_numbers(name: str, values: Sequence[int], sizes: Sequence[int]) -> NDArray[np.int64]:
    try:
        return np.array(values, dtype=np.int64).reshape(sizes)
    except OverflowError:
        raise ValueError(f"{name!r} has a number that is no int64.") from None


def _check_tokens(ids: NDArray[np.int64], mask: NDArray[np.int64], vocab_size: int) -> None:
    """Refuse tokens that the network does not know, and masks that are none.

    Raises:
        ValueError: saying what is wrong.
    """
    if ids.shape != mask.shape:
        raise ValueError(
            f"{MASK!r} has shape {list(mask.shape)}, and {IDS!r} {list(ids.shape)}: give one for each token."
        )
    if ids.min() < 0 or ids.max() >= vocab_size:
        wrong = ids.min() if ids.min() < 0 else ids.max()
        raise ValueError(f"{IDS!r} has {wrong}, and the network knows tokens 0 to {vocab_size - 1}.")
    if ((mask != 0) & (mask != 1)).any():
        raise ValueError(f"{MASK!r} must hold 1 for a token and 0 for padding.")
    if not mask.any(1).all():
        raise ValueError(f"{MASK!r} leaves a text without a token.")


def _decode(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise ValueError("a text is not valid UTF-8.") from None


def _check_count(count: int, most: int) -> None:
    if not 1 <= count <= most:
        raise ValueError(f"the request has {count} texts: 1 to {most} are accepted.")
