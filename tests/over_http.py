"""What `hub/test_sharing.py` runs in a process of its own, whose huggingface_hub looks at `loopback_hub.py`."""

import errno
import json
import logging
import os
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import pytest
import timm
import torch
from conftest import anchor_specs
from huggingface_hub import HfApi, RepoCard, constants, hf_hub_download, snapshot_download
from PIL import Image
from safetensors.torch import save_file

import timm_stitch
from timm_stitch import cli
from timm_stitch.deployment.demo import Viewer
from timm_stitch.deployment.spaces import push_space
from timm_stitch.hub.push import list_hub

SERVER = os.environ["HF_ENDPOINT"]
SECRET = "hf_this_must_not_be_shown"
IMAGES = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def ask(path, data=None):
    body = None if data is None else json.dumps(data).encode()
    with urllib.request.urlopen(SERVER + path, data=body) as answer:
        return json.loads(answer.read() or b"null")


def fault(on, do, times=99, **more):
    ask("/_fault", {"on": on, "do": do, "times": times, **more})


def weights_bytes():
    """Bytes of the weights file that the server sent."""
    return sum(e["sent"] for e in ask("/_log") if re.match(r"GET .*(safetensors|_lfs)", e["request"]))


@pytest.fixture(autouse=True)
def _calm(monkeypatch, tmp_path):
    ask("/_reset", {})
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    yield
    ask("/_reset", {})


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return timm.create_model("snnet", anchors=anchor_specs()).eval()


@pytest.fixture(scope="module")
def rows(model):
    return timm_stitch.evaluate(model, [(IMAGES, torch.arange(8) % 10)])


@pytest.fixture(scope="module")
def repo(model, rows):
    timm_stitch.push_to_hub(model, "acme/net", results=rows, dataset="acme/squares", split="test", token=SECRET)
    return "acme/net"


def test_transformers_by_id(model, repo):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoModelForImageClassification.from_pretrained(repo).eval()
    with torch.inference_mode():
        assert torch.equal(theirs(IMAGES, stitch_id=9).logits, model(IMAGES, stitch_id=9))
        pipe = transformers.pipeline("image-classification", model=repo, top_k=10)
        pipe.model.timm_model.set_stitch(20)
        picture = Image.new("RGB", (40, 40), (200, 30, 90))
        pixels = transformers.AutoImageProcessor.from_pretrained(repo)(picture, return_tensors="pt")["pixel_values"]
        expected = model(pixels, stitch_id=20).softmax(-1)[0]
    scores = {row["label"]: row["score"] for row in pipe(picture)}
    assert [scores[f"LABEL_{i}"] for i in range(10)] == pytest.approx(expected.tolist(), abs=1e-6)


