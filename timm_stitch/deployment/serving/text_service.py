"""Inference on texts within a latency target: what differs from images, and the choice between the two."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from ...families.registry import family_of
from ...families.text_endpoint import Tokens
from ..policies import LatencyTable
from .backends.agreement import NOISE, Agreement, count_images, measure_agreement, same_class
from .backends.backend import Backend
from .backends.text_backend import TextBackend
from .config import ServingConfig
from .deployments import Deployment, Inputs, described_texts
from .latencies import latency_rows
from .service import InferenceService, leave_the_file
from .text_reader import TextReader
from .texts import ServedTexts, TextBatch

_logger = logging.getLogger(__name__)

_NOISE_LENGTH = 64  # tokens of the texts of noise


def open_service(model: Any, config: ServingConfig, name: str = "network") -> InferenceService:
    """Make the service of a network: of images, or of texts.

    Args:
        model, config, name: the arguments of `InferenceService`.

    Raises:
        ValueError: as `InferenceService`; or if a network of texts gives neither classes nor embeddings.
    """
    takes_texts = family_of(model).takes_texts(model)
    return (TextService if takes_texts else InferenceService)(model, config, name)


class TextService(InferenceService):
    """A classifier or an embedding network of texts that answers requests within a latency target.

    Args:
        model, config, name: the arguments of `InferenceService`.

    Raises:
        ValueError: if the network gives neither classes nor embeddings, it has no tokenizer, or no accuracy is known.
    """

    kind = "texts"

    def _open_reader(self) -> None:
        config = self.config
        self.texts = TextReader(config.most_characters, config.most_waiting, self._workers)

    def _close_reader(self) -> None:
        self.texts.close()

    def _find_engine(self, model: Any) -> None:
        """Refuse engines, which run networks of images.

        Raises:
            ValueError: if another one than torch must run.
        """
        if self.config.precision == "int8":
            raise ValueError("precision int8 is for classifiers of images, and this network takes texts: use bf16.")
        if self.config.engine not in ("torch", "auto"):
            raise ValueError(
                f"engine {self.config.engine} runs classifiers of images, and this network takes texts: use torch."
            )
        if self.config.engine == "auto":
            _logger.warning("torch serves: engines run classifiers of images, and this network takes texts.")

    def _describe(self, model: Any) -> ServedTexts:
        endpoint = family_of(model).text_endpoint(model.eval(), self.config.max_length, self.config.pooling)
        return ServedTexts.of(model, endpoint)

    def _deploy(self, model: Any) -> Deployment:
        network = self._describe(model)
        leave_the_file(model)
        assert self.config.precision != "int8"  # `_find_engine` has refused it
        backend = TextBackend(network, self.config.precision)
        rows = latency_rows(model, self.config, backend, network.stitches, network.example, network.unit)
        table = LatencyTable(rows)
        backend.prepare(table.stitch_ids, table.batch_sizes)
        return self._deployment(network, table, backend)._replace(join=network.join)

    def _agreement(self, network: ServedTexts, backend: Backend, table: LatencyTable) -> Agreement:
        """Measure how often a backend agrees with the network in float32, and print it."""
        count = count_images(2 * sum(table.each) * network.weight_of(_NOISE_LENGTH), self.config.calibration is None)
        batches, source = calibration_texts(network, self.config.calibration, count)
        agrees = same_class if network.endpoint.output == "logits" else cosine_similarity
        agreement = measure_agreement(
            TextBackend(network).run, backend.run, batches, source, table.stitch_ids, agrees, self.kind
        )
        self.log_agreement(backend, agreement)
        return agreement

    def _check_replaces(self, model: Any) -> None:
        self._describe(model).check_replaces(described_texts(self.engine.deployment))

    def _weight(self, inputs: Inputs, deployment: Deployment) -> int:
        assert isinstance(inputs, TextBatch)
        return described_texts(deployment).weight_of(inputs.length)

    def tokenize_soon(
        self, texts: Sequence[str], truncate: bool, deadline: float, deployment: Deployment | None = None
    ) -> Future[TextBatch]:
        """Tokenize texts for a network, as `TextReader.read_soon`; by default the one that serves now."""
        network = described_texts(deployment or self.engine.deployment)
        return self.texts.read_soon(texts, network, truncate, deadline)


def calibration_texts(network: ServedTexts, file: str | None, count: int) -> tuple[list[TextBatch], str]:
    """Tokenize the lines of a file, or draw noise.

    Args:
        network: the network that takes the texts.
        file: a file with a text in each line; None for noise.
        count: the most texts to read, evenly spaced among all lines.

    Returns:
        Batches of one text each, and their source.

    Raises:
        ValueError: if the file has no text, or is not UTF-8.
        OSError: if it cannot be read.
    """
    endpoint = network.endpoint
    if file is None:
        draw = torch.Generator().manual_seed(0)
        shape = count, min(_NOISE_LENGTH, endpoint.max_length)
        drawn: Tensor = torch.randint(endpoint.vocab_size, shape, generator=draw)
        return [network.make_batch([Tokens(row, [0] * len(row))]) for row in drawn.tolist()], NOISE
    try:
        lines = [line for line in Path(file).read_text(encoding="utf-8").splitlines() if line.strip()]
    except UnicodeDecodeError:
        raise ValueError(f"{file!r} is not UTF-8: give a file with a text in each line as calibration.") from None
    if not lines:
        raise ValueError(f"there are no texts in {file!r}: give a file with a text in each line as calibration.")
    count = min(count, len(lines))
    picked = [lines[n * len(lines) // count] for n in range(count)]
    return [network.make_batch([endpoint.tokenize(line, True)]) for line in picked], file
