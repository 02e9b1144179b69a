"""What a push does to a repository on the Hub, and what it says when it fails."""

import errno
import json
import os
from pathlib import Path

import pytest
import timm
import torch
from huggingface_hub import HfApi, hf_hub_download
from loopback import SECRET
from safetensors.torch import save_file
from tiny import deit_specs

import timm_stitch
from timm_stitch import cli
from timm_stitch.hub.push import list_hub

# huggingface_hub hands httpx its uploads in a way that warns.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def head(repo_id="acme/net"):
    """Return the newest commit."""
    return HfApi().model_info(repo_id).sha


def test_the_hub_lists_networks_by_their_tag(repo, capsys, hub):
    HfApi().create_repo("acme/other", exist_ok=True, token=SECRET)
    assert [row["repo_id"] for row in list_hub()] == [repo]
    assert cli.main(["list", "--hub", "net", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["repo_id"] == repo
    assert cli.main(["list", "--hub", "nothing-like-this"]) == 0
    assert capsys.readouterr().out == "there is no such network on the Hub.\n"
    hub.fault("GET /api/models", 500)
    assert cli.main(["list", "--hub"]) == 1
    assert capsys.readouterr().err.startswith("error: ")


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
    other = timm.create_model("snnet", anchors=deit_specs())
    other.anchors[0].blocks[0].mlp = torch.nn.Identity()
    return other


def no_room(*args, **kwargs):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_pushes_go_to_branches_pull_requests_and_private_repositories(model, repo, hub):
    before = head()
    url = timm_stitch.push_to_hub(model, repo, revision="next", commit_message="try", token=SECRET, license="mit")
    assert "/commit/" in url
    assert head() == before
    assert HfApi().model_info(repo, revision="next").sha != before
    assert timm_stitch.from_hub(repo, revision="next").num_stitches == 35
    assert "/discussions/" in timm_stitch.push_to_hub(model, repo, create_pr=True, token=SECRET, license="bsd")
    assert head() == before
    timm_stitch.push_to_hub(model, "acme/mine", private=True, token=SECRET)
    with pytest.raises(PermissionError, match="cannot load acme/mine: the Hub does not know the user"):
        timm_stitch.from_hub("acme/mine", token=False)
    assert timm_stitch.from_hub("acme/mine", token=SECRET).num_stitches == 35
    assert timm_stitch.from_hub("acme/mine", token=SECRET, extract=3, cache_dir=os.environ["HF_HOME"]).num_stitches == 1
    other_host = [e for e in hub.log() if "_lfs" in e["request"] and e["request"].startswith("GET") and e["auth"]]
    assert not other_host  # the token goes to the Hub only


@pytest.mark.parametrize(
    ("on", "do", "error", "message"),
    [
        ("commit/main", 401, PermissionError, "the Hub does not know the user"),
        ("commit/main", 403, PermissionError, r"the token may not do that \(403\); nothing was committed. Give"),
        ("commit/main", 429, ConnectionError, r"there were too many requests \(429\); nothing was committed. Wait"),
        ("commit/main", 500, ConnectionError, "the Hub answered 500; nothing was committed. Try again later"),
        ("commit/main", 507, OSError, r"the storage on the Hub is full \(507\); nothing was committed"),
        ("commit/main", 412, OSError, "there is a newer commit .*Push again"),
        ("POST .*(preupload|batch)", 500, ConnectionError, "the Hub answered 500; nothing was committed"),
        ("(PUT|commit/main)", "drop", ConnectionError, "the connection failed .*nothing was committed"),
    ],
)
def test_a_push_that_fails_leaves_the_repository_as_it_was(model, repo, on, do, error, message, hub):
    torch.manual_seed(1)
    other = timm.create_model("snnet", anchors=deit_specs())
    before = head()
    hub.fault(on, do)
    with pytest.raises(error, match=message) as caught:
        timm_stitch.push_to_hub(other, repo, token=SECRET)
    hub.reset()
    assert head() == before
    assert "\n" not in str(caught.value)
    assert SECRET not in str(caught.value)


def test_a_push_whose_answer_is_lost_says_that_it_may_have_arrived(model, repo, hub):
    hub.fault("commit/main", "lost", times=1)
    with pytest.raises(ConnectionError, match="there is a new commit, perhaps this one: look before pushing again"):
        timm_stitch.push_to_hub(model, repo, token=SECRET, license="mit")
    hub.fault("api/repos/create", 403)
    with pytest.raises(PermissionError, match="cannot push to acme/forbidden: the token may not do that"):
        timm_stitch.push_to_hub(model, "acme/forbidden", token=SECRET)


def test_a_network_pushed_by_timm_loads(model, images):
    timm.models.push_to_hf_hub(model, "acme/by-timm", token=SECRET, safe_serialization=True)
    again = timm.create_model("hf-hub:acme/by-timm", pretrained=True).eval()
    assert torch.equal(again(images), model(images))
    assert torch.equal(timm_stitch.from_hub("acme/by-timm", extract=9)(images), model(images, stitch_id=9))
