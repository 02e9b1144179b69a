"""The page without a server of its own prepares images as timm does, and shows in a real browser what PyTorch gives."""

import base64
import functools
import http.server
import io
import threading

import numpy as np
import pytest
import timm
import torch
from in_browser import chromium, drop
from PIL import Image
from tiny import deits

import timm_stitch
from timm_stitch.data.dataset import image_config
from timm_stitch.deployment.formats import web_folder


def network():
    """A network whose stitches 3, 5 and 20 are on its frontier, and whose labels are markup."""
    torch.manual_seed(0)
    net = timm_stitch.stitch(deits()).eval()
    for anchor in net.anchors:
        torch.nn.init.normal_(anchor.head.weight, std=0.5)  # so that stitches differ visibly
    cost = {row["stitch_id"]: row["macs"] for row in net.stitch_table()}
    order = sorted((3, 5, 20), key=cost.get)
    names = [f"kind <b>{i}</b>" for i in range(net.num_classes)]
    net.pretrained_cfg |= {"label_names": names, "interpolation": "bicubic", "crop_pct": 0.9, "crop_mode": "center"}
    net.results.add([{"stitch_id": k, "top1": 50.0 + 10 * n} for n, k in enumerate(order)])
    return net, order


@pytest.fixture(scope="module")
def runtime():
    """onnxruntime-web, in the cache."""
    try:
        return web_folder._package()
    except OSError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def exported(runtime, tmp_path_factory):
    net, order = network()
    folder = tmp_path_factory.mktemp("web") / "page"
    timm_stitch.export(net, folder, format="web")
    return net, order, folder


@pytest.fixture(scope="module")
def address(exported):
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=exported[2])
    handler.log_message = lambda *_: None
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def browser():
    with chromium() as opened:
        yield opened


@pytest.fixture
def page(browser, address):
    """The page, with what it asks of other hosts and what it complains of."""
    opened, elsewhere, errors = browser.new_page(viewport={"width": 1000, "height": 760}), [], []
    opened.on(
        "request", lambda request: request.url.startswith((address, "blob:", "data:")) or elsewhere.append(request.url)
    )
    opened.on("pageerror", lambda error: errors.append(str(error)))
    opened.on("console", lambda message: message.type == "error" and errors.append(message.text))
    opened.goto(address)
    opened.wait_for_selector("body[data-ready]", timeout=60_000)
    yield opened
    assert (elsewhere, errors) == ([], [])
    opened.close()


