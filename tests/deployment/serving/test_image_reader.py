"""Image files of strangers: bounded in work, time and memory, and never in the way of others."""

import io
import math
import time

import pytest
import torch
from hostile_images import deep_png, progressive_jpeg
from PIL import Image
from timm.data import create_transform
from torchvision import transforms
from torchvision.transforms.functional import pil_to_tensor

from timm_stitch.deployment.serving.decoder import Decoder, TooMuchWorkError, TooSlowError
from timm_stitch.deployment.serving.engine import OverloadError
from timm_stitch.deployment.serving.image_reader import ImageReader
from timm_stitch.deployment.serving.network import first_resize

PIXELS = 50_000_000


def small(image):
    return pil_to_tensor(image.resize((8, 8)))


def png(size=(20, 10)):
    data = io.BytesIO()
    Image.effect_noise(size, 60).convert("RGB").save(data, "PNG")
    return data.getvalue()


@pytest.fixture
def decoder():
    made = Decoder(1_000_000)
    yield made
    made.close()


@pytest.fixture
def reader():
    made = ImageReader(PIXELS, most_waiting=8, processes=2)
    yield made
    made.close()


def decode(decoder, data, seconds=60, pixels=PIXELS, work=100 * PIXELS):
    return decoder.decode(data, "RGB", pixels, work, time.monotonic() + seconds)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "the image is empty: expected one of JPEG, PNG"),
        (b"import torch\n", "this is no readable image"),
        (b'--1f\r\nContent-Disposition: form-data; name="f"\r\n\r\n' + png(), "curl --data-binary @cat.jpg"),
    ],
)
def test_what_does_not_begin_as_an_image_is_refused_before_any_process(reader, monkeypatch, data, message):
    monkeypatch.setattr(Decoder, "decode", None)
    with pytest.raises(ValueError, match=message):
        reader.read_soon([png(), data], "RGB", small, time.monotonic())  # though its time is over


def test_a_reader_is_ready_when_each_process_has_answered(reader, monkeypatch):
    asked, decode = [], Decoder.decode
    monkeypatch.setattr(Decoder, "decode", lambda self, *args: asked.append(self) or decode(self, *args))
    reader.wait_until_ready()
    assert asked == [*reader._quick.decoders, *reader._slow.decoders]
    assert all(decoder._process.poll() is None for decoder in asked)  # none was replaced


def test_pixels_are_those_of_pillow(decoder):
    data = png()
    image, work = decode(decoder, data)
    assert image.tobytes() == Image.open(io.BytesIO(data)).convert("RGB").tobytes()
    assert work == 200


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"GIF89a", "no readable image"),
        (progressive_jpeg(200, side=800), "the image has 201 scans: at most 100 are accepted"),
        (deep_png(8000, 8000), "64,000,000 pixels: at most 50,000,000"),
        (
            deep_png(3, 3000),
            "3 x 3000 pixels: a side may be 200 times the other",
        ),  # resizing would make it 384 x 384,000
    ],
)
def test_work_is_bounded_before_it_begins(decoder, data, message):
    with pytest.raises(ValueError, match=message):
        decode(decoder, data)


def test_memory_is_bounded(decoder):
    with pytest.raises(ValueError, match=r"memory|MemoryError|cannot be read"):
        decode(decoder, deep_png())  # its process may decode a million pixels
    assert decode(decoder, png())[0].size == (20, 10)


def test_a_process_is_ended_at_the_deadline_and_replaced(decoder):
    decode(decoder, png())  # it has started
    with pytest.raises(TooSlowError):
        decode(decoder, progressive_jpeg(99), seconds=0.05)
    assert decode(decoder, png())[0].size == (20, 10)
    with pytest.raises(TooMuchWorkError):
        decode(decoder, png(), work=100)


def test_a_process_that_died_is_replaced(decoder):
    decoder._process.kill()
    decoder._process.wait()
    with pytest.raises(ValueError, match="cannot be decoded"):
        decode(decoder, png())
    assert decode(decoder, png())[0].size == (20, 10)


def test_small_images_are_read_while_large_ones_are(reader):
    later = time.monotonic() + 60
    hostile = [reader.read_soon([progressive_jpeg(99)], "RGB", small, later) for _ in range(4)]
    images = reader.read_soon([png(), png()], "RGB", small, later).result(60)
    assert images.shape == (2, 3, 8, 8)
    assert not hostile[-1].done()
    assert hostile[0].result(60).shape == (1, 3, 8, 8)


def test_many_images_of_one_request_go_to_the_second_lane_too(reader):
    files = [png((1500, 1500))] * 3
    images = reader.read_soon(files, "RGB", small, time.monotonic() + 60).result(60)
    assert torch.equal(images[0], images[2])


def test_a_deadline_holds_while_images_are_read(reader):
    with pytest.raises(OverloadError, match="could not be read in time"):
        reader.read_soon([progressive_jpeg(99)] * 8, "RGB", small, time.monotonic() + 0.3).result(60)
    images = [reader.read_soon([png()], "RGB", small, time.monotonic() + 60) for _ in range(8)]
    assert {tuple(future.result(60).shape) for future in images} == {(1, 3, 8, 8)}


def test_too_many_images_are_refused(reader):
    with pytest.raises(OverloadError, match="8 images wait to be read"):
        reader.read_soon([png()] * 9, "RGB", small, time.monotonic() + 60)


def test_closing_ends_the_processes():
    reader = ImageReader(PIXELS, most_waiting=8, processes=2)
    processes = [decoder._process for lane in (reader._quick, reader._slow) for decoder in lane.decoders]
    reader.close()
    assert all(process.poll() is not None for process in processes)
    with pytest.raises(OverloadError, match="shutting down"):
        reader.read_soon([png()], "RGB", small, time.monotonic() + 60).result(60)


@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
@pytest.mark.parametrize("size", [(300, 200), (200, 301), (64, 64), (50, 400)])
def test_resizing_where_images_are_decoded_changes_no_pixel(decoder, size, crop_mode):
    transform = create_transform((3, 64, 64), interpolation="bicubic", crop_pct=0.9, crop_mode=crop_mode)
    resize, data = first_resize(transform), png(size)
    assert (resize is None) == (crop_mode == "border")  # which pads, by a step of timm's own
    whole, _ = decode(decoder, data)
    image, _ = decoder.decode(data, "RGB", PIXELS, PIXELS, time.monotonic() + 60, resize)
    assert torch.equal(transform(image), transform(whole))
    if resize is not None:
        resized = transforms.Resize(resize.size)(whole).size
        assert image.size == min(resized, size, key=math.prod)  # never enlarged there


def test_network_is_given_the_pixels_of_its_own_preparation(reader):
    transform = create_transform((3, 64, 64), interpolation="bilinear", crop_pct=0.8)
    sizes, data = [], png((1500, 1100))

    def prepare(image):
        sizes.append(image.size)
        return transform(image)

    images = reader.read_soon([data], "RGB", prepare, time.monotonic() + 60, first_resize(transform)).result(60)
    assert torch.equal(images[0], transform(Image.open(io.BytesIO(data)).convert("RGB")))
    assert sizes == [(109, 80)]  # all that the process sent
