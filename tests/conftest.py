"""Fixtures of many tests: three DeiTs of six blocks on 32-pixel images, stitched."""

import loopback  # noqa: I001 before huggingface_hub

import pytest
import tiny
from huggingface_hub import constants

import timm_stitch


@pytest.fixture(scope="session")
def server():
    """A Hub on loopback, for tests that begin with `server.begin`."""
    assert constants.ENDPOINT == loopback.ENDPOINT, "huggingface_hub was imported before tests/loopback.py"
    hub = loopback.Hub()
    yield hub
    hub.stop()


@pytest.fixture(autouse=True)
def unlimited_width(monkeypatch):
    """Tables in their full width, wherever the tests run."""
    monkeypatch.delenv("COLUMNS", raising=False)


@pytest.fixture
def anchors():
    return tiny.deits()


@pytest.fixture
def model(anchors):
    return timm_stitch.stitch(anchors).eval()


@pytest.fixture
def images():
    return tiny.images(6)


small_anchors, anchor_specs = tiny.deits, tiny.deit_specs  # the names that scripts outside the tests know them by
