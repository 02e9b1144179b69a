"""What a stranger's files may ask for, by every door, and how servers may behave."""

import http.server
import json
import re
import shutil
import threading
from contextlib import contextmanager

import pytest
import timm
import torch
import yaml
from tiny import deit_specs

import timm_stitch
from timm_stitch.data.yaml_text import load_yaml
from timm_stitch.families.timm_models.arguments import check_arguments
from timm_stitch.hub import safetensors_ranges as ranges
from timm_stitch.hub.model_card import plain_text
from timm_stitch.plan.bounds import MOST_STITCHES, check_routes
from timm_stitch.plan.stitch_plan import StitchPlan


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    net = timm.create_model("snnet", anchors=deit_specs(depth=2))
    return timm_stitch.save_pretrained(net, tmp_path_factory.mktemp("saved") / "net")


@pytest.fixture
def folder(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "net")


def edit(file, change):
    data = json.loads(file.read_text())
    change(data)
    file.write_text(json.dumps(data))


def by_transformers(folder):
    transformers = pytest.importorskip("transformers")
    return transformers.AutoModelForImageClassification.from_pretrained(folder)


DOORS = {
    "from_hub": timm_stitch.from_hub,
    "extract": lambda folder: timm_stitch.from_hub(folder, extract=0),
    "timm": lambda folder: timm.create_model(f"local-dir:{folder}", pretrained=True),
    "transformers": by_transformers,
}
INNER = {"architecture": "resnet18", "pretrained": True, "pretrained_cfg_overlay": {"file": "/etc/passwd"}}
NESTED = [{"architecture": "snnet", "anchors": [INNER, "resnet34"]}, "resnet18"]


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"anchors": NESTED}, r"read other files \(pretrained\)"),
        ({"anchors": [{"architecture": "resnet18", "checkpoint_path": "/etc/passwd"}] * 2}, "read other files"),
        ({"anchors": ["resnet18"] * 2, "checkpoint_path": "/etc/passwd"}, r"read other files \(checkpoint_path\)"),
        ({"anchors": ["deit_tiny_patch16_224"] * 6, "nearest": False, "kernel_size": 12}, "at most 10,000 stitches"),
    ],
)
def test_no_door_builds_what_reads_or_has_no_end(folder, door, args, message):
    if door == "transformers" and "checkpoint_path" in args:
        pytest.skip("transformers hands that to timm.create_model, which reads it after the network is built")
    edit(folder / "config.json", lambda c: c.update(model_args=args))
    with pytest.raises(ValueError, match=message):
        DOORS[door](folder)


@pytest.mark.parametrize("door", ["from_hub", "extract", "timm"])
def test_strange_names_are_reported_in_one_line(folder, door):
    edit(folder / "config.json", lambda c: c["pretrained_cfg"].update({"x\ny": 1}))
    with pytest.raises(
        ValueError, match=r"^the pretrained_cfg in config\.json is not one of timm's \(\['x\\ny'\]\)[^\n]*$"
    ):
        DOORS[door](folder)


@pytest.mark.parametrize("door", ["from_hub", "extract"])
def test_a_broken_header_is_reported_in_one_line(folder, door):
    header = json.dumps({"a": {"dtype": "a\nb", "shape": [1], "data_offsets": [0, 4]}}).encode()
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    with pytest.raises(ValueError, match=r"^'[^\n]*model\.safetensors' is not a readable weights file \([^\n]*$"):
        DOORS[door](folder)


@pytest.mark.parametrize("pickled", [b"\x80\x02.", b"\x80\x02]K\x01a0a.", b"\x80\x02]}}u."])
def test_a_truncated_pickle_is_reported_as_a_damaged_file(tmp_path, pickled):
    (tmp_path / "theirs.pth").write_bytes(pickled)
    with pytest.raises(ValueError, match=r"^'[^\n]*theirs\.pth' is not a readable weights file \([^\n]*$"):
        timm_stitch.convert_checkpoint(tmp_path / "theirs.pth", "snnet_levit_192_256")


def test_a_plan_is_counted_before_it_is_read():
    stitch = {"stitch_id": 0, "segments": [[0, 0, 1]], "layers": []}
    anchor = {"name": "a", "widths": [1, 1], "reductions": [1, 1]}
    plan = {"version": 1, "anchors": [anchor], "layers": [], "stitches": [stitch] * (MOST_STITCHES + 1)}
    with pytest.raises(ValueError, match="10,001 stitches: expected at most 10,000"):
        StitchPlan.from_dict(plan)


