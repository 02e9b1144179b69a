"""What the tests of exported files share: small networks, and what runs files as the docs say."""

import re
from pathlib import Path

import onnxruntime
import torch

IDS = [3, 5, 20]  # two share most of their weights with each other, one some with them
OLD = "torch 2.6 does not convert BatchNorm" if torch.__version__ < "2.7" else ""
DOCS = Path(__file__).parents[2] / "docs" / "deployment.md"


def images(n, size=32):
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(n))


def settle(model):
    """Statistics and affine weights other than ones and zeros, so that folding them would show."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for tensor in (module.weight.data, module.bias.data, module.running_mean, module.running_var):
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    return model


def run_onnx(path, x):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(["logits"], {"images": x.numpy()})[0])


def size(folder):
    return sum(file.stat().st_size for file in folder.iterdir() if file.name != "manifest.json")


def union_bytes(model, ids):
    """The parameters and buffers that these stitches use, each once."""
    return sum(t.nbytes for t in {k: v for i in ids for k, v in model.extract(i).state_dict().items()}.values())


def block(word):
    """The Python in the docs that has this word, for files that are exported already."""
    code = next(code for code in re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL) if word in code)
    return re.sub(r"^timm_stitch\.export\(.*\n", "", code, flags=re.MULTILINE)


def run_program(path, x):
    code = block("torch.export").replace("deploy-pt2/stitch-2.pt2", str(path)).replace("deploy-pt2", str(path.parent))
    names = {"images": x, "torch": torch}
    exec(code, names)
    return names["logits"]
