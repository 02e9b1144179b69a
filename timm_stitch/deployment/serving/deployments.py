"""What serves requests: a network, the backend that runs it, and the policy that chooses its stitches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from ..policies import LatencyTable, Policy
from .backends.agreement import Agreement
from .backends.backend import Backend
from .network import Served, ServedNetwork
from .texts import ServedTexts


class Inputs(Protocol):
    """Prepared inputs of a request: images, shape (N, C, H, W), or N texts."""

    def __len__(self) -> int:
        """Count them."""


class Deployment(NamedTuple):
    """A network as the engine runs it; replaced as a whole.

    Args:
        run: computes the logits, shape (B, classes), of images, shape (B, C, H, W), by a stitch; both on the CPU. Or
            those of texts.
        policy: the policy that chooses stitches.
        table: the latencies of the stitches that the policy chooses from.
        network: the description of the network, for those who prepare its images and read its answers.
        backend: the backend that runs the stitches.
        agreement: the agreement of the backend with float32, if its precision is another.
        join: joins the inputs of several requests into one call's.
    """

    run: Callable[[Any, int], Tensor]
    policy: Policy
    table: LatencyTable
    network: Served | None = None
    backend: Backend | None = None
    agreement: Agreement | None = None
    join: Callable[[list[Any]], Any] = torch.cat


def served(deployment: Deployment) -> Served:
    """Return the description of the network of a deployment."""
    assert deployment.network is not None  # `_deploy` describes each
    return deployment.network


def described(deployment: Deployment) -> ServedNetwork:
    """Return the description of the network of images of a deployment."""
    assert isinstance(deployment.network, ServedNetwork)
    return deployment.network


def described_texts(deployment: Deployment) -> ServedTexts:
    """Return the description of the network of texts of a deployment."""
    network = served(deployment)
    assert isinstance(network, ServedTexts)
    return network


def arithmetic(deployment: Deployment, stitch_id: int) -> dict[str, object]:
    """Describe what runs a stitch: `engine`, `precision` and, if that is not fp32, the stitch's `agreement` with it."""
    backend, agreement = deployment.backend, deployment.agreement
    if backend is None:
        return {}
    facts: dict[str, object] = {
        "engine": backend.engine if stitch_id in backend.ready else "torch",
        "precision": backend.precision_of(stitch_id),
    }  # fmt: skip
    if agreement is not None and stitch_id in agreement.each:
        facts["agreement"] = agreement.each[stitch_id]
    return facts