def test_the_hub_lists_networks_by_their_tag(repo, capsys):
    HfApi().create_repo("acme/other", exist_ok=True, token=SECRET)
    assert [row["repo_id"] for row in list_hub()] == [repo]
    assert cli.main(["list", "--hub", "net", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["repo_id"] == repo
    assert cli.main(["list", "--hub", "nothing-like-this"]) == 0
    assert capsys.readouterr().out == "the Hub lists none.\n"
    fault("GET /api/models", 500)
    assert cli.main(["list", "--hub"]) == 1
    assert capsys.readouterr().err.startswith("error: ")


def head(repo_id="acme/net"):
    return HfApi().model_info(repo_id).sha


def test_round_trip(model, rows, repo, caplog, tmp_path):
    names = {"README.md", "config.json", "curve.png", "model.safetensors", "stitches.json"}
    assert set(HfApi().list_repo_files(repo)) == names | {".gitattributes"}
    assert len(HfApi().list_repo_commits(repo)) == 2  # the first is the Hub's own
    again = timm.create_model(f"hf-hub:{repo}", pretrained=True, stitch_id=9).eval()
    assert again.stitch_id == 9
    assert torch.equal(again(IMAGES), model(IMAGES, stitch_id=9))
    assert timm_stitch.select(again, macs=rows[9]["macs"]) == timm_stitch.select(model, rows, macs=rows[9]["macs"])
    assert again.stitch_table()[9]["dataset"] == "acme/squares"
    other = timm.create_model(f"hf-hub:{repo}", pretrained=True, num_classes=4)
    assert other(IMAGES).shape == (8, 4)
    with pytest.raises(ValueError, match="no stitch of this network has a known top1"):
        timm_stitch.select(other, macs=1e9)
    whole = timm_stitch.from_hub(repo)
    assert torch.equal(whole(IMAGES, stitch_id=20), model(IMAGES, stitch_id=20))
    assert timm_stitch.from_hub(f"{repo}@{head()}", stitch_id=3).stitch_id == 3
    ask("/_reset", {})
    with caplog.at_level(logging.INFO, "timm_stitch"):
        timm_stitch.from_hub(repo, extract=9)
    assert weights_bytes() == 0
    assert "the whole file is in the cache" in caplog.text


def test_one_stitch_by_ranges(model, repo, caplog):
    size = sum(t.numel() * t.element_size() for t in model.state_dict().values())
    with open(hf_hub_download(repo, "model.safetensors", cache_dir=os.environ["HF_HOME"]), "rb") as file:
        header = 8 + int.from_bytes(file.read(8), "little")
    for stitch_id in (0, 9, 20):
        ask("/_reset", {})
        needed = sum(t.numel() * t.element_size() for t in model.extract(stitch_id).state_dict().values())
        with caplog.at_level(logging.INFO, "timm_stitch"):
            small = timm_stitch.from_hub(repo, extract=stitch_id)
        assert weights_bytes() <= max(1.05 * needed, needed + header)
        assert torch.equal(small(IMAGES), model(IMAGES, stitch_id=stitch_id))
        assert set(small.state_dict()) == set(model.extract(stitch_id).state_dict())
        assert not any(p.is_meta for p in small.parameters())
        assert f"{weights_bytes():,} of " in caplog.text
        assert weights_bytes() < size
    assert timm_stitch.from_hub(repo, extract=9, num_classes=3)(IMAGES).shape == (8, 3)
    with pytest.raises(ValueError, match="stitch_id=35 is not in this plan"):
        timm_stitch.from_hub(repo, extract=35)
    with pytest.raises(ValueError, match="takes no img_size"):
        timm_stitch.from_hub(repo, extract=9, img_size=64)


def test_a_server_without_ranges(model, repo, caplog):
    fault("GET .*(safetensors|_lfs)", "whole")
    with caplog.at_level(logging.WARNING, "timm_stitch"):
        small = timm_stitch.from_hub(repo, extract=9)
    assert "sends no parts of files, so the whole file is fetched" in caplog.text
    assert torch.equal(small(IMAGES), model(IMAGES, stitch_id=9))


def test_a_broken_connection_goes_on_where_it_stopped(model, repo):
    fault("GET .*(safetensors|_lfs)", "drop", times=3, after=30_000)
    small = timm_stitch.from_hub(repo, extract=9)
    assert torch.equal(small(IMAGES), model(IMAGES, stitch_id=9))


def test_a_second_push_keeps_what_the_user_wrote(model, rows, repo):
    api = HfApi(token=SECRET)
    card = Path(hf_hub_download(repo, "README.md")).read_text()
    card = card.replace("---\n\n# net", "my_field: 7\n---\n\n# My own title")
    card = card.replace("## Limits", "## My notes\n\nKept.\n\n## Limits")
    card = card.replace("tags:\n", "tags:\n- mine\n")
    api.upload_file(path_or_fileobj=card.encode(), path_in_repo="README.md", repo_id=repo)
    better = [{**row, "top1": 87.654 if row["stitch_id"] == 2 else row["top1"]} for row in rows]
    before = len(api.list_repo_commits(repo))
    timm_stitch.push_to_hub(model, repo, results=better, dataset="acme/other", token=SECRET, commit_message="again")
    commits = api.list_repo_commits(repo)
    assert (len(commits), commits[0].title) == (before + 1, "again")
    new = Path(hf_hub_download(repo, "README.md")).read_text()
    assert "# My own title" in new
    assert "## My notes\n\nKept." in new
    assert "87.65" in new
    assert "my_field: 7" in new
    info = api.model_info(repo)
    assert "mine" in info.tags
    assert info.card_data["datasets"] == ["acme/squares", "acme/other"]
    assert timm_stitch.select(timm_stitch.from_hub(repo), macs=1e9) == 2
    model.results.clear()
    timm_stitch.push_to_hub(model, repo, results=rows, dataset="acme/squares", split="test", token=SECRET)


def test_weights_are_written_once_for_a_push(model, repo, monkeypatch):
    written = []

    def counted(*args, **kwargs):
        written.append(args[1])
        return save_file(*args, **kwargs)

    monkeypatch.setattr("timm_stitch.families.timm_models.files.save_file", counted)
    assert "README.md" in HfApi().list_repo_files(repo)
    timm_stitch.push_to_hub(model, repo, token=SECRET, commit_message="once")
    assert len(written) == 1
    timm_stitch.push_to_hub(model, "acme/fresh", token=SECRET)
    assert len(written) == 2


def test_what_cannot_be_saved_makes_no_repository(model, monkeypatch):
    with pytest.raises(ValueError, match="timm would make another network from these anchors' names"):
        timm_stitch.push_to_hub(changed_by_hand(), "acme/never", token=SECRET)
    monkeypatch.setattr("timm_stitch.families.timm_models.files.save_file", no_room)
    with pytest.raises(OSError, match="No space left on device"):
        timm_stitch.push_to_hub(model, "acme/never", token=SECRET)
    assert not HfApi().repo_exists("acme/never")


def changed_by_hand():
    other = timm.create_model("snnet", anchors=anchor_specs())
    other.anchors[0].blocks[0].mlp = torch.nn.Identity()
    return other


def no_room(*args, **kwargs):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_branches_pull_requests_and_messages(model, repo):
    before = head()
    url = timm_stitch.push_to_hub(model, repo, revision="next", commit_message="try", token=SECRET, license="mit")
    assert "/commit/" in url
    assert head() == before
    assert HfApi().model_info(repo, revision="next").sha != before
    assert timm_stitch.from_hub(repo, revision="next").num_stitches == 35
    assert "/discussions/" in timm_stitch.push_to_hub(model, repo, create_pr=True, token=SECRET, license="bsd")
    assert head() == before
    timm_stitch.push_to_hub(model, "acme/mine", private=True, token=SECRET)
    with pytest.raises(PermissionError, match="cannot load acme/mine: the Hub does not know who asks"):
        timm_stitch.from_hub("acme/mine", token=False)
    assert timm_stitch.from_hub("acme/mine", token=SECRET).num_stitches == 35
    assert timm_stitch.from_hub("acme/mine", token=SECRET, extract=3, cache_dir=os.environ["HF_HOME"]).num_stitches == 1
    other_host = [e for e in ask("/_log") if "_lfs" in e["request"] and e["request"].startswith("GET") and e["auth"]]
    assert not other_host  # the token goes to the Hub only


@pytest.mark.parametrize(
    ("on", "do", "error", "message"),
    [
        ("commit/main", 401, PermissionError, "the Hub does not know who asks"),
        ("commit/main", 403, PermissionError, r"the token may not do that \(403\); nothing was committed. Give"),
        ("commit/main", 429, ConnectionError, r"the Hub asks to slow down \(429\); nothing was committed. Wait"),
        ("commit/main", 500, ConnectionError, "the Hub answered 500; nothing was committed. Try again later"),
        ("commit/main", 507, OSError, r"the Hub has no room for it \(507\); nothing was committed"),
        ("commit/main", 412, OSError, "somebody else committed meanwhile .*Push again"),
        ("POST .*(preupload|batch)", 500, ConnectionError, "the Hub answered 500; nothing was committed"),
        ("(PUT|commit/main)", "drop", ConnectionError, "the connection failed .*nothing was committed"),
    ],
)
def test_a_push_that_fails_leaves_the_repository_as_it_was(model, repo, on, do, error, message):
    torch.manual_seed(os.getpid())
    other = timm.create_model("snnet", anchors=anchor_specs())
    before = head()
    fault(on, do)
    with pytest.raises(error, match=message) as caught:
        timm_stitch.push_to_hub(other, repo, token=SECRET)
    ask("/_reset", {})
    assert head() == before
    assert "\n" not in str(caught.value)
    assert SECRET not in str(caught.value)


def test_a_push_whose_answer_is_lost_says_so(model, repo):
    fault("commit/main", "lost", times=1)
    with pytest.raises(ConnectionError, match="there is a new commit, perhaps this one: look before pushing again"):
        timm_stitch.push_to_hub(model, repo, token=SECRET, license="mit")
    fault("api/repos/create", 403)
    with pytest.raises(PermissionError, match="cannot push to acme/forbidden: the token may not do that"):
        timm_stitch.push_to_hub(model, "acme/forbidden", token=SECRET)


@pytest.mark.parametrize("extract", [None, 9])
@pytest.mark.parametrize(
    ("on", "do", "error", "message"),
    [
        ("model.safetensors", 401, PermissionError, "the Hub does not know who asks"),
        ("model.safetensors", 403, PermissionError, "the token may not do that"),
        ("model.safetensors", 429, ConnectionError, "the Hub asks to slow down"),
        ("model.safetensors", 500, ConnectionError, "the Hub answered 500|could not be reached"),
        ("GET .*(safetensors|_lfs)", "drop", ConnectionError, "the connection failed"),
        ("GET .*(safetensors|_lfs)", 500, ConnectionError, "the Hub answered 500"),
    ],
)
def test_a_pull_that_fails(repo, tmp_path, on, do, error, message, extract):
    fault(on, do, after=1000 if extract is None else 0)  # of one stitch, anything that comes is progress
    with pytest.raises(error, match=f"cannot load acme/net: .*({message})") as caught:
        timm_stitch.from_hub(repo, token=SECRET, extract=extract)
    assert "\n" not in str(caught.value)
    assert SECRET not in str(caught.value)
    assert not list((tmp_path / "hub").rglob("model.safetensors"))
    ask("/_reset", {})
    assert timm_stitch.from_hub(repo, extract=extract).num_classes == 10


def test_what_is_not_there(repo):
    with pytest.raises(
        FileNotFoundError, match=r"cannot load acme/nothing: there is no such repository. Check the name"
    ):
        timm_stitch.from_hub("acme/nothing")
    with pytest.raises(FileNotFoundError, match="there is no such branch, tag or commit"):
        timm_stitch.from_hub(repo, revision="nowhere")
    HfApi(token=SECRET).create_repo("acme/empty", exist_ok=True)
    with pytest.raises(FileNotFoundError, match="it lacks a file that every network of timm_stitch has"):
        timm_stitch.from_hub("acme/empty")
    with pytest.raises(ValueError, match="is neither a folder nor a repository"):
        timm_stitch.from_hub("../etc/passwd")


def test_a_full_disk(repo, tmp_path):
    import resource
    import signal

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, limits[1]))
    try:
        with pytest.raises(OSError, match="there is no room on the disk"):
            timm_stitch.from_hub(repo)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list((tmp_path / "hub").rglob("model.safetensors"))
    assert timm_stitch.from_hub(repo).num_stitches == 35


