"""The page: what it shows is what the network gives; and in a real browser, as a user would open it."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import timm
import torch
from in_browser import chromium, drop
from PIL import Image
from tiny import deit_specs

import timm_stitch
from timm_stitch import cli
from timm_stitch.deployment.demo import Viewer, make_page
from timm_stitch.deployment.spaces import push_space

NAMES = [f"kind {letter}" for letter in "abcdefghij"]
NO_GRADIO = "the page needs gradio: pip install '.[demo]' in a clone of timm_stitch"


def rows_of(model):
    """Made-up accuracies of which every other stitch is on the frontier."""
    order = sorted(model.stitch_table(), key=lambda row: row["macs"])
    return [{"stitch_id": row["stitch_id"], "top1": 40.0 + n if n % 2 else 10.0} for n, row in enumerate(order)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(0)
    model = timm.create_model("snnet", anchors=deit_specs()).eval()
    for head in (anchor.head for anchor in model.anchors):
        torch.nn.init.normal_(head.weight, std=0.5)  # so that stitches differ visibly
    path = tmp_path_factory.mktemp("saved") / "net"
    images = {"dataset": "acme/squares", "split": "test"}
    return timm_stitch.save_pretrained(model, path, results=rows_of(model), label_names=NAMES, **images)


@pytest.fixture
def net(folder):
    return timm_stitch.from_hub(folder)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Two image files, not of the network's size."""
    folder, generator = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for name in ("one", "two"):
        Image.fromarray(generator.integers(0, 256, (8, 12, 3), dtype=np.uint8)).resize((90, 60)).save(
            folder / f"{name}.png"
        )
    return folder / "one.png", folder / "two.png"


def expected(model, picture, stitch_id):
    """The five likeliest classes by timm's own way, without the page."""
    config = timm.data.resolve_data_config({"input_size": (3, 32, 32)}, model=model)
    x = timm.data.create_transform(**config)(Image.open(picture).convert("RGB"))[None]
    with torch.inference_mode():
        values, classes = model(x, stitch_id=stitch_id)[0].softmax(0).topk(5)
    return {NAMES[i]: p for i, p in zip(classes.tolist(), values.tolist(), strict=True)}


# ── without a browser ─────────────────────────────────────────────────────────────────────────────────


def test_it_shows_what_the_network_gives(net, pictures):
    viewer = Viewer(net)
    assert [row["macs"] for row in viewer.steps] == sorted(row["macs"] for row in viewer.steps)
    assert viewer.steps == timm_stitch.pareto_frontier(net.stitch_table())
    assert 1 < len(viewer.steps) < net.num_stitches
    x = viewer.prepare(Image.open(pictures[0]))
    for n, row in enumerate(viewer.steps):
        look = viewer.predict(x, n)
        assert look.top == expected(net, pictures[0], row["stitch_id"])
        assert look.latency_ms > 0
        facts = viewer.facts(n, look)
        for text in (f"stitch {row['stitch_id']}<", f">{row['name']}<", f">{row['top1']:.2f} %<"):
            assert text in facts
        assert f">{look.latency_ms:.2f} ms<" in facts
    assert viewer.images == "acme/squares, test"


def test_users_of_one_page_do_not_meet(net, pictures):
    viewer = Viewer(net)
    seen = [viewer.prepare(Image.open(picture)) for picture in pictures]
    asked = [(n % 2, n % len(viewer.steps)) for n in range(40)]
    alone = {(i, n): viewer.predict(seen[i], n).top for i, n in set(asked)}
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda ask: viewer.predict(seen[ask[0]], ask[1]).top, asked))
    for ask, top in zip(asked, found, strict=True):
        assert top == pytest.approx(alone[ask])
    assert net.stitch_id == net.plan.anchor_id(2)


