"""Bodies of the Open Inference Protocol: what is read, what is refused, and what is written."""

import base64
import json
import struct

import numpy as np
import pytest

from timm_stitch.deployment.serving.open_inference import describe, read_inference, write_inference

SHAPE = (1, 2, 2)
IMAGES = np.arange(8, dtype=np.float32).reshape(2, 1, 2, 2)


def body(tensor, behind=b"", **more):
    head = json.dumps({"inputs": [{"name": "image", "datatype": "FP32", "shape": [2, 1, 2, 2], **tensor}], **more})
    return head.encode() + behind, str(len(head))


def output(parameters):
    return body({"data": [0] * 8}, outputs=[{"name": "logits", "parameters": parameters}])[0]


def read(data, length=None, most=8):
    return read_inference(data, length, SHAPE, most, classes=4)


@pytest.mark.parametrize("data", [IMAGES.tolist(), IMAGES.ravel().tolist()])
def test_images_may_be_numbers_in_json(data):
    asked = read(body({"data": data}, id="seven", parameters={"stitch_id": 3, "timeout": 5000})[0])
    assert np.array_equal(asked.inputs, IMAGES)
    assert asked.inputs.dtype == np.float32
    assert asked.parameters == {"stitch_id": 3, "timeout": 5000}
    assert asked.identity == "seven"
    assert not asked.binary


def test_images_may_be_bytes_after_the_json():
    sent = IMAGES.tobytes()
    tensor = {"parameters": {"binary_data_size": len(sent)}}
    wanted = [{"name": "logits", "parameters": {"binary_data": True}}]
    asked = read(*body(tensor, sent, outputs=wanted))
    assert np.array_equal(asked.inputs, IMAGES)
    assert asked.inputs.flags.writeable  # torch takes it
    assert asked.binary
    assert read(*body(tensor, sent, parameters={"binary_data_output": True})).binary


def test_image_files_come_as_bytes_or_base64():
    files = [b"one", b"another"]
    sent = b"".join(struct.pack("<I", len(f)) + f for f in files)
    tensor = {"datatype": "BYTES", "shape": [2], "parameters": {"binary_data_size": len(sent)}}
    assert read(*body(tensor, sent)).inputs == files
    tensor = {"datatype": "BYTES", "shape": [2, 1], "data": [base64.b64encode(f).decode() for f in files]}
    assert read(body(tensor)[0]).inputs == files


@pytest.mark.parametrize(
    ("data", "length", "message"),
    [
        (b"\xff", None, "not JSON"),
        (b"[" * 100_000, None, "not JSON"),
        (b"{}", None, "expected one input, 'image'"),
        (b"[1]", None, "expected one input"),
        (b"{}", "3", "'3' is not the length"),
        (b"{}", "-1", "'-1' is not the length"),
        (b"{}", "\u0662", "is not the length"),
        (body({"name": "x"})[0], None, "expected one input, 'image'"),
        (body({}, outputs=[{"name": "features"}])[0], None, "the only output is 'logits'"),
        (body({}, outputs=["logits"])[0], None, "one output"),
        (body({"datatype": "INT8"})[0], None, "datatype 'INT8'"),
        (body({"shape": [2, 3, 2, 2]})[0], None, r"shape \[2, 3, 2, 2\]: expected FP32 of \['N', 1, 2, 2\]"),
        (body({"shape": [True, 1, 2, 2]})[0], None, "expected FP32"),
        (body({"shape": "2"})[0], None, "expected FP32"),
        (body({"shape": [0, 1, 2, 2]})[0], None, "0 images: 1 to 8"),
        (body({"shape": [9, 1, 2, 2]})[0], None, "9 images: 1 to 8"),
        (body({"shape": [10**12, 1, 2, 2], "data": []})[0], None, "1 to 8"),
        (body({})[0], None, "has no data"),
        (body({"data": [1, 2]})[0], None, "not numbers of shape"),
        (body({"data": ["a"] * 8})[0], None, "not numbers"),
        (body({"data": [[1, 2], [3]]})[0], None, "not numbers"),
        (body({"data": [1e99] * 8})[0], None, "must hold finite numbers"),
        (*body({"parameters": {"binary_data_size": 31}}, bytes(32)), "binary_data_size=31, but 32 bytes came"),
        (*body({"parameters": {"binary_data_size": 31}}, bytes(31)), "31 bytes are not float32"),
        (*body({"parameters": {"binary_data_size": 32}}, b"\xff" * 32), "must hold finite numbers"),
        (*body({"parameters": []}), "parameters must be an object"),
        (body({"data": [True] * 8})[0], None, "not numbers"),
        (body({"data": ["1"] * 8})[0], None, "not numbers"),
        (body({"data": [float("nan")] * 8})[0], None, "not JSON"),
        (*body({"data": [0] * 8}, bytes(8)), "8 bytes stand behind the JSON, but 'image' has no binary_data_size"),
        (*body({"data": [0] * 8, "parameters": {"binary_data_size": 32}}, bytes(32)), "has data twice"),
        (body({"data": [0] * 8}, id=7)[0], None, "id must be a text of at most 256 letters, got 7"),
        (body({"data": [0] * 8}, model="x")[0], None, "'model' is not supported: fields of a request are"),
        (body({"data": [0] * 8, "layout": "x"})[0], None, "'layout' is not supported: fields of an input are"),
        (body({"parameters": {"shared_memory_region": "r"}})[0], None, "'shared_memory_region' is not supported"),
        (
            output({"shared_memory_region": "r"}),
            None,
            "'shared_memory_region' is not supported: parameters of an output",
        ),
        (output({"binary_data": 1}), None, "binary_data must be true or false, got 1"),
        (output({"classification": 0}), None, "classification must be a number of classes"),
        (output({"classification": True}), None, "classification must be a number of classes"),
        (output({"classification": "3"}), None, "classification must be a number of classes"),
        (*body({}, parameters={"a": {}}), "parameters must be an object"),
        (body({"datatype": "BYTES", "shape": [1], "data": ["%"]})[0], None, "base64"),
        (body({"datatype": "BYTES", "shape": [2], "data": ["YQ=="]})[0], None, "2 files as base64"),
        (body({"datatype": "BYTES", "shape": [1], "data": [1]})[0], None, "base64"),
        (
            *body({"datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": 4}}, b"\xff\0\0\0"),
            "not 1 elements, each behind its length",
        ),
        (
            *body({"datatype": "BYTES", "shape": [2], "parameters": {"binary_data_size": 4}}, bytes(4)),
            "not 2 elements",
        ),
    ],
)
def test_what_is_wrong_is_said_in_one_line(data, length, message):
    with pytest.raises(ValueError, match=message) as error:
        read(data, length)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 300


