"""The web application of a network of images: image files by POST, and the Open Inference Protocol.

It needs what `base_app` needs, and answers errors as it does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future

import torch
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from torch import Tensor

from ..maps import MapPredictor
from .base_app import BaseApp, inference_options
from .config import RequestOptions
from .deployments import Deployment, described
from .open_inference import HEADER_LENGTH, describe, read_inference
from .options import read_options, read_query, read_top


class HttpApp(BaseApp):
    """The HTTP handlers of an inference service of images.

    Args:
        service, most_bytes, hosts: the arguments of `BaseApp`.
    """

    async def predict(self, request: Request, body: bytes, arrived_at: float) -> Response:
        """Classify the image file in the body, or predict its mask or depths."""
        deployment = self.service.engine.deployment  # of this request, whatever is loaded meanwhile
        network, query = described(deployment), read_query(request.query_params.multi_items())
        options, most = read_options(query, ("top",)), read_top(query)
        if network.maps is not None:
            return await self.predict_map(request, body, arrived_at, deployment, network.maps, options, most)
        answer = await self.answer([body], options, deployment, arrived_at, self.reader([body], deployment))
        values, classes = answer.logits[0].softmax(0).topk(min(most, answer.logits.shape[1]))
        predictions = [
            {"class": number, "label": network.labels[number], "probability": round(p, 6)}
            for number, p in zip(classes.tolist(), values.tolist(), strict=True)
        ]
        return JSONResponse({"predictions": predictions, **self.facts(answer, deployment, arrived_at)})

    async def predict_map(
        self,
        request: Request,
        body: bytes,
        arrived_at: float,
        deployment: Deployment,
        maps: MapPredictor,
        options: RequestOptions,
        most: int,
    ) -> Response:
        """Predict the mask or the depths of an image: a PNG for clients that accept that, else what is in it."""
        sizes: list[tuple[int, int]] = []
        read = self.reader([body], deployment, sizes.append)
        answer = await self.answer([body], options, deployment, arrived_at, read)
        height, width = sizes[-1]
        values = maps.nearest(answer.logits[0], (height, width))
        facts = self.facts(answer, deployment, arrived_at)
        if "image/png" in request.headers.get("accept", ""):
            picture = await self.run_in_thread(values.size, maps.png, values)
            heads = {
                f"x-{key.replace('_', '-')}": str(facts[key]) for key in ("stitch_id", "macs", "late", "latency_ms")
            }
            return Response(picture, media_type="image/png", headers=heads)
        described_map = await self.run_in_thread(values.size, maps.describe, values, most)
        return JSONResponse({**described_map, "size": [height, width], **facts})

    async def infer(self, request: Request, body: bytes, arrived_at: float) -> Response:
        """Answer a request of the Open Inference Protocol."""
        service, deployment = self.service, self.service.engine.deployment
        network, length = described(deployment), request.headers.get(HEADER_LENGTH)
        if network.maps is not None:
            raise ValueError(
                f"this network gives a map for each image: POST the image file to {request.base_url}predict."
            )
        if request.query_params:
            raise ValueError("this request takes its options as parameters in its JSON, not in the query.")
        inference = await self.run_in_thread(
            len(body), read_inference, body, length, network.shape, service.config.most_images, len(network.labels)
        )
        options = inference_options(inference)
        if isinstance(inference.inputs, list):
            read = self.reader(inference.inputs, deployment)
            answer = await self.answer(inference.inputs, options, deployment, arrived_at, read)
        else:
            answer = await self.answer(torch.from_numpy(inference.inputs), options, deployment, arrived_at)
        return await self.write(inference, answer, deployment, arrived_at)

    def reader(
        self,
        files: Sequence[bytes],
        deployment: Deployment,
        note_size: Callable[[tuple[int, int]], None] | None = None,
    ) -> Callable[[float], Future[Tensor]]:
        """Return what reads image files for a network before a deadline; `note_size` as in `read_soon`."""
        return lambda deadline: self.service.read_soon(files, deadline, deployment, note_size)

    async def metadata(self, request: Request) -> Response:
        """Return the network's metadata."""
        network = described(self.service.engine.deployment)
        outputs = [len(network.labels)] if network.maps is None else list(network.shape[1:])
        return JSONResponse(describe(self.service.name, network.shape, outputs))


Application = HttpApp  # its former name
