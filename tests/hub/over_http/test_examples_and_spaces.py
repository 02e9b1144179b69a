"""The transfer example from the Hub and back, and a Space that runs."""

import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import timm
from huggingface_hub import HfApi, RepoCard, hf_hub_download, snapshot_download
from loopback import ENDPOINT, SECRET
from PIL import Image

import timm_stitch
from timm_stitch.cli import main
from timm_stitch.deployment.demo import Viewer
from timm_stitch.deployment.spaces import push_space

# huggingface_hub hands httpx its uploads in a way that warns.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def test_the_transfer_example_pushes_a_network_of_other_classes(repo, tmp_path, monkeypatch):
    import runpy

    for split in ("train", "validation"):
        for label in range(3):
            folder = tmp_path / "squares" / split / f"class{label}"
            folder.mkdir(parents=True)
            for n in range(2):
                Image.new("RGB", (40, 40), (label * 80, n, 0)).save(folder / f"{n}.png")
    example = Path(__file__).parents[3] / "examples/transfer.py"
    arguments = {"--from": repo, "--images": tmp_path / "squares", "--to": "acme/ours", "--output": tmp_path / "out"}
    arguments |= {"--epochs": 1, "--batch-size": 6, "--workers": 0}
    monkeypatch.setattr(sys, "argv", ["transfer.py", *(str(word) for pair in arguments.items() for word in pair)])
    monkeypatch.setattr("huggingface_hub.utils._headers.get_token", lambda: SECRET)
    runpy.run_path(str(example), run_name="__main__")
    again = timm.create_model("hf-hub:acme/ours", pretrained=True)
    assert again.num_classes == 3
    assert len(again.results.rows) == 35
    info = HfApi().model_info("acme/ours")
    assert info.card_data["base_model"] == ["acme/net"]
    config = json.loads(Path(hf_hub_download("acme/ours", "config.json")).read_text())
    assert config["label_names"] == ["class0", "class1", "class2"]


def test_the_curve_of_a_network_on_the_hub_is_drawn_without_its_weights(repo, hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["plot", f"hf-hub:{repo}", "--html"]) == 0
    assert (tmp_path / "curve.html").read_text().count('"stitch_id"') == 35
    assert not list((tmp_path / "hub").rglob("*.safetensors"))
    assert f"`timm-stitch plot hf-hub:{repo} --html`" in Path(hf_hub_download(repo, "README.md")).read_text()


@pytest.mark.parametrize("storage", ["regular"])
def test_a_pushed_space_runs_and_shows_what_the_network_gives(repo, tmp_path, hub):
    gradio_client = pytest.importorskip("gradio_client")
    picture = tmp_path / "grey.png"
    Image.new("RGB", (40, 30), (90, 120, 40)).save(picture)
    with pytest.raises(FileNotFoundError, match="cannot find acme/none: there is no such repository"):
        push_space("acme/none", "acme/page", token=SECRET)
    HfApi().create_repo("acme/other", exist_ok=True, token=SECRET)
    with pytest.raises(ValueError, match=r"acme/other has no stitches\.json"):
        push_space("acme/other", "acme/page", token=SECRET)
    hub.fault("POST .*/commit/", 403)
    with pytest.raises(PermissionError, match=r"cannot push to acme/page: the token may not do that .*nothing was"):
        push_space(repo, "acme/page", token=SECRET)
    hub.reset()
    for _ in range(2):  # and again over what is there
        assert push_space(repo, "acme/page", examples=[picture], token=SECRET) == f"{ENDPOINT}/spaces/acme/page"
    space = Path(snapshot_download("acme/page", repo_type="space", local_dir=tmp_path / "space"))
    front = RepoCard.load(space / "README.md", ignore_metadata_errors=False).data
    assert (front.sdk, front.app_file, front.models) == ("gradio", "app.py", [repo])
    assert any(line.startswith("timm>=") for line in (space / "requirements.txt").read_text().splitlines())
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # As on the Hub: nothing of this repository but what is in the Space.
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    env |= {"GRADIO_SERVER_PORT": str(port), "HF_HUB_CACHE": str(tmp_path / "cache")}
    app = subprocess.Popen([sys.executable, "app.py"], cwd=space, env=env, stderr=subprocess.PIPE, text=True)
    assert (space / "timm_stitch/evaluation/curve_page.html").exists()
    try:
        until = time.monotonic() + 120
        while True:
            if app.poll() is not None or time.monotonic() > until:
                app.kill()
                pytest.fail(app.stderr.read())
            try:
                client = gradio_client.Client(f"http://127.0.0.1:{port}", verbose=False)
                break
            except Exception:
                threading.Event().wait(0.5)
        client.predict(gradio_client.handle_file(str(picture)), api_name="/prepare")
        top, facts, curve = client.predict(0, api_name="/show_1")
    finally:
        app.kill()
        app.communicate()
    viewer = Viewer(timm_stitch.from_hub(repo))
    look = viewer.predict(viewer.prepare(Image.open(picture)), 0)
    assert {row["label"]: row["confidence"] for row in top["confidences"]} == pytest.approx(look.top)
    assert viewer.steps[0]["name"] in facts
    mark = re.search("<circle.*?>", viewer.curve(0))[0]
    assert mark in curve