def test_answers_carry_logits_as_numbers_or_bytes():
    logits = np.array([[0.5, 1.5], [2.5, 3.5]], dtype=np.float32)
    plain, binary = (
        read(body({"data": IMAGES.tolist()}, id="7")[0]),
        read(body({"data": IMAGES.tolist()}, parameters={"binary_data_output": True})[0]),
    )
    sent, headers = write_inference("net", plain, logits, {"stitch_id": 3})
    said = json.loads(sent)
    assert said["outputs"] == [{"name": "logits", "datatype": "FP32", "shape": [2, 2], "data": [0.5, 1.5, 2.5, 3.5]}]
    assert (said["model_name"], said["id"], said["parameters"]) == ("net", "7", {"stitch_id": 3})
    assert headers == {"content-type": "application/json"}
    sent, headers = write_inference("net", binary, logits, {})
    end = int(headers["inference-header-content-length"])
    assert json.loads(sent[:end])["outputs"][0]["parameters"] == {"binary_data_size": 16}
    assert np.array_equal(np.frombuffer(sent[end:], "<f4").reshape(2, 2), logits)
    assert describe("net", SHAPE, [2])["inputs"] == [{"name": "image", "datatype": "FP32", "shape": [-1, 1, 2, 2]}]


def test_the_best_classes_may_be_returned_as_texts():
    logits = np.array([[0.5, 1.5, -1.0, 1.0], [3.0, 2.0, 1.0, 0.0]], dtype=np.float32)
    request = read(output({"classification": 2}))
    said = json.loads(write_inference("net", request, logits, {}, ["a", "b", "c", "d"])[0])["outputs"][0]
    expected = ["1.500000:1:b", "1.000000:3:d", "3.000000:0:a", "2.000000:1:b"]
    assert said == {"name": "logits", "datatype": "BYTES", "shape": [2, 2], "data": expected}
    sent, headers = write_inference(
        "net", read(output({"classification": 9, "binary_data": True})), logits, {}, ["a", "b", "c", "d"]
    )
    head = json.loads(sent[: int(headers["inference-header-content-length"])])["outputs"][0]
    assert head["shape"] == [2, 4]
    assert sent.endswith(struct.pack("<I", 13) + b"-0.000000:3:d") or sent.endswith(b"0.000000:3:d")
    with pytest.raises(ValueError, match="classification must be"):
        read_inference(output({"classification": 2}), None, SHAPE, 8)  # whose classes are not known
