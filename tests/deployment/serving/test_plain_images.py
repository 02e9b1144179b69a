"""Small image files of the plain kinds are decoded without a process; whatever else they are is known by the header."""

import io
import struct
import time
import zlib

import numpy as np
import pytest
import torch
from hostile_images import deep_png, progressive_jpeg
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torchvision.transforms.functional import pil_to_tensor

from timm_stitch.data.decoding import open_image
from timm_stitch.deployment.serving import image_reader, plain_images, signatures
from timm_stitch.deployment.serving.engine import OverloadError
from timm_stitch.deployment.serving.image_reader import ImageReader
from timm_stitch.deployment.serving.plain_images import plain_work


def write(kind, mode="RGB", size=(40, 30), **options):
    stream = io.BytesIO()
    Image.effect_noise(size, 60).convert(mode).save(stream, kind, **options)
    return stream.getvalue()


def deep():
    stream = io.BytesIO()
    Image.fromarray(np.arange(1200, dtype=np.uint16).reshape(30, 40) * 50).save(stream, "PNG")
    return stream.getvalue()


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def with_chunk(kind, data):
    """A PNG with a chunk before its pixels."""
    png = write("PNG")
    return png[:33] + chunk(kind, data) + png[33:]


def with_segment(kind, data):
    """A JPEG with a segment before its tables."""
    jpeg = write("JPEG")
    return jpeg[:2] + bytes([0xFF, kind]) + struct.pack(">H", len(data) + 2) + data + jpeg[2:]


PLAIN = {
    "jpeg": (write("JPEG"), 1200),
    "grey jpeg": (write("JPEG", "L"), 1200),
    "progressive jpeg": (write("JPEG", progressive=True), 10 * 1200),
    "png": (write("PNG"), 1200),
    "palette": (write("PNG", "P"), 1200),
    "transparent palette": (write("PNG", "P", transparency=3), 1200),
    "alpha": (write("PNG", "RGBA"), 1200),
    "one bit": (write("PNG", "1"), 1200),
    "sixteen bits": (deep(), 1200),
}


@pytest.mark.parametrize("name", PLAIN)
def test_plain_files_are_known_by_their_headers(name):
    data, work = PLAIN[name]
    assert plain_work(data) == work
    assert all(plain_work(data[:end]) is None for end in range(0, 33))


exif = Image.Exif()
exif[0x0112] = 6
texts = PngInfo()
texts.add_text("exif", "x")
frames = [Image.new("RGB", (40, 30), colour) for colour in ("red", "blue")]
OTHERS = {
    "no image": b"no image",
    "gif": write("GIF", "P"),
    "webp": write("WEBP"),
    "bmp": write("BMP"),
    "jpeg with exif": write("JPEG", exif=exif),
    "png with exif": write("PNG", exif=exif),
    "png with a text": write("PNG", pnginfo=texts),
    "profile": with_chunk(b"iCCP", b"x\0\0" + zlib.compress(bytes(1 << 20))),
    "a second header": with_chunk(b"IHDR", struct.pack(">IIBBBBB", 30_000, 30_000, 8, 0, 0, 0, 0)),
    "animation": write("PNG", save_all=True, append_images=frames),
    "cmyk": write("JPEG", "CMYK"),
    "several pictures": with_segment(0xE2, b"MPF\0II*\0"),
    "photoshop": with_segment(0xED, b"Photoshop 3.0\0"),
    "two frames": with_segment(0xC0, struct.pack(">BHHB", 8, 30_000, 30_000, 3) + bytes(9)),
    "arithmetic codes": write("JPEG").replace(b"\xff\xc0", b"\xff\xc9", 1),
    "lossless": write("JPEG").replace(b"\xff\xc0", b"\xff\xc3", 1),
    "twelve bits": write("JPEG").replace(b"\xff\xc0\0\x11\x08", b"\xff\xc0\0\x11\x0c", 1),
    "many chunks": with_chunk(b"gAMA", bytes(4)).replace(chunk(b"gAMA", bytes(4)), 1000 * chunk(b"gAMA", bytes(4)), 1),
    "large chunks": with_chunk(b"tRNS", bytes(20_000)),
    "large segments": with_segment(0xFE, bytes(20_000)),
    "long": deep_png(30, 900),
    "empty": deep_png(0, 0),
    "large file": write("PNG") + bytes(5 << 20),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_files_are_not_plain(name):
    assert plain_work(OTHERS[name]) is None


def test_the_work_of_much_is_much():
    assert plain_work(deep_png(7000, 7000)) == 49_000_000
    assert plain_work(progressive_jpeg(99, side=800)) == 100 * 640_000


@pytest.fixture
def reader():
    made = ImageReader(50_000_000, most_waiting=32, processes=2)
    yield made
    made.close()


def read(reader, *files, seconds=60):
    return reader.read_soon(files, "RGB", pil_to_tensor, time.monotonic() + seconds).result(60)[:, :, :8, :8]


def test_pixels_do_not_depend_on_the_way(reader, monkeypatch):
    files = [data for data, _ in PLAIN.values()]
    plain = read(reader, *files)
    monkeypatch.setattr(image_reader, "plain_work", lambda data: None)
    assert torch.equal(plain, read(reader, *files))
    expected = [pil_to_tensor(open_image(io.BytesIO(data)))[:, :8, :8] for data in files]
    assert torch.equal(plain, torch.stack(expected))


def test_plain_files_need_no_process(reader):
    for lane in (reader._quick, reader._slow):
        lane.close()
    assert read(reader, PLAIN["png"][0], PLAIN["jpeg"][0]).shape == (2, 3, 8, 8)


@pytest.mark.parametrize(
    "files",
    [[OTHERS["gif"]], [PLAIN["png"][0], OTHERS["jpeg with exif"]], [deep_png(700, 700)] * 3],
    ids=["format", "one of two", "work"],
)
def test_other_files_are_never_decoded_here(reader, files, monkeypatch):
    monkeypatch.setattr(image_reader.decoding, "open_image", lambda *_: pytest.fail("it was decoded here"))
    transform = lambda image: pil_to_tensor(image.crop((0, 0, 8, 8)))  # noqa: E731
    images = reader.read_soon(files, "RGB", transform, time.monotonic() + 60).result(60)
    assert images.shape == (len(files), 3, 8, 8)


def test_a_damaged_plain_file_is_refused(reader):
    with pytest.raises(ValueError, match="cannot be read"):
        read(reader, PLAIN["png"][0][:33] + b"\0\0\0\0IEND")
    with pytest.raises(ValueError, match="cannot be read"):
        read(reader, PLAIN["jpeg"][0][:700])


def test_the_deadline_holds_for_plain_files_too(reader):
    with pytest.raises(OverloadError, match="could not be read in time"):
        read(reader, PLAIN["png"][0], seconds=-1)


def test_the_formats_are_those_that_pillow_is_given():
    assert set(plain_images.FORMATS) <= set(signatures.FORMATS)
