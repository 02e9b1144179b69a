"""Stitches in 8 bits behind a server: calibrated on images given, measured on others, and off by default."""

import importlib
import importlib.util
import time

import numpy as np
import pytest
import torch
from PIL import Image
from served_network import known
from tiny import deits, resnets

import timm_stitch
from timm_stitch.cli.entry import main
from timm_stitch.deployment.exporting import copy_for_export
from timm_stitch.deployment.formats import onnx_files, onnx_int8
from timm_stitch.deployment.formats.job import Batch, Job
from timm_stitch.deployment.serving.backends import compiled
from timm_stitch.deployment.serving.backends.agreement import compared_images
from timm_stitch.deployment.serving.backends.calibration import calibrating_images, image_files, split_files
from timm_stitch.deployment.serving.backends.conversions import conversion_folder
from timm_stitch.deployment.serving.config import RequestOptions, ServingConfig
from timm_stitch.deployment.serving.deployments import arithmetic
from timm_stitch.deployment.serving.network import ServedNetwork
from timm_stitch.deployment.serving.service import InferenceService

HAS = {name: importlib.util.find_spec(name) is not None for name in ("openvino", "onnxruntime")}
ENGINES = [pytest.param(e, marks=pytest.mark.skipif(not HAS[e], reason=f"needs {e}")) for e in HAS]
needs_onnxruntime = pytest.mark.skipif(not HAS["onnxruntime"], reason="needs onnxruntime, which quantises")
pytestmark = pytest.mark.filterwarnings("default")  # an engine's own


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "int8-cache"))


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Forty images in two folders."""
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for number in range(40):
        path = folder / "ab"[number % 2] / f"{number:02}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)).resize((40, 40)).save(path)
    return str(folder)


def network():
    torch.manual_seed(0)
    return known(timm_stitch.stitch(deits()).eval())


def serve(model, folder, engine):
    """A service in 8 bits, when its engine is ready or has failed."""
    fixed = {"policy": "fixed", "stitch_id": 1}  # one stitch: conversions take seconds
    config = ServingConfig(3000.0, engine=engine, precision="int8", calibration=folder, **fixed)
    service = InferenceService(model, config)
    before = arithmetic(service.engine.deployment, 1)
    service._handover.thread.join(240)
    assert before == {"engine": "torch", "precision": "fp32"}
    return service


def ask(service, images):
    now, allowed = time.monotonic(), service.allowed_stitches(RequestOptions(stitch_id=1))
    return service.submit(images, now + 60, allowed, now).result(60).logits


@needs_onnxruntime
@pytest.mark.parametrize("engine", ENGINES)
def test_answers_in_8_bits_are_close_and_agreement_is_measured_on_other_images(photos, engine, caplog, monkeypatch):
    model = network()
    service = serve(model, photos, engine)
    deployment = service.engine.deployment
    assert (deployment.backend.engine, deployment.backend.precision) == (engine, "int8")
    assert ", int8, whole" in deployment.backend.name
    assert list(deployment.backend.ready) == [1]
    images = compared_images(deployment.network, service.config, 20)[0]
    with torch.inference_mode():
        expected = model(images, stitch_id=1)
    difference, spread = ask(service, images) - expected, expected - expected.mean(-1, keepdim=True)
    assert 1e-4 < difference.square().mean() / spread.square().mean() < compiled.BOUNDS["int8"] ** 2
    assert f"{engine} in int8 agrees with fp32: " in caplog.text
    assert f"on 20 images of {photos} that did not calibrate" in caplog.text
    facts = arithmetic(deployment, 1)
    assert facts == {"engine": engine, "precision": "int8", "agreement": deployment.agreement.each[1]}
    assert deployment.agreement.lowest > 0.7
    assert arithmetic(deployment, 5) == {"engine": "torch", "precision": "fp32"}  # not in the table
    service.close()
    caplog.clear()
    monkeypatch.setitem(compiled.BOUNDS, "int8", 1e-4)
    service = serve(model, photos, engine)
    assert service.engine.deployment.backend.engine == "torch"
    assert f"stitch 1 runs in torch: in {engine} its logits differ from torch's by" in caplog.text
    assert "of their spread, above 0.0001" in caplog.text
    service.close()


@needs_onnxruntime
def test_convolutions_are_quantised_with_what_follows_them(tmp_path):
    torch.manual_seed(0)
    model, images = timm_stitch.stitch(resnets()).eval(), torch.rand(2, 3, 224, 224)
    job = Job(copy_for_export(model, None), {0: model.extract(0)}, Batch(1), onnx_int8.WHOLE, images)
    location = onnx_files.write(job, tmp_path)[0]
    graph = importlib.import_module("onnx").load(tmp_path / location["file"], load_external_data=False).graph
    makers = {name: node.op_type for node in graph.node for name in node.output}
    kinds = [node.op_type for node in graph.node]
    assert kinds.count("Conv") > 10
    for node in graph.node:
        if node.op_type in ("Conv", "Add"):
            assert {makers[name] for name in node.input[:2]} == {"DequantizeLinear"}
    torch.testing.assert_close(
        onnx_files.load(tmp_path, location)(images), model(images, stitch_id=0), atol=0.1, rtol=0
    )


def test_conversions_are_kept_by_the_images_that_calibrate():
    model, images = network(), torch.rand(4, 3, 32, 32)
    other = images.clone()
    other[0, 0, 0, 0] += 1e-3
    pytest.importorskip("onnxruntime")
    folders = {conversion_folder(model, [0], "onnx", "whole", i) for i in (None, images, other, images)}
    assert len(folders) == 3


def test_images_that_calibrate_do_not_measure_if_there_are_enough(photos, tmp_path):
    files = image_files(photos)
    calibrating, measuring = split_files(files)
    assert (len(calibrating), len(measuring)) == (20, 20)
    assert not {*calibrating} & {*measuring}
    assert {file.parent.name for file in calibrating} == {file.parent.name for file in measuring} == {"a", "b"}
    assert split_files(files[:31]) == (files[:31], files[:31])
    for file in files[:3]:
        (tmp_path / file.name).write_bytes(file.read_bytes())
    described = ServedNetwork.of(network())
    config = ServingConfig(9.0, engine="openvino", precision="int8", calibration=str(tmp_path))
    few, source = compared_images(described, config, 9)
    assert torch.equal(few, calibrating_images(described, config))
    assert source == f"{tmp_path}, which also calibrated"


def test_int8_is_refused_where_nothing_computes_in_it(tmp_path, capsys):
    for engine in ("torch", "auto"):
        with pytest.raises(ValueError, match="precision int8 needs engine='openvino' or engine='onnxruntime', got"):
            ServingConfig(9.0, precision="int8", engine=engine, calibration="images")
    with pytest.raises(ValueError, match="precision int8 needs calibration: name a folder of images"):
        ServingConfig(9.0, precision="int8", engine="openvino")
    assert main(["serve", "net", "--latency-ms", "5", "--precision", "int8", "--calibration", "images"]) == 1
    error = capsys.readouterr().err
    assert "precision int8 needs engine" in error
    assert error.count("\n") == 1
    assert ServingConfig(9.0).precision == "fp32"


@needs_onnxruntime
def test_a_folder_without_images_is_refused_before_anything_is_served(tmp_path):
    config = ServingConfig(9.0, precision="int8", engine="onnxruntime", calibration=str(tmp_path))
    with pytest.raises(ValueError, match="there are no images in"):
        InferenceService(network(), config)