def test_timms_own_push(model):
    timm.models.push_to_hf_hub(model, "acme/by-timm", token=SECRET, safe_serialization=True)
    again = timm.create_model("hf-hub:acme/by-timm", pretrained=True).eval()
    assert torch.equal(again(IMAGES), model(IMAGES))
    assert torch.equal(timm_stitch.from_hub("acme/by-timm", extract=9)(IMAGES), model(IMAGES, stitch_id=9))


def test_offline_from_the_cache(repo, monkeypatch):
    timm_stitch.from_hub(repo)
    fault("(api|resolve|_lfs)", 500)
    assert timm_stitch.from_hub(repo, extract=9).num_stitches == 1


def test_from_somebodys_network_to_ones_own(repo, tmp_path, monkeypatch):
    import runpy

    for split in ("train", "validation"):
        for label in range(3):
            folder = tmp_path / "squares" / split / f"class{label}"
            folder.mkdir(parents=True)
            for n in range(2):
                Image.new("RGB", (40, 40), (label * 80, n, 0)).save(folder / f"{n}.png")
    example = Path(__file__).parents[1] / "examples/transfer.py"
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


def test_without_xet(model, repo):
    assert len(HfApi().model_info(repo).sha) == 64  # a push builds on such commits, too
    for load in (timm_stitch.from_hub, lambda name: timm.create_model(f"hf-hub:{name}", pretrained=True)):
        with pytest.raises(OSError, match="HF_HUB_DISABLE_XET=1") as caught:
            load(repo)
        assert "\n" not in str(caught.value)
    alone = timm_stitch.from_hub(repo, extract=9)
    assert torch.equal(alone(IMAGES), model(IMAGES, stitch_id=9))
    run = subprocess.run(
        [sys.executable, "-c", f"import timm_stitch; timm_stitch.from_hub({repo!r})"],
        env=os.environ | {"HF_HUB_DISABLE_XET": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr


def test_a_server_that_knows_no_ranges_sends_the_whole(model, repo):
    fault("GET .*(_lfs|safetensors)", 501, times=1)
    alone = timm_stitch.from_hub(repo, extract=9)
    assert torch.equal(alone(IMAGES), model(IMAGES, stitch_id=9))


def test_the_page_as_a_space_that_runs(repo, tmp_path):
    gradio_client = pytest.importorskip("gradio_client")
    picture = tmp_path / "grey.png"
    Image.new("RGB", (40, 30), (90, 120, 40)).save(picture)
    with pytest.raises(FileNotFoundError, match="cannot find acme/none: there is no such repository"):
        push_space("acme/none", "acme/page", token=SECRET)
    HfApi().create_repo("acme/other", exist_ok=True, token=SECRET)
    with pytest.raises(ValueError, match=r"acme/other has no stitches\.json"):
        push_space("acme/other", "acme/page", token=SECRET)
    fault("POST .*/commit/", 403)
    with pytest.raises(PermissionError, match=r"cannot push to acme/page: the token may not do that .*nothing was"):
        push_space(repo, "acme/page", token=SECRET)
    ask("/_reset", {})
    for _ in range(2):  # and again over what is there
        assert push_space(repo, "acme/page", examples=[picture], token=SECRET) == f"{SERVER}/spaces/acme/page"
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
