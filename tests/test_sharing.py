"""Networks that are kept and shared: over HTTP on loopback, from damaged and hostile folders, their cards."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.mark.parametrize("files", ["lfs", "regular"])
def test_over_http(files, tmp_path):
    arguments = ["--lfs"] if files == "lfs" else []
    server = subprocess.Popen([sys.executable, HERE / "hub.py", "0", *arguments], stdout=subprocess.PIPE, text=True)
    try:
        port = server.stdout.readline().strip()
        env = os.environ | {
            "HF_ENDPOINT": f"http://127.0.0.1:{port}", "HF_HOME": str(tmp_path), "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        }  # fmt: skip
        env.pop("HF_TOKEN", None)
        some = [] if files == "lfs" else ["-k", "round_trip or ranges or timms"]
        run = subprocess.run(
            # huggingface_hub hands httpx its uploads in a way that warns.
            [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-Wignore::DeprecationWarning", "over_http.py",
             *some],
            cwd=HERE, env=env, capture_output=True, text=True,
        )  # fmt: skip
    finally:
        server.kill()
        server.communicate()
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]
    assert "hf_this_must_not_be_shown" not in run.stdout
