"""How many bytes does `from_hub(..., extract=24)` fetch of a full-size network? Counted at a Hub on loopback.

python benchmarks/size/fetched_bytes.py        # snnet_deit_tsb: about 1.5 GB of memory
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import urllib.request
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "shared"))
from command_line import Row, make_parser, print_row
from measuring import time_result
from processes import run_script

TESTS = Path(__file__).parents[2] / "tests"


def count(server: str, model_name: str, stitch_id: int) -> Row:
    """Push a network, fetch one stitch and then all, and read the server's count of bytes for each."""
    import timm

    import timm_stitch

    def count_sent() -> int:
        with urllib.request.urlopen(f"{server}/_log") as answer:
            log = json.loads(answer.read())
        urllib.request.urlopen(f"{server}/_reset", data=b"{}").close()
        return sum(entry["sent"] for entry in log if entry["request"].startswith("GET"))

    model = timm.create_model(model_name).eval()
    timm_stitch.push_to_hub(model, "acme/net", token="hf_loopback")
    count_sent()
    row: Row = {"model": model_name, "stitch_id": stitch_id}
    for what, extract in (("stitch", stitch_id), ("whole", None)):
        network, seconds = time_result(partial(timm_stitch.from_hub, "acme/net", extract=extract))
        row[f"{what}_seconds"] = round(seconds, 2)
        row[f"{what}_bytes"] = count_sent()
        if extract is not None:
            row["needed_bytes"] = sum(t.numel() * t.element_size() for t in network.state_dict().values())
    return row


def main() -> None:
    """Start the server, and a process that pushes to it and fetches."""
    parser = make_parser(__doc__)
    parser.add_argument("--model", default="snnet_deit_tsb", help="name of a registered network")
    parser.add_argument("--stitch-id", type=int, default=24, help="id of the stitch to fetch")
    parser.add_argument("--server", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.server:
        print_row(count(options.server, options.model, options.stitch_id))
        return
    server = subprocess.Popen(
        [sys.executable, TESTS / "loopback_hub.py", "0", "--lfs"], stdout=subprocess.PIPE, text=True
    )
    try:
        address = f"http://127.0.0.1:{server.stdout.readline().strip()}"
        with tempfile.TemporaryDirectory() as home:
            env = {"HF_ENDPOINT": address, "HF_HOME": home, "HF_HUB_DISABLE_XET": "1", "PYTHONWARNINGS": "ignore"}
            arguments = ("--model", options.model, "--stitch-id", options.stitch_id, "--server", address)
            print_row(run_script(__file__, *arguments, env=env))
    finally:
        server.kill()


if __name__ == "__main__":
    main()
