"""Fixtures of many tests: three DeiTs of six blocks on 32-pixel images, stitched."""

import loopback  # noqa: F401 I001 before huggingface_hub

import pytest
import tiny

import timm_stitch


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