def picture(width=90, height=61):
    pixels = np.random.default_rng(0).integers(0, 256, (height // 4, width // 4, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((width, height))


def png(image):
    file = io.BytesIO()
    image.save(file, format="png")
    return file.getvalue()


def expected(net, image, stitch_id):
    """The five likeliest classes by timm's own transform."""
    x = timm.data.create_transform(**image_config(net))(image)[None]
    with torch.inference_mode():
        values, classes = net(x, stitch_id=stitch_id)[0].softmax(0).topk(5)
    return [(f"kind <b>{i}</b>", 100 * p) for i, p in zip(classes.tolist(), values.tolist(), strict=True)]


def shown(page, stitch_id):
    """What the page says of a stitch when it has run."""
    page.wait_for_selector(f'body[data-shown="{stitch_id}"]', timeout=60_000)
    items = page.query_selector_all("#prediction li")
    texts = [[span.inner_text() for span in item.query_selector_all("span")] for item in items]
    return [(label, float(share.removesuffix(" %"))) for label, share in texts]


def test_an_image_is_dropped_and_the_slider_moved_by_the_keyboard(page, exported):
    net, order, _ = exported
    drop(page, "#drop", png(picture()))
    for step in (2, 1, 0):
        found = shown(page, order[step])
        wanted = expected(net, picture(), order[step])
        assert [label for label, _ in found] == [label for label, _ in wanted]
        assert [share for _, share in found] == pytest.approx([share for _, share in wanted], abs=0.06)
        assert page.inner_text("#name") == net.plan[order[step]].name
        assert page.inner_text("#top1") == f"{50 + 10 * step:.2f} %"
        assert page.inner_text("#latency").endswith("ms")
        assert page.get_attribute("#curve circle.here", "data-stitch-id") == str(order[step])
        assert f"stitch {order[step]}," in page.get_attribute("#slider", "aria-valuetext")
        page.focus("#slider")
        page.keyboard.press("ArrowLeft")


def test_what_is_no_image_is_said(page):
    drop(page, "#drop", b"no image")
    page.locator("#status", has_text="cannot be read as an image").wait_for()  # the page lets no script be evaluated
    assert "cannot be read as an image" in page.text_content("#status")


@pytest.mark.parametrize("size", [(90, 61), (61, 90), (20, 20), (500, 37), (32, 32)])
@pytest.mark.parametrize(
    ("interpolation", "mode", "crop", "channels"),
    [("bicubic", "center", 0.875, 3), ("bilinear", "squash", 0.95, 3), ("lanczos", "center", 1.0, 1)],
)
def test_images_are_prepared_as_by_timm(page, size, interpolation, mode, crop, channels):
    config = {"interpolation": interpolation, "crop_mode": mode, "crop_pct": crop}
    config |= {"mean": [0.4, 0.5, 0.6][:channels], "std": [0.2, 0.3, 0.25][:channels]}
    image = picture(*size)
    transform = timm.data.create_transform(input_size=(channels, 32, 32), **config)
    found = page.evaluate(
        """async ([text, config, shape]) => {
            const { decoded, prepared } = await import("./images.js")
            const bytes = Uint8Array.from(atob(text), c => c.charCodeAt(0))
            return Array.from(prepared(await decoded(new Blob([bytes])), config, shape))
        }""",
        [base64.b64encode(png(image)).decode(), config, [channels, 32, 32]],
    )
    wanted = transform(image.convert("L" if channels == 1 else "RGB"))
    torch.testing.assert_close(torch.tensor(found).view(channels, 32, 32), wanted, atol=1e-5, rtol=0)


def test_the_folder_is_small_and_whole(exported):
    _, order, folder = exported
    own = sum((folder / name).stat().st_size for name in ("index.html", "app.js", "images.js", "maps.js"))
    assert own < 24_000
    assert {file.name for file in folder.iterdir()} == {
        "index.html", "app.js", "images.js", "maps.js", "ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm",
        "manifest.json", "weights.bin", *(f"stitch-{k}.onnx" for k in order),
    }  # fmt: skip


def test_what_the_page_cannot_do_is_said(runtime, tmp_path):
    net, _ = network()
    net.pretrained_cfg["crop_mode"] = "border"
    with pytest.raises(
        ValueError, match=r"the page cannot prepare images .*'crop_mode': 'border'.*it takes one square"
    ):
        timm_stitch.export(net, tmp_path / "page", format="web")
    with pytest.raises(ValueError, match="the accuracy of no stitch is known, so there is no frontier"):
        timm_stitch.export(timm_stitch.stitch(deits()), tmp_path / "page", format="web")
    assert not list(tmp_path.iterdir())


def test_another_runtime_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(web_folder, "_ADDRESS", "http://127.0.0.1:9/package.tgz")
    net, _ = network()
    with pytest.raises(OSError, match=r"cannot be fetched .*npm pack onnxruntime-web@1.30.0\) and put it at"):
        timm_stitch.export(net, tmp_path / "page", format="web")
    location = tmp_path / "cache" / "timm_stitch" / web_folder.RUNTIME
    location.parent.mkdir(parents=True)
    location.write_bytes(b"something else")
    with pytest.raises(OSError, match=r"is not npm's onnxruntime-web 1\.30\.0"):
        timm_stitch.export(net, tmp_path / "page", format="web")
    assert not (tmp_path / "page").exists()