def test_the_mark_is_on_the_point_that_was_drawn(net):
    pytest.importorskip("matplotlib", reason="needs matplotlib: pip install 'timm_stitch[plot]'")
    viewer = Viewer(net)
    drawn = {(float(x), float(y)) for x, y in re.findall(r'<use [^>]*x="([\d.]+)" y="([\d.]+)"', viewer.curve(0))}
    assert len(drawn) > net.num_stitches / 2
    locations = set()
    for n, row in enumerate(viewer.steps):
        html = viewer.curve(n)
        mark = re.search(r'class="here" data-stitch-id="(\d+)" cx="([\d.]+)" cy="([\d.]+)"', html)
        assert int(mark[1]) == row["stitch_id"]
        x, y = float(mark[2]), float(mark[3])
        assert min(abs(x - a) + abs(y - b) for a, b in drawn) < 0.05
        locations.add((x, y))
    assert len(locations) == len(viewer.steps)


def test_accuracy_that_is_not_known_is_not_shown(net):
    net.results.clear()
    viewer = Viewer(net)
    assert len(viewer.steps) == net.num_stitches
    assert [row["macs"] for row in viewer.steps] == sorted(row["macs"] for row in net.stitch_table())
    assert "not known" in viewer.curve(3)
    assert '<div class="top1"><small>top-1 accuracy</small><b>unknown</b>' in viewer.facts(3)
    assert viewer.images == ""


def test_accuracy_of_other_weights_is_refused(net):
    with torch.no_grad():
        net.anchors[0].blocks[0].mlp.fc1.weight.mul_(1.5)
    with pytest.raises(ValueError, match="the results of this network belong to other weights"):
        Viewer(net)


def test_grey_images_sizes_and_names():
    grey = timm.create_model("snnet", anchors=deit_specs(in_chans=1)).eval()
    viewer = Viewer(grey)
    x = viewer.prepare(Image.new("RGBA", (50, 40), (200, 30, 90, 255)))
    assert x.shape == (1, 1, 32, 32)
    assert next(iter(viewer.predict(x, 0).top)).startswith("class ")
    assert viewer.prepare(None) is None
    assert Viewer(grey, ["a"] * 10).labels == [f"a ({i})" for i in range(10)]
    big = timm.create_model("snnet", anchors=deit_specs(num_classes=1000)).eval()
    labels = Viewer(big).labels
    assert len(set(labels)) == 1000
    assert labels[0].startswith("tench")
    two = timm.create_model("snnet", anchors=deit_specs(num_classes=2)).eval()
    assert len(Viewer(two, ["no", "yes"]).predict(torch.zeros(1, 3, 32, 32), 0).top) == 2
    with pytest.raises(ValueError, match="labels must be one for each of 2 classes, got 3"):
        Viewer(two, ["a", "b", "c"])
    with pytest.raises(ValueError, match="this network has 0 classes and takes 3 channels"):
        Viewer(two.reset_classifier(0) or two)


def test_a_missing_package_is_said_in_one_line(folder, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert cli.main(["demo", str(folder)]) == 1
    said = capsys.readouterr().err
    assert said == "error: the page needs gradio: pip install '.[demo]' in a clone of timm_stitch.\n"


def test_what_cannot_be_a_space(folder, capsys):
    assert cli.main(["demo", str(folder), "--push", "acme/page"]) == 1
    said = capsys.readouterr().err
    assert "is a folder, and a Space loads from the Hub: push it first" in said
    assert said.count("\n") == 1
    with pytest.raises(
        ValueError, match="'page' is neither a folder nor a repository of the Hub: expected 'user/name'"
    ):
        push_space("acme/net", "page")


# ── in a browser ──────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def deployment(folder, tmp_path):
    """The address of `timm-stitch demo`, run as a user would."""
    pytest.importorskip("gradio", reason=NO_GRADIO)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "timm_stitch", "demo", str(folder), "--port", str(port)]
    log = tmp_path / "log"
    with log.open("w") as out:
        before = signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell's background jobs ignore it
        server = subprocess.Popen(command, stdout=out, stderr=out, env=os.environ | {"PYTHONUNBUFFERED": "1"})
        signal.signal(signal.SIGINT, before)
    try:
        address, until = f"http://127.0.0.1:{port}/", time.monotonic() + 120
        while True:
            assert server.poll() is None, log.read_text()
            assert time.monotonic() < until, log.read_text()
            with contextlib.suppress(OSError):
                urllib.request.urlopen(address).close()
                break
            time.sleep(0.3)
        yield address
        assert "Traceback" not in log.read_text()
        server.send_signal(signal.SIGINT)
        assert server.wait(30) == 0
    finally:
        server.kill()
        server.wait()


