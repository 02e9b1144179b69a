"""A Hub on loopback with one network: each test begins with what `repo` pushed, and with an empty cache."""

import copy
import time

import pytest
import timm
import torch
from huggingface_hub import constants
from loopback import SECRET
from tiny import deit_specs

import timm_stitch


@pytest.fixture
def storage():
    """Where the Hub keeps large files: `lfs`, `regular` (with the small ones) or `xet`."""
    return "lfs"


@pytest.fixture(autouse=True)
def hub(server, storage, monkeypatch, tmp_path, caplog, capsys):
    server.begin(storage)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", storage != "xet")
    monkeypatch.setenv("HF_HOME", str(tmp_path))  # for other processes
    yield server
    assert SECRET not in caplog.text
    assert not any(SECRET in text for text in capsys.readouterr())


@pytest.fixture(scope="session")
def images():
    return torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="session")
def evaluated(images):
    torch.manual_seed(0)
    model = timm.create_model("snnet", anchors=deit_specs()).eval()
    return model, timm_stitch.evaluate(model, [(images, torch.arange(8) % 10)])


@pytest.fixture
def model(evaluated):
    return copy.deepcopy(evaluated[0])


@pytest.fixture
def rows(evaluated):
    return copy.deepcopy(evaluated[1])


@pytest.fixture
def repo(hub, storage, model, rows):
    if storage not in hub.saved:
        timm_stitch.push_to_hub(model, "acme/net", results=rows, dataset="acme/squares", split="test", token=SECRET)
        hub.save(storage)
        hub.reset()
    return "acme/net"