def test_a_token_is_not_shown():
    with pytest.raises(ValueError, match="the token has a line break") as caught:
        timm_stitch.from_hub("acme/net", token="hf_SECRET\n")
    assert "SECRET" not in str(caught.value)


def test_prefixes_and_revisions_are_obeyed(folder):
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        timm_stitch.from_hub(f"local-dir:{folder}-not")
    with pytest.raises(ValueError, match="which has no revision 'v9'"):
        timm_stitch.from_hub(folder, revision="v9")


def test_rows_that_would_not_load_are_not_saved(folder):
    model = timm_stitch.from_hub(folder)
    odd = ({"latency_ms": 0}, {"latency_ms_batch_8": "fast"}, {"batch_size": -1}, {"latency_ms": float("nan")})
    for extra in ({"loss": float("nan")}, {"per_class": [1.0]}, {"top1": 143.8}, *odd):
        with pytest.raises(ValueError, match="which would not load again"):
            timm_stitch.save_pretrained(model, folder, results=[{"stitch_id": 0, **extra}])
        other = timm_stitch.from_hub(folder)
        other.results.add([{"stitch_id": 0, **extra}])  # from elsewhere
        with pytest.raises(ValueError, match="which would not load again"):
            timm_stitch.save_pretrained(other, folder)


def test_channels_last_and_tied_weights_are_saved(folder):
    model = timm_stitch.from_hub(folder).to(memory_format=torch.channels_last)
    again = timm_stitch.from_hub(timm_stitch.save_pretrained(model, folder.parent / "again"))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_aliases_are_counted():
    text = "&a [x,x,x,x,x,x,x,x,x,x]"
    for old, new in zip("abcdefgh", "bcdefghi", strict=True):
        text = f"&{new} [{text}" + f",*{old}" * 9 + "]"
    with pytest.raises(ValueError, match="aliases in this YAML stand for more"):
        load_yaml(text)
    assert load_yaml("a: &x [1]\nb: *x") == yaml.safe_load("a: [1]\nb: [1]")


def test_text_of_strangers_starts_no_markup():
    assert plain_text("deit[0:3] + deit[2:6]") == "deit[0:3] + deit[2:6]"
    text = plain_text("a)\n# b <script> ![](http://evil.example/x.png) | `c`")
    assert "\n" not in text
    assert not re.search(r"(?<!\\)[\[\]<>|`]|(?<!\\)://", text)


@contextmanager
def server(answer):
    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *args):
            pass

        def do_GET(self):
            start, stop = map(int, re.findall(r"\d+", self.headers["Range"]))
            part, total, etag = answer(start, stop + 1)
            self.send_response(206)
            self.send_header("ETag", etag)
            self.send_header("Content-Range", f"bytes {start}-{start + len(part) - 1}/{total}")
            self.send_header("Content-Length", str(len(part)))
            self.end_headers()
            self.wfile.write(part)

    running = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{running.server_port}/x"
    finally:
        running.shutdown()
        running.server_close()


def test_ranges_go_on_and_notice_another_version():
    data = bytes(range(256)) * 200
    with server(lambda start, stop: (data[start : min(stop, start + 4096)], len(data), '"1"')) as url:
        assert ranges.RemoteFile(url, {}, "x", len(data)).fetch(0, len(data)) == data
    count = [0]

    def exchanged(start, stop):
        count[0] += 1
        return data[start:stop], len(data), f'"{count[0] > 1}"'

    with server(exchanged) as url:
        file = ranges.RemoteFile(url, {}, "x", len(data))
        file.fetch(0, 8)
        with pytest.raises(OSError, match="x was replaced while it was read"):
            file.fetch(8, 16)