@pytest.fixture
def browser():
    with chromium() as opened:
        yield opened


def wait_for(page, stitch_id, unlike=None):
    """Until the page shows a stitch with a latency that is not the one before."""
    page.wait_for_function(
        """([id, unlike]) => {
            const latency = document.querySelector(`#facts [data-stitch-id="${id}"] .latency b`)
            return latency && latency.innerText.endsWith("ms") && latency.innerText != unlike
        }""",
        arg=[str(stitch_id), unlike],
        timeout=60_000,
    )


def shown(page):
    """What a user reads: names and percents, stitch, latency, and where the mark is on the screen."""
    top = re.findall(r"(kind \w)\n(\d+)%", page.inner_text("#prediction"))
    box = page.locator("#curve circle.here").bounding_box()
    return {
        "top": {name: int(percent) for name, percent in top},
        "stitch": page.inner_text("#facts .stitch b"),
        "top1": page.inner_text("#facts .top1 b"),
        "latency": page.inner_text("#facts .latency b"),
        "mark": (box["x"], box["y"]),
        "marked": int(page.get_attribute("#curve circle.here", "data-stitch-id")),
    }


def check(seen, net, picture, row):
    top = expected(net, picture, row["stitch_id"])
    assert list(seen["top"]) == list(top)
    assert all(abs(seen["top"][name] - 100 * p) <= 0.51 for name, p in top.items())
    assert (seen["stitch"], seen["top1"]) == (row["name"], f"{row['top1']:.2f} %")
    assert seen["marked"] == row["stitch_id"]


@pytest.mark.slow
def test_the_page_works_in_a_browser(net, deployment, browser, pictures, tmp_path):
    steps = Viewer(net).steps
    page, other = browser.new_page(), browser.new_page()
    errors = []
    page.on("pageerror", lambda error: errors.append(error))
    page.goto(deployment)
    page.wait_for_selector("#curve circle.here", timeout=60_000)
    assert "–" in page.inner_text("#facts .latency b")

    drop(page, "#image button[aria-dropeffect], #image button", pictures[0].read_bytes())
    wait_for(page, steps[-1]["stitch_id"])
    dearest = shown(page)
    check(dearest, net, pictures[0], steps[-1])

    slider = page.locator("#slider input[type=range]")
    slider.focus()
    slider.press("Home")
    wait_for(page, steps[0]["stitch_id"], unlike=dearest["latency"])
    cheapest = shown(page)
    check(cheapest, net, pictures[0], steps[0])
    assert all(cheapest[key] != dearest[key] for key in dearest), (cheapest, dearest)
    assert cheapest["mark"][0] < dearest["mark"][0]  # cheaper is further left
    assert cheapest["mark"][1] > dearest["mark"][1]  # less accurate is further down

    # Somebody else looks at another image through another stitch.
    other.goto(deployment)
    other.set_input_files("#image input[type=file]", pictures[1])
    wait_for(other, steps[-1]["stitch_id"])
    check(shown(other), net, pictures[1], steps[-1])
    assert shown(page) == cheapest
    slider.press("ArrowRight")
    wait_for(page, steps[1]["stitch_id"], unlike=cheapest["latency"])
    check(shown(page), net, pictures[0], steps[1])
    check(shown(other), net, pictures[1], steps[-1])

    page.click("#paths button")
    curve = page.frame_locator("#paths iframe")
    curve.locator("circle").first.focus()
    assert curve.locator("#about").inner_text().startswith(f"Stitch {steps[0]['stitch_id']}: {steps[0]['name']}.")

    page.screenshot(path=tmp_path / "page.png", full_page=True)
    assert Image.open(tmp_path / "page.png").size[0] > 600
    assert not errors


def test_the_page_of_a_network_without_accuracies(net):
    pytest.importorskip("gradio", reason=NO_GRADIO)
    net.results.clear()
    config = make_page(net, title="a < b").get_config_file()
    slider = next(c for c in config["components"] if c["type"] == "slider")
    assert (slider["props"]["minimum"], slider["props"]["maximum"]) == (0, net.num_stitches - 1)
