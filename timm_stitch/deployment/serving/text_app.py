"""The web application of a network of texts: classes or embeddings of texts by POST, and the Open Inference Protocol.

It needs what `base_app` needs, and answers errors as it does.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future
from typing import Any

import torch
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from torch import Tensor

from .app import HttpApp
from .base_app import BaseApp, inference_options
from .config import RequestOptions
from .deployments import Deployment, described_texts
from .open_inference import HEADER_LENGTH
from .options import read_options, read_query, read_top
from .service import InferenceService
from .text_requests import describe_texts, read_text_inference, read_texts
from .text_service import TextService
from .texts import ServedTexts, TextBatch


def open_app(service: InferenceService, most_bytes: int = 16 << 20, hosts: Collection[str] | None = None) -> BaseApp:
    """Make the application of a service, of images or of texts; the arguments are those of `BaseApp`."""
    return (TextApp if isinstance(service, TextService) else HttpApp)(service, most_bytes, hosts)


class TextApp(BaseApp):
    """The HTTP handlers of a `TextService`.

    Args:
        service, most_bytes, hosts: the arguments of `BaseApp`.
    """

    service: TextService

    async def predict(self, request: Request, body: bytes, arrived_at: float) -> Response:
        """Classify the texts in the body, or embed them."""
        deployment = self.service.engine.deployment  # of this request, whatever is loaded meanwhile
        network, query = described_texts(deployment), read_query(request.query_params.multi_items())
        embeds = network.endpoint.output == "embeddings"
        options = read_options(query, ("truncate",) if embeds else ("top", "truncate"))
        most = read_top(query)
        content_type, most_texts = request.headers.get("content-type", ""), self.service.config.most_images
        read = await self.run_in_thread(len(body), read_texts, body, content_type, most_texts)
        answer = await self.answer(
            read.texts, options, deployment, arrived_at, self.reader(read.texts, options, deployment)
        )
        facts = self.facts(answer, deployment, arrived_at)
        if embeds:
            each: list[Any] = answer.logits.tolist()
            kinds = ("embedding", "embeddings")
        else:
            each, kinds = [predictions(network, logits, most) for logits in answer.logits], ("predictions",) * 2
        return JSONResponse({kinds[read.is_list]: each if read.is_list else each[0], **facts})

    async def infer(self, request: Request, body: bytes, arrived_at: float) -> Response:
        """Answer a request of the Open Inference Protocol."""
        service, deployment = self.service, self.service.engine.deployment
        network, length = described_texts(deployment), request.headers.get(HEADER_LENGTH)
        endpoint = network.endpoint
        if request.query_params:
            raise ValueError("this request takes its options as parameters in its JSON, not in the query.")
        inference = await self.run_in_thread(
            len(body), read_text_inference, body, length, endpoint, service.config.most_images, len(network.labels)
        )
        options, texts = inference_options(inference, ("truncate",)), inference.inputs
        if not isinstance(texts, list):
            texts = TextBatch({name: torch.from_numpy(array) for name, array in texts.items()})
            answer = await self.answer(network.complete(texts), options, deployment, arrived_at)
        else:
            read = self.reader(texts, options, deployment)
            answer = await self.answer(texts, options, deployment, arrived_at, read)
        return await self.write(inference, answer, deployment, arrived_at, endpoint.output)

    def reader(
        self, texts: Sequence[str], options: RequestOptions, deployment: Deployment
    ) -> Callable[[float], Future[TextBatch]]:
        """Return what tokenizes texts for a network before a deadline."""
        return lambda deadline: self.service.tokenize_soon(texts, options.truncate, deadline, deployment)

    async def metadata(self, request: Request) -> Response:
        """Return the network's metadata."""
        return JSONResponse(describe_texts(self.service.name, described_texts(self.service.engine.deployment).endpoint))


def predictions(network: ServedTexts, logits: Tensor, most: int) -> list[dict[str, object]]:
    """List the likeliest classes of a text, as transformers' pipeline does; of a regression the values."""
    activation = network.endpoint.activation
    name = "value" if activation == "none" else "probability"
    scores = logits if activation == "none" else logits.sigmoid() if activation == "sigmoid" else logits.softmax(0)
    values, classes = scores.topk(min(most, len(scores)))
    return [
        {"class": number, "label": network.labels[number], name: round(value, 6)}
        for number, value in zip(classes.tolist(), values.tolist(), strict=True)
    ]
