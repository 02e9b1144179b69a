"""Bytes on disk of three exported stitches of the authors' DeiT network, against the union of their tensors.

    python benchmarks/size/exported_bytes.py [FOLDER]

Random weights; takes half a minute and 2.5 GB of memory on two cores.
"""

import json
import sys
import tempfile
from pathlib import Path

import timm

import timm_stitch

IDS = [3, 24, 56]

if __name__ == "__main__":
    model = timm.create_model("snnet_deit_tsb").eval()
    apart = sum(tensor.nbytes for k in IDS for tensor in model.extract(k).state_dict().values())
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(sys.argv[1] if len(sys.argv) > 1 else scratch)
        for format in ("onnx", "program"):
            found = timm_stitch.export(model, folder / format, IDS, format=format)
            files = {file.name: file.stat().st_size for file in sorted((folder / format).iterdir())}
            row = {"format": format, "bytes": found["bytes"], "union_bytes": found["union_bytes"], "apart_bytes": apart}
            row["max_difference"] = max(stitch["max_difference"] for stitch in found["stitches"])
            print(json.dumps({**row, "files": files}), flush=True)
