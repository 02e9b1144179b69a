"""What `from_hub(..., extract=24)` fetches of a full-size network, counted at a Hub on loopback.

python benchmarks/size/fetched_bytes.py        # snnet_deit_tsb: about 1.5 GB of memory
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

TESTS = Path(__file__).parents[2] / "tests"


def count(server: str, model_name: str, stitch_id: int) -> dict[str, object]:
    """Push, fetch one stitch, then all; the server's count of bytes for each."""
    import timm

    import timm_stitch

    def sent() -> int:
        with urllib.request.urlopen(f"{server}/_log") as answer:
            log = json.loads(answer.read())
        urllib.request.urlopen(f"{server}/_reset", data=b"{}").close()
        return sum(entry["sent"] for entry in log if entry["request"].startswith("GET"))

    model = timm.create_model(model_name).eval()
    timm_stitch.push_to_hub(model, "acme/net", token="hf_loopback")
    sent()
    found: dict[str, object] = {"model": model_name, "stitch_id": stitch_id}
    for what, extract in (("stitch", stitch_id), ("whole", None)):
        began = time.perf_counter()
        network = timm_stitch.from_hub("acme/net", extract=extract)
        found[f"{what}_seconds"] = round(time.perf_counter() - began, 2)
        found[f"{what}_bytes"] = sent()
        if extract is not None:
            found["needed_bytes"] = sum(t.numel() * t.element_size() for t in network.state_dict().values())
    return found


def main() -> None:
    """Start the server and a process that looks at it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="snnet_deit_tsb")
    parser.add_argument("--stitch-id", type=int, default=24)
    parser.add_argument("--server", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.server:
        print(json.dumps(count(options.server, options.model, options.stitch_id)))
        return
    server = subprocess.Popen(
        [sys.executable, TESTS / "loopback_hub.py", "0", "--lfs"], stdout=subprocess.PIPE, text=True
    )
    try:
        address = f"http://127.0.0.1:{server.stdout.readline().strip()}"
        with tempfile.TemporaryDirectory() as home:
            env = {"HF_ENDPOINT": address, "HF_HOME": home, "HF_HUB_DISABLE_XET": "1", "PYTHONWARNINGS": "ignore"}
            arguments = ["--model", options.model, "--stitch-id", str(options.stitch_id), "--server", address]
            subprocess.run([sys.executable, __file__, *arguments], env=os.environ | env, check=True)
    finally:
        server.kill()


if __name__ == "__main__":
    main()
