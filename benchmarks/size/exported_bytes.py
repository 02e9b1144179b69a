"""How many bytes do three exported stitches take on disk, against the union of their tensors?

    python benchmarks/size/exported_bytes.py [--folder FOLDER]

Weights are random; with the authors' DeiT network it takes half a minute and 2.5 GB of memory on two cores.
"""

import sys
import tempfile
from pathlib import Path

import timm

import timm_stitch

sys.path.insert(0, str(Path(__file__).parents[1] / "shared"))
from command_line import make_parser, print_row


def main() -> None:
    """Export in both formats, and count."""
    parser = make_parser(__doc__)
    parser.add_argument("--model", default="snnet_deit_tsb", help="name of a registered network")
    parser.add_argument("--ids", type=int, nargs="+", default=[3, 24, 56], help="ids of the stitches to export")
    parser.add_argument("--folder", type=Path, help="folder to keep the files in (default: none is kept)")
    options = parser.parse_args()
    model = timm.create_model(options.model).eval()
    apart = sum(tensor.nbytes for k in options.ids for tensor in model.extract(k).state_dict().values())
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.folder or Path(scratch)
        for format in ("onnx", "program"):
            manifest = timm_stitch.export(model, folder / format, options.ids, format=format)
            row = {"format": format} | {key: manifest[key] for key in ("bytes", "union_bytes")}
            row |= {"apart_bytes": apart, "max_difference": max(s["max_difference"] for s in manifest["stitches"])}
            files = {file.name: file.stat().st_size for file in sorted((folder / format).iterdir())}
            print_row(row | {"files": files})


if __name__ == "__main__":
    main()
