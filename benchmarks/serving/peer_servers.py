"""Which servers does `peers.py` compare with ours? These, each started as a process of its own.

    python benchmarks/serving/peer_servers.py litserve NETWORK STITCH_ID PORT
    python benchmarks/serving/peer_servers.py openvino NETWORK STITCH_ID PORT
    python benchmarks/serving/peer_servers.py archive NETWORK STITCH_ID FOLDER   # a model store for TorchServe

BentoML and TorchServe import this file, by the names `Classifier` and `Handler`. Each answers one image file with the
number of its class, through one stitch in PyTorch, one thread and one worker, with batches of up to 16; `openvino` is
OpenVINO's queue behind Starlette, which batches nothing.
"""

from __future__ import annotations

import asyncio
import base64
import importlib.util
import io
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

import timm_stitch
from timm_stitch.deployment.serving.network import ServedNetwork

BATCH = 16
WAIT_S = 0.003  # that a batch waits for more images


def read_stitch(folder: str, stitch_id: int) -> tuple[nn.Module, Callable[[bytes | Image.Image], Tensor]]:
    """Read a stitch, and what prepares an image for it, a file or opened."""
    torch.set_num_threads(1)
    model = timm_stitch.from_hub(folder)
    network = ServedNetwork.of(model.eval())

    def prepare(image: bytes | Image.Image) -> Tensor:
        opened = Image.open(io.BytesIO(image)) if isinstance(image, bytes) else image
        return network.transform(opened.convert(network.mode))

    return model.extract(stitch_id).eval(), prepare


@torch.inference_mode()
def classify(stitch: nn.Module, images: Sequence[Tensor]) -> list[int]:
    """Classify prepared images in one call."""
    return stitch(torch.stack(list(images))).argmax(-1).tolist()


if importlib.util.find_spec("litserve"):
    import litserve

    class Api(litserve.LitAPI):
        """LitServe's service; FastAPI would check again what is annotated here as a request or an answer."""

        def setup(self, device: str) -> None:
            """Read the stitch that the environment names."""
            self.stitch, self.prepare = read_stitch(os.environ["NETWORK"], int(os.environ["STITCH_ID"]))

        def decode_request(self, request):
            """Read the image."""
            return self.prepare(base64.b64decode(request["image"]))

        def batch(self, inputs: list[Tensor]) -> list[Tensor]:
            """Leave the images apart: `predict` stacks them."""
            return inputs

        def predict(self, images: Sequence[Tensor]) -> list[int]:
            """Answer a batch."""
            return classify(self.stitch, images)

        def unbatch(self, output: list[int]) -> list[int]:
            """Leave the classes, which are apart."""
            return output

        def encode_response(self, output):
            """Write an answer."""
            return {"class": output}

    def run_litserve(port: int) -> None:
        """Serve by LitServe."""
        api = Api(max_batch_size=BATCH, batch_timeout=WAIT_S)
        server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1, fast_queue=True)
        server.run(host="127.0.0.1", port=port, generate_client_file=False, log_level="error")


def run_openvino(folder: str, stitch_id: int, port: int) -> None:
    """Serve by OpenVINO's queue of asynchronous requests behind Starlette."""
    import openvino
    import uvicorn
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import JSONResponse
    from starlette.routing import Route

    stitch, prepare = read_stitch(folder, stitch_id)
    example = torch.zeros(1, *ServedNetwork.of(timm_stitch.from_hub(folder)).shape)
    graph = openvino.convert_model(stitch, example_input=example)
    options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1}
    queue = openvino.AsyncInferQueue(openvino.Core().compile_model(graph, "CPU", options), 2)

    def answered(request: openvino.InferRequest, answer: asyncio.Future[int]) -> None:
        number = int(request.get_output_tensor().data[0].argmax())
        answer.get_loop().call_soon_threadsafe(answer.set_result, number)

    async def predict(request: Request) -> JSONResponse:
        image = prepare(await request.body())[None].numpy()
        answer: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        await asyncio.get_running_loop().run_in_executor(starter, queue.start_async, image, answer)
        return JSONResponse({"class": await answer})

    starter = ThreadPoolExecutor(1)  # two threads would take one idle request
    queue.set_callback(answered)
    app = Starlette(routes=[Route("/predict", predict, methods=["POST"])])
    uvicorn.run(app, host="127.0.0.1", port=port, log_level="error", loop="uvloop")


def write_archive(folder: str, stitch_id: int, store: str) -> None:
    """Write the archive that TorchServe reads: this file as its handler, and where the network is."""
    with tempfile.TemporaryDirectory() as scratch:
        settings = Path(scratch, "stitch.json")
        settings.write_text(json.dumps({"folder": str(Path(folder).resolve()), "stitch_id": stitch_id}))
        archiver = str(Path(sys.executable).with_name("torch-model-archiver"))
        command = [archiver, "--model-name", "net", "--version", "1.0", "--handler", __file__]
        command += ["--extra-files", str(settings), "--export-path", store, "--force"]
        subprocess.run(command, check=True)


class Handler:
    """TorchServe's handler."""

    def initialize(self, context: object) -> None:
        """Read the stitch that the archive names."""
        folder = context.system_properties["model_dir"]  # type: ignore[attr-defined]
        settings = json.loads(Path(folder, "stitch.json").read_text())
        self.stitch, self.prepare = read_stitch(settings["folder"], settings["stitch_id"])

    def handle(self, rows: list[dict[str, bytes]], context: object) -> list[dict[str, int]]:
        """Answer a batch."""
        images = [self.prepare(bytes(row.get("data") or row["body"])) for row in rows]
        return [{"class": number} for number in classify(self.stitch, images)]


if importlib.util.find_spec("bentoml"):
    import bentoml

    @bentoml.service(workers=1, traffic={"timeout": 60}, logging={"access": {"enabled": False}})
    class Classifier:
        """BentoML's service; the network is named by the environment."""

        def __init__(self) -> None:
            self.stitch, self.prepare = read_stitch(os.environ["NETWORK"], int(os.environ["STITCH_ID"]))

        @bentoml.api(batchable=True, max_batch_size=BATCH)
        def predict(self, images: list[Image.Image]) -> list[int]:
            """Answer a batch."""
            return classify(self.stitch, [self.prepare(image) for image in images])


def main() -> None:
    """Start a server, or write an archive."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "shared"))
    from command_line import make_parser

    parser = make_parser(__doc__)
    parser.add_argument("kind", choices=["litserve", "openvino", "archive"], help="server to start, or the archive")
    parser.add_argument("network", help="folder of the network")
    parser.add_argument("stitch_id", type=int, help="stitch to serve")
    parser.add_argument("where", help="port, or the folder of the archive")
    options = parser.parse_args()
    if options.kind == "archive":
        write_archive(options.network, options.stitch_id, options.where)
    elif options.kind == "litserve":
        os.environ |= {"NETWORK": options.network, "STITCH_ID": str(options.stitch_id)}  # for its worker
        run_litserve(int(options.where))
    else:
        run_openvino(options.network, options.stitch_id, int(options.where))


if __name__ == "__main__":
    main()
