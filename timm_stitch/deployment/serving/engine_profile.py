"""Latencies of stitches as one of the server's engines runs them."""

from __future__ import annotations

from collections.abc import Sequence

from ...choices import EngineName, ServedPrecision
from ...evaluation.profiling import check_batch_sizes, profile_calls
from ...families.registry import family_of, require
from ...families.timm_models.network import SNNet
from ...network.weights import cached_fingerprint
from ...plan.results import Rows
from .backends.torch_backend import TorchBackend
from .config import LONGEST_MS, ServingConfig
from .handover import find_engine
from .latencies import frontier_stitches, known_rows
from .network import ServedNetwork


def profile_engine(
    model: SNNet,
    engine: EngineName,
    precision: ServedPrecision = "fp32",
    batch_size: int | None = None,
    *,
    batch_sizes: Sequence[int] | None = None,
    stitch_ids: Sequence[int] | None = None,
    calibration: str | None = None,
    repeats: int = 10,
) -> Rows:
    """Measure stitches as an engine of the server runs them, and add the figures to the network's table.

    Times of another engine, device or precision are dropped, as by `timm_stitch.profile`. A conversion is kept for the
    next time, and for a server of the same stitches.

    Args:
        model: the network, on the device where the engine runs; put in eval mode.
        engine: the engine: `"openvino"`, `"onnxruntime"` or `"cuda-graphs"`.
        precision: the precision of the engine's arithmetic.
        batch_size: the number of images per call; default 1.
        batch_sizes: several batch sizes instead of one, 1 to 4,096 each.
        stitch_ids: the ids of the stitches; default those that a server prepares, at most twelve of the frontier.
        calibration: the folder of images that calibrate int8.
        repeats: the number of rounds; each figure is the median over them.

    Returns:
        One row per stitch that the engine runs: `stitch_id`, `name`, `macs`, `params`, `latency_ms`, `images_per_s` and
        `batch_size` of the smallest call, `latency_ms_batch_N` of each, `latency_spread_ms`, `precision`, `profiled_on`
        (the processor, its threads and the engine) and `weights`.

    Raises:
        ImportError: if the engine is not installed.
        ValueError: if the network, the precision, a batch size or a stitch does not fit.
        ConversionError: if the network cannot be converted.
    """
    require(model, "serve")
    sizes = check_batch_sizes(batch_size, batch_sizes)
    if repeats < 1:
        raise ValueError(f"repeats must be 1 or more, got {repeats}.")
    if engine in ("torch", "auto"):
        raise ValueError(
            f"engine must be openvino, onnxruntime or cuda-graphs, got {engine!r}: profile measures torch."
        )
    if family_of(model).takes_texts(model):
        raise ValueError(f"engine {engine} runs classifiers of images, and this network takes texts: use torch.")
    # The policy without accuracies, and a target within which all stitches are.
    config = ServingConfig(LONGEST_MS, policy="fixed", engine=engine, precision=precision, calibration=calibration)
    table = {row["stitch_id"]: row for row in model.stitch_table()}
    wanted = frontier_stitches(known_rows(model, config)) if stitch_ids is None else sorted(set(stitch_ids))
    if unknown := [k for k in wanted if k not in table]:
        raise ValueError(f"stitch_ids hold {unknown[0]}, which the plan does not have: expected 0 to {max(table)}.")
    make = find_engine(model.eval(), config)
    assert make is not None  # the engine is not torch
    reference = TorchBackend(model, "fp32" if precision == "int8" else precision)
    backend = make(reference, ServedNetwork.of(model), wanted)
    assert backend is not None  # the config allows any memory
    backend.prepare(wanted, sizes)
    ready = [k for k in wanted if k in backend.ready]
    if not ready:
        raise ValueError(f"{engine} runs none of the stitches: see the warnings above.")
    rows = []
    for row in profile_calls(model, backend.run, sizes, ready, repeats):
        known = {key: table[row["stitch_id"]][key] for key in ("stitch_id", "name", "macs", "params")}
        speed = {"images_per_s": 1e3 * row["batch_size"] / row["latency_ms"]}
        setup = {"precision": precision, "profiled_on": backend.name, "weights": cached_fingerprint(model)}
        rows.append({**known, **row, **speed, **setup})
    model.results.add(rows)
    backend.close()
    return rows
