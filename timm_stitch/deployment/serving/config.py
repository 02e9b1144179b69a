"""The latency target of a server, its limits, and the options of one request."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ...choices import (
    ENGINES,
    POLICIES,
    POOLINGS,
    SERVED_PRECISIONS,
    EngineName,
    PolicyName,
    PoolingName,
    ServedPrecision,
)

LONGEST_MS = 600_000  # the longest latency target, also of a request


@dataclass(frozen=True)
class ServingConfig:
    """The latency target of a server, and its limits.

    Args:
        latency_ms: the latency target of a request that names none, in milliseconds.
        reserve_ms: the part of it that is kept for work outside the network; default a tenth.
        policy: `"drain"`, which chooses stitches by the requests that wait, or `"fixed"`.
        stitch_id: the stitch of the fixed policy; default the most expensive one within the latency target.
        most_waiting: the largest number of images or texts that may wait at once.
        most_pixels: the largest number of pixels of an image.
        most_images: the largest number of images or texts in a request.
        precision: the precision of the network's arithmetic; `"fp16"` on GPUs only, `"int8"` by OpenVINO or ONNX
            Runtime only.
        engine: the engine that runs the stitches: `"torch"`; `"openvino"` or `"onnxruntime"`, which compile them while
            torch answers; `"cuda-graphs"`, which records them on a GPU; or `"auto"`, OpenVINO if it is installed and
            faster.
        most_memory_mb: the most megabytes that compiled weights, or CUDA graphs, may take; default any.
        calibration: a folder of images, or a file with a text in each line, on which the agreement of another precision
            with float32 is measured; default noise. `"int8"` needs a folder: half of its images fix the ranges of
            activations.
        max_length: the most tokens of a text; default what the network takes, at most 512.
        most_characters: the most characters of a text, which is not tokenized otherwise.
        pooling: the embedding of a text: the `"mean"` of those of its tokens, the `"first"` or the `"last"`.
        network: the network in the commands that messages show: its folder or name.

    Raises:
        ValueError: if a value is out of range.

    Examples:
        >>> ServingConfig(latency_ms=50).overhead_ms
        5.0
    """

    latency_ms: float
    reserve_ms: float | None = None
    policy: PolicyName = "drain"
    stitch_id: int | None = None
    most_waiting: int = 1000
    most_pixels: int = 50_000_000
    most_images: int = 32
    precision: ServedPrecision = "fp32"
    calibration: str | None = None
    engine: EngineName = "torch"
    most_memory_mb: float | None = None
    max_length: int | None = None
    most_characters: int = 20_000
    pooling: PoolingName = "mean"
    network: str = "NET"

    def __post_init__(self) -> None:
        if not 0 < self.latency_ms < math.inf:
            raise ValueError(f"latency_ms must be positive and finite, got {self.latency_ms}.")
        if self.latency_ms > LONGEST_MS:
            raise ValueError(f"latency_ms must be at most {LONGEST_MS:,}, ten minutes, got {self.latency_ms:g}.")
        if not 0 <= self.overhead_ms < self.latency_ms:
            raise ValueError(
                f"reserve_ms must be at least 0 and below latency_ms={self.latency_ms}, got {self.reserve_ms}."
            )
        if self.policy not in POLICIES:
            raise ValueError(f"policy must be one of {', '.join(POLICIES)}, got {self.policy!r}.")
        if self.precision not in SERVED_PRECISIONS:
            raise ValueError(f"precision must be one of {', '.join(SERVED_PRECISIONS)}, got {self.precision!r}.")
        if self.engine not in ENGINES:
            raise ValueError(f"engine must be one of {', '.join(ENGINES)}, got {self.engine!r}.")
        if self.most_memory_mb is not None and not 0 < self.most_memory_mb < math.inf:
            raise ValueError(f"most_memory_mb must be positive and finite, got {self.most_memory_mb}.")
        if self.precision == "int8" and self.engine in ("torch", "auto", "cuda-graphs"):
            raise ValueError(
                f"precision int8 needs engine='openvino' or engine='onnxruntime', got engine={self.engine!r}: torch "
                "computes in fp32 or bf16."
            )
        if self.precision == "int8" and self.calibration is None:
            raise ValueError(
                "precision int8 needs calibration: name a folder of images, a few hundred like those to come."
            )
        if self.calibration is not None and self.precision == "fp32":
            raise ValueError("calibration is for a precision other than fp32: leave it out, or give precision='bf16'.")
        if self.stitch_id is not None and self.policy != "fixed":
            raise ValueError(f"stitch_id={self.stitch_id} needs policy='fixed': the other policies choose.")
        if self.pooling not in POOLINGS:
            raise ValueError(f"pooling must be one of {', '.join(POOLINGS)}, got {self.pooling!r}.")
        for name in ("most_waiting", "most_pixels", "most_images", "most_characters", "max_length"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be 1 or more, got {value}.")

    @property
    def overhead_ms(self) -> float:
        """The milliseconds that are kept for work outside the network."""
        return self.latency_ms / 10 if self.reserve_ms is None else self.reserve_ms

    @property
    def network_seconds(self) -> float:
        """The seconds of the latency target that remain for the network."""
        return (self.latency_ms - self.overhead_ms) / 1e3


@dataclass(frozen=True)
class RequestOptions:
    """The options that a request may set.

    Args:
        latency_ms: its own latency target, in milliseconds.
        stitch_id: the stitch that must answer.
        macs: the most multiply-adds per image, or per text of the network's `length`.
        truncate: whether to leave out what is beyond the most tokens of a text.
    """

    latency_ms: float | None = None
    stitch_id: int | None = None
    macs: float | None = None
    truncate: bool = False
