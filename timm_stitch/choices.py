"""The values that arguments choose from, as types for editors and as tuples for the command line."""

from __future__ import annotations

from typing import Literal, get_args

Direction = Literal["fast_to_slow", "slow_to_fast", "two_way"]  # of a plan's stitches
Method = Literal["joint", "average"]  # of the least-squares initialisation
Joins = Literal["all", "stitching_layers", "projections"]  # that least squares fits
Precision = Literal["fp32", "bf16", "fp16"]  # of a timed call
ServedPrecision = Literal[Precision, "int8"]  # of a server
ExportFormat = Literal["onnx", "program", "openvino", "executorch", "litert", "web"]
Quantization = Literal["int8", "float16"]  # of exported weights
DenseTask = Literal["segmentation", "depth"]
InferenceMode = Literal["whole", "slide"]  # of dense networks on an image
PolicyName = Literal["drain", "fixed"]  # of a server
EngineName = Literal["torch", "openvino", "onnxruntime", "cuda-graphs", "auto"]  # that runs a server's stitches
OutputName = Literal["logits", "embeddings"]  # of a served network of texts
PoolingName = Literal["mean", "first", "last"]  # of the embeddings of tokens

# Of a training run.
SamplingRule = Literal["uniform", "resource", "sandwich", "anchors", "importance"]
TunedPart = Literal["all", "stitches"]
MixedPrecision = Literal["no", "bf16", "fp16"]
ClipMode = Literal["norm", "value", "agc"]
Schedule = Literal["cosine", "tanh", "poly", "constant", "wsd", "rsqrt", "onecycle", "none"]
Distillation = Literal["none", "soft", "hard"]
Resume = Literal[False, True, "auto", "extend"]

# Of its images.
CropMode = Literal["rrc", "rkrc", "rkrr"]
EraseMode = Literal["const", "rand", "pixel"]
CropInterpolation = Literal["bilinear", "bicubic", "random", "nearest", "box", "hamming", "lanczos"]

DIRECTIONS: tuple[Direction, ...] = get_args(Direction)
METHODS: tuple[Method, ...] = get_args(Method)
JOINS: tuple[Joins, ...] = get_args(Joins)
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
SERVED_PRECISIONS: tuple[ServedPrecision, ...] = get_args(ServedPrecision)
EXPORT_FORMATS: tuple[ExportFormat, ...] = get_args(ExportFormat)
QUANTIZATIONS: tuple[Quantization, ...] = get_args(Quantization)
DENSE_TASKS: tuple[DenseTask, ...] = get_args(DenseTask)
INFERENCE_MODES: tuple[InferenceMode, ...] = get_args(InferenceMode)
POLICIES: tuple[PolicyName, ...] = get_args(PolicyName)
ENGINES: tuple[EngineName, ...] = get_args(EngineName)
POOLINGS: tuple[PoolingName, ...] = get_args(PoolingName)