F32 = {"dtype": "F32", "shape": [10]}


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"a": F32 | {"data_offsets": [0, 40]}, "b": F32 | {"data_offsets": [20, 60]}}, "'b' overlaps"),
        ({"a": F32 | {"data_offsets": [0, 40]}, "b": F32 | {"data_offsets": [0, 40]}}, "'b' overlaps"),
        ({"a": F32 | {"data_offsets": [0, 40]}, "b": F32 | {"data_offsets": [48, 88]}}, "'b' leaves a gap"),
        ({"a": F32 | {"data_offsets": [8, 48]}}, "'a' leaves a gap"),
        ({"a": F32 | {"data_offsets": [0, 40]}}, "its tensors end at byte"),
        ({"a": F32 | {"data_offsets": [0, 40]}, "b": F32 | {"data_offsets": [40, 84]}}, "as its shape says"),
        ({"a": F32 | {"data_offsets": [0.0, 40.0]}}, "no numbers of bytes"),
    ],
    ids=["partly", "wholly", "between", "before", "after", "longer", "fractions"],
)
def test_tensors_that_do_not_fill_their_file_are_refused_by_ranges_too(tmp_path, tensors, message):
    header = json.dumps(tensors).encode()
    data = len(header).to_bytes(8, "little") + header + bytes(100)
    (tmp_path / "x").write_bytes(data)
    with pytest.raises(ValueError, match="not a readable weights file"):
        ranges.read_local(tmp_path / "x", ["a"])
    with server(lambda start, stop: (data[start:stop], len(data), '"1"')) as url:
        file = ranges.RemoteFile(url, {}, "x", len(data))
        with pytest.raises(ValueError, match=message):
            file.header()
        overlapping = {name: ranges.Entry(torch.float32, (10,), 10 + i, 50 + i) for i, name in enumerate("ab")}
        with pytest.raises(ValueError, match="has tensors that overlap: 'a' and 'b'"):
            file.tensors(overlapping)


def test_blocks_are_counted_before_anything_is_built():
    spec = {"architecture": "vit_tiny_patch16_224", "depth": 400}
    check_arguments({"anchors": [spec, "resnet18"]})
    with pytest.raises(ValueError, match=r"asks for [\d,]+ blocks: expected at most 512"):
        check_arguments({"anchors": [spec, spec]})


def test_routes_are_counted_to_one():
    joint = (1, 1)
    check_routes((0, 1), {0: 2, 1: 2}, {(0, 1): [joint] * (MOST_STITCHES - 2)})
    with pytest.raises(ValueError, match="a plan must have at most 10,000 stitches, got 10,001"):
        check_routes((0, 1), {0: 2, 1: 2}, {(0, 1): [joint] * (MOST_STITCHES - 1)})


@pytest.mark.parametrize("name", ["config.json", "stitches.json", "model.safetensors"])
@pytest.mark.parametrize("door", ["from_hub", "extract"])
def test_a_link_out_of_the_folder_is_refused(folder, tmp_path, name, door):
    (folder / name).rename(tmp_path / name)
    (folder / name).symlink_to(tmp_path / name)
    with pytest.raises((ValueError, OSError), match=f"{name}[^\n]* is a link to a file outside of"):
        DOORS[door](folder)
    inside = folder / f"real-{name}"
    (folder / name).unlink()
    (tmp_path / name).rename(inside)
    (folder / name).symlink_to(inside.name)
    DOORS[door](folder)


@pytest.mark.parametrize("extract", [None, 0])
def test_an_edited_configuration_is_refused_unless_only_names_differ(folder, caplog, extract):
    edit(folder / "config.json", lambda c: c.update(label_names=[f"class {i}" for i in range(10)]))
    timm_stitch.from_hub(folder, extract=extract)
    assert "config.json has other names or labels than it was saved with" in caplog.text
    caplog.clear()
    edit(folder / "config.json", lambda c: c["pretrained_cfg"].update(mean=[0.1, 0.1, 0.1]))
    with pytest.raises(ValueError, match=r"^config\.json in [^\n]* is not as it was saved[^\n]*give verify=False"):
        timm_stitch.from_hub(folder, extract=extract)
    timm_stitch.from_hub(folder, extract=extract, verify=False)
    assert "is not as it was saved with these weights, so another network may be built" in caplog.text


def test_rows_nested_without_end_are_one_line(tmp_path):
    (tmp_path / "rows.jsonl").write_text("[" * 100_000)
    with pytest.raises(ValueError, match=r"^[^\n]*rows\.jsonl', line 1, is not JSON [^\n]*$"):
        timm_stitch.read_rows(tmp_path / "rows.jsonl")


@pytest.mark.parametrize("content", [b"[1]", b"\xff", b'{"a": ', None], ids=["a list", "no text", "cut", "a folder"])
def test_a_stitches_file_that_cannot_be_read_is_refused_since_weights_cannot_be_compared(folder, content):
    path = folder / "stitches.json"
    path.unlink()
    assert timm_stitch.from_hub(folder).num_stitches
    path.mkdir() if content is None else path.write_bytes(content)
    with pytest.raises(ValueError, match=r"^[^\n]*so the weights cannot be compared with its fingerprint[^\n]*$"):
        timm_stitch.from_hub(folder)
