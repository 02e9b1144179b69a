"""Masks and depths of images of any size, as `predict` writes them and a server answers them."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from torch.nn import functional as F

import timm_stitch
from timm_stitch.cli.entry import main
from timm_stitch.deployment.formats import web_folder
from timm_stitch.deployment.maps import MOST_PIXELS, MapPredictor, largest_class, overlay, palette
from timm_stitch.evaluation.profiling import name_of
from timm_stitch.families.dense.inference import Inference

LABELS = ["sky", "road", "tree", "house", "car"]


def picture(width, height, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def segmentation():
    torch.manual_seed(0)
    return timm_stitch.dense(tiny.vits(), head="linear", num_classes=5, label_names=LABELS).eval()


@pytest.fixture(scope="module")
def depth():
    torch.manual_seed(0)
    return timm_stitch.dense(tiny.resnets(), head="linear", task="depth").eval()


# ── one image ─────────────────────────────────────────────────────────────────────────────────────────


def test_some_classes_at_a_time_give_the_same_mask(monkeypatch):
    monkeypatch.setattr("timm_stitch.deployment.maps._BAND", 4 * 30 * 20 * 2)
    logits = torch.randn(7, 8, 8, generator=torch.Generator().manual_seed(0))
    whole = F.interpolate(logits[None], (30, 20), mode="bilinear", align_corners=False)[0].argmax(0)
    assert torch.equal(largest_class(logits, (30, 20)), whole)
    assert torch.equal(largest_class(logits, (8, 8)), logits.argmax(0))


def test_a_mask_has_the_size_of_its_image(segmentation):
    predictor = MapPredictor.of(segmentation, "predict takes")
    mask = predictor.predict(picture(50, 40), stitch_id=3)
    assert (mask.shape, mask.dtype) == ((40, 50), np.uint8)
    resized = picture(50, 40).resize((32, 32), Image.Resampling.BILINEAR)
    x = (torch.from_numpy(np.array(resized)).permute(2, 0, 1).float() / 255 - 0.5) / 0.5
    with torch.no_grad():
        expected = F.interpolate(segmentation(x[None], stitch_id=3), (40, 50), mode="bilinear").argmax(1)[0]
    assert np.array_equal(mask, expected.numpy())
    shares = predictor.describe(mask, 5)["classes"]
    assert sum(one["share"] for one in shares) == pytest.approx(1)
    assert overlay(picture(50, 40), mask, LABELS).size == (50, 40)


def test_windows_keep_the_size_of_images(segmentation):
    segmentation.inference = Inference("slide", 32, 21)
    predictor = MapPredictor.of(segmentation, "predict takes", short_side=32)
    assert predictor.prepare(picture(100, 50)).shape == (3, 32, 64)
    assert predictor.predict(picture(100, 50)).shape == (50, 100)
    segmentation.inference = Inference()


def test_large_images_in_their_own_size_are_refused_before_any_work(depth):
    predictor = MapPredictor.of(depth, "predict takes")
    with pytest.raises(ValueError, match=rf"'x' has 4000 x 4000 pixels.*{MOST_PIXELS:,}.*short side"):
        predictor.prepare(Image.new("RGB", (4000, 4000)), "'x'")


# ── on the command line ───────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def files(segmentation, depth, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    timm_stitch.save_pretrained(segmentation, "seg", check=False)
    timm_stitch.save_pretrained(depth, "depth", check=False)
    picture(50, 40).save("a.png")
    picture(64, 96, 1).save("b.png")


def test_predict_writes_masks_with_a_palette(files, segmentation, capsys):
    assert main(["predict", "seg", "a.png", "b.png", "--stitch-id", "2", "--output", "masks", "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["output"] for row in rows] == ["masks/a.png", "masks/b.png"]
    mask = Image.open("masks/b.png")
    assert (mask.mode, mask.size) == ("P", (64, 96))
    counts = np.bincount(np.array(mask).ravel(), minlength=5)
    for one in rows[1]["classes"]:
        assert one["label"] == LABELS[one["class"]]
        assert one["share"] == pytest.approx(counts[one["class"]] / (64 * 96))


def test_predict_writes_depths_in_millimetres_or_metres(files, capsys):
    assert main(["predict", "depth", "b.png", "--output", "out", "--json"]) == 0
    row = json.loads(capsys.readouterr().out)
    millimetres = np.array(Image.open("out/b.png"))
    assert millimetres.shape == (96, 64)
    assert millimetres.max() / 1000 == pytest.approx(row["depth"]["max"], abs=1e-3)
    assert main(["predict", "depth", "b.png", "--output", "out", "--npy", "--short-side", "64"]) == 0
    assert np.load("out/b.npy").dtype == np.float32
    assert "median m" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["a.png", "./a.png"], "several images would be written to"),
        (["a.png", "--output", "."], "is one of the images: give another --output"),
    ],
)
def test_nothing_is_overwritten_by_surprise(files, capsys, arguments, match):
    before = sorted(map(str, Path().rglob("*")))
    assert main(["predict", "seg", *arguments]) != 0
    assert match in capsys.readouterr().err
    assert sorted(map(str, Path().rglob("*"))) == before


# ── from a server ─────────────────────────────────────────────────────────────────────────────────────


def measured(net):
    """A network with figures as if it had been evaluated and profiled here."""
    score = "miou" if net.task == "segmentation" else "abs_rel"
    sign = 1 if score == "miou" else -0.01
    net.results.add(
        {
            "stitch_id": k, score: 50 * abs(sign) + sign * k, "latency_ms": 1.0 + k, "batch_size": 1,
            "profiled_on": name_of(torch.device("cpu")), "precision": "fp32",
            "latency_ms_batch_1": 1.0 + k, "latency_ms_batch_4": 3.0 + 3 * k,
        }
        for k in range(3)
    )  # fmt: skip
    return score


@pytest.fixture(params=["segmentation", "depth"])
def client(request):
    pytest.importorskip("starlette")
    from starlette.testclient import TestClient

    from timm_stitch.deployment.serving.app import HttpApp
    from timm_stitch.deployment.serving.config import ServingConfig
    from timm_stitch.deployment.serving.service import InferenceService

    net = request.getfixturevalue(request.param)
    score = measured(net)
    service = InferenceService(net, ServingConfig(20_000.0, most_pixels=20_000), "net")
    with TestClient(HttpApp(service, most_bytes=50_000).asgi()) as client:
        client.net, client.score = net, score
        yield client
    net.results.clear()


def encoded(image):
    data = io.BytesIO()
    image.save(data, "PNG")
    return data.getvalue()


def test_a_server_answers_a_png_or_the_shares_of_classes(client):
    data = encoded(picture(50, 40))
    answer = client.post("/predict?stitch_id=1", content=data, headers={"accept": "image/png"})
    assert (answer.status_code, answer.headers["content-type"]) == (200, "image/png")
    assert answer.headers["x-stitch-id"] == "1"
    values = np.array(Image.open(io.BytesIO(answer.content)))
    assert values.shape == (40, 50)
    told = client.post("/predict?stitch_id=1", content=data).json()
    assert (told["stitch_id"], told["size"]) == (1, [40, 50])
    assert told[client.score] == client.net.results.rows[1][client.score]
    if client.net.task == "depth":
        assert values.max() / 1000 == pytest.approx(told["depth"]["max"], abs=1e-3)
    else:
        first = told["classes"][0]
        assert first["share"] == pytest.approx((values == first["class"]).mean())


def test_a_server_refuses_what_is_too_large_and_tensors(client):
    assert client.post("/predict", content=encoded(picture(200, 200))).status_code in (400, 413)
    refused = client.post("/v2/models/net/infer", content=b"{}")
    assert refused.status_code == 400
    assert "POST the image file" in refused.json()["error"]
    outputs = client.get("/v2/models/net").json()["outputs"]
    assert outputs[0]["shape"] == [-1, *client.net.image_size]


# ── the demonstration page ────────────────────────────────────────────────────────────────────────────


def test_the_page_shows_the_mask_over_the_image(segmentation, depth):
    pytest.importorskip("matplotlib")
    from timm_stitch.deployment.demo import Viewer

    viewer, image = Viewer(segmentation), picture(50, 40)
    prediction = viewer.predict(viewer.prepare(image), 0, image)
    assert prediction.picture.size == (50, 40)
    assert set(prediction.top) <= set(LABELS)
    assert sum(prediction.top.values()) == pytest.approx(1)
    viewer = Viewer(depth)
    prediction = viewer.predict(viewer.prepare(image), 0, image)
    assert (prediction.picture.mode, prediction.picture.size, prediction.top) == ("L", (50, 40), {})
    assert "unknown" in viewer.facts(0, prediction)


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node")
def test_the_page_in_the_browser_has_the_same_masks_and_colours(tmp_path):
    folder = Path(web_folder.__file__).with_name("web_page")
    for name in ("app.js", "images.js", "maps.js"):
        shutil.copy(folder / name, (tmp_path / name).with_suffix(".mjs"))
        subprocess.run(["node", "--check", (tmp_path / name).with_suffix(".mjs")], check=True)
    logits = torch.randn(5, 4, 6, generator=torch.Generator().manual_seed(0))
    program = (
        "import { colour, depths, mask } from './maps.mjs';"
        f"const values = {logits.ravel().tolist()};"
        "const map = mask(values, [5, 4, 6]), near = depths(values.slice(0, 24), [1, 4, 6]);"
        "console.log(JSON.stringify({ colours: Array.from({ length: 256 }, (_, k) => colour(k)), shares: map.shares,"
        "pixels: Array.from(map.pixels), grey: Array.from(near.pixels) }));"
    )
    ran = subprocess.run(
        ["node", "--input-type=module", "-e", program], cwd=tmp_path, check=True, capture_output=True, text=True
    )
    page = json.loads(ran.stdout)
    assert np.abs(np.array(page["colours"]).ravel() - np.array(palette(256))).max() <= 1  # rounding of halves
    numbers = logits.argmax(0).numpy()
    assert page["pixels"] == [v for k in numbers.ravel() for v in (*page["colours"][k], 255)]
    assert page["shares"][0][0] == (numbers == page["shares"][0][1]).mean()
    grey = np.array(page["grey"]).reshape(4, 6, 4)[..., 0]
    assert (grey[logits[0].numpy().argmin() // 6, logits[0].numpy().argmin() % 6], grey.min()) == (255, 0)
