"""What a stranger's network of transformers' models may ask for: plain fields, in files of its own folder."""

import json
import os
import shutil

import pytest
import torch

hf = pytest.importorskip("transformers", minversion="5.20")

from safetensors.torch import load_file, save_file  # noqa: E402
from tiny import bert, hf_vit, llama  # noqa: E402

import timm_stitch  # noqa: E402
import timm_stitch.text  # noqa: E402
from timm_stitch.families.transformers_models import loading_checks, saved_fields  # noqa: E402
from timm_stitch.families.transformers_models.tasks import ALL  # noqa: E402

MAKERS = {"bert": bert, "llama": llama, "vit": hf_vit}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    for name, make in MAKERS.items():
        network = timm_stitch.stitch([make(32, 3), make(48, 3)])
        timm_stitch.save_pretrained(network, folder / name)
        (folder / name / "stitches.json").unlink()  # with it an edited configuration is refused as such
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    def copy(name):
        return shutil.copytree(saved / name, tmp_path / "outer" / name)

    return copy


def edit(folder, change):
    file = folder / "config.json"
    config = json.loads(file.read_text())
    change(config)
    file.write_text(json.dumps(config))


def by_auto_class(folder):
    return {"bert": hf.AutoModelForSequenceClassification, "llama": hf.AutoModelForCausalLM}.get(
        folder.name, hf.AutoModelForImageClassification
    ).from_pretrained(folder)


DOORS = {
    "from_hub": timm_stitch.from_hub,
    "extract": lambda folder: timm_stitch.from_hub(folder, extract=1),
    "auto": by_auto_class,
}
doors = pytest.mark.parametrize("door", DOORS.values(), ids=DOORS)


def own(**fields):
    return lambda config: config.update(fields)


def anchor(**fields):
    return lambda config: config["anchors"][0].update(fields)


def wrapped(architecture, **fields):
    values = {"model_type": "timm_wrapper", "num_classes": 3, "architecture": architecture, **fields}
    return lambda config: config.update(anchors=[values] * 2, classes=["TimmWrapperForImageClassification"] * 2)


ASKS_FOR_MORE = {
    "an address": ("vit", wrapped("hf-hub:acme/evil"), "wraps 'hf-hub:acme/evil', which is no model"),
    "a folder": ("vit", wrapped("local-dir:/etc"), "wraps 'local-dir:/etc', which is no model"),
    "our network": ("vit", wrapped("snnet"), "wraps 'snnet', which is no model"),
    "weights by timm": ("vit", wrapped("resnet18", model_args={"pretrained": True}), r"model_args.*\(pretrained\)"),
    "a file by timm": (
        "vit",
        wrapped("resnet18", model_args={"checkpoint_path": "/etc/passwd"}),
        r"model_args.*\(checkpoint_path\)",
    ),
    "a text in a size": ("vit", wrapped("resnet18", model_args={"width": "/etc"}), "model_args"),
    "timm's configuration": ("vit", wrapped("resnet18", pretrained_cfg={"file": "/etc"}), "has pretrained_cfg, which"),
    "a wrapper inside": (
        "llama",
        anchor(text_config={"model_type": "timm_wrapper", "architecture": "hf-hub:acme/evil"}),
        "text_config",
    ),
    "code inside": ("llama", anchor(rope_parameters={"auto_map": {"A": "b.c"}}), r"run other code \(auto_map\)"),
    "a path inside": (
        "llama",
        anchor(rope_parameters={"rope_type": "/etc/passwd"}),
        "rope_parameters.* expected a word",
    ),
    "a path": ("llama", anchor(hidden_act="../act"), "hidden_act is '../act': expected a word"),
    "an address of its own": ("llama", own(note="http://a.example"), "note is 'http://a.example': expected a word"),
    "other files": ("llama", own(configuration_files=["config.1.json"]), r"read other files.*configuration_files"),
    "a method": ("llama", own(validate=1), "has validate, which is no field"),
    "a property": ("llama", own(sub_configs={}), "has sub_configs, which is no field"),
    "a dtype": ("llama", anchor(dtype="load"), "has dtype='load'"),
    "labels": ("llama", own(id2label={"x": "a"}), "id2label is not one short name for each"),
    "deep values": ("llama", anchor(rope_parameters=eval("{'a':" * 20 + "1" + "}" * 20)), "too deep"),
    "an object in an undeclared field": ("bert", anchor(pooler={"a": 1}), "pooler"),
}


@doors
@pytest.mark.parametrize("what", ASKS_FOR_MORE)
def test_fields_that_are_not_plain_values_of_their_type_are_refused(folder, what, door):
    name, change, message = ASKS_FOR_MORE[what]
    if what == "other files" and door is by_auto_class:
        pytest.skip("transformers looks for those before it calls this package")
    path = folder(name)
    edit(path, change)
    with pytest.raises(ValueError, match=f"^[^\n]*{message}[^\n]*$"):
        door(path)


DAMAGED = {
    "an activation": anchor(hidden_act="x"),
    "a type": anchor(attention_bias=512),
    "no heads": anchor(head_dim=0, num_attention_heads=0),
    "anchors": own(anchors={}),
    "a negative size": anchor(vocab_size=-5),
    "rope": anchor(rope_parameters={"rope_type": "longrope", "rope_theta": 1e4, "factor": 8}),
}


@doors
@pytest.mark.parametrize("what", DAMAGED)
def test_damage_is_one_line(folder, what, door):
    path = folder("llama")
    edit(path, DAMAGED[what])
    with pytest.raises((ValueError, OSError), match=r"^[^\n]+$"):
        door(path)


@pytest.mark.parametrize("door", [DOORS["from_hub"], DOORS["extract"]], ids=["from_hub", "extract"])
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1]", "holds a list, expected an object"),
        ("[" * 100_000, "is not readable JSON"),
        ('{"validate": 1}', "has validate, which is no setting"),
        ('{"compile_config": {"backend": "x"}}', r"run other code \(compile_config\)"),
        ('{"cache_implementation": "/etc"}', r"cache_implementation"),
        ('{"watermarking_config": {"x": 1}}', "cannot be used"),
    ],
)
def test_settings_for_generating_are_plain_values(folder, door, text, message):
    path = folder("llama")
    (path / "generation_config.json").write_text(text)
    with pytest.raises(ValueError, match=f"^[^\n]*{message}[^\n]*$"):
        door(path)


@doors
@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("vit", {"image_size": 1 << 14}, "image"),
        ("vit", {"image_size": 1024}, "of another shape|have another shape|its weights file could fill"),
        ("bert", {"max_position_embeddings": 1 << 20}, "have another shape"),
        ("bert", {"max_position_embeddings": 1 << 38}, "asks? for more than"),
        ("llama", {"num_labels": 1 << 20}, "names of 2?1?,?0?[0-9,]+ classes"),
    ],
)
def test_weights_of_other_shapes_are_refused_before_memory_is_taken(folder, monkeypatch, door, name, fields, message):
    path = folder(name)
    edit(path, lambda config: [values.update(fields) for values in config["anchors"]])
    shape = {"labels": lambda config: config.update(id2label=None, label2id=None, num_labels=fields["num_labels"])}
    if "num_labels" in fields:
        edit(path, shape["labels"])
    monkeypatch.setattr(torch.nn.init, "normal_", lambda tensor, *_, **__: tensor if tensor.is_meta else 1 / 0)
    with pytest.raises(ValueError, match=message):
        door(path)


def test_tables_that_a_model_computes_are_bounded(folder, monkeypatch):
    path = folder("llama")
    monkeypatch.setattr(loading_checks, "_SPARE_BYTES", -(1 << 40))
    with pytest.raises(ValueError, match=r"^[^\n]*computes tables of [\d,]+ bytes"):
        timm_stitch.from_hub(path)


@doors
@pytest.mark.parametrize("name", ["model.safetensors", "generation_config.json", "adapter_config.json"])
def test_links_out_of_the_folder_are_refused(folder, tmp_path, door, name):
    path = folder("llama")
    file = path / name
    if file.exists():
        file.rename(tmp_path / name)
    else:
        (tmp_path / name).write_text("{}")
    file.symlink_to(tmp_path / name)
    if name == "adapter_config.json" and door is DOORS["extract"]:
        return  # which reads no adapter
    with pytest.raises((ValueError, OSError), match=f"{name}.* is a link to a file outside|has adapter_config"):
        door(path)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "generation_config.json"])
def test_what_is_no_ordinary_file_is_not_opened(folder, name):
    path = folder("llama")
    (path / name).unlink()
    os.mkfifo(path / name)
    with pytest.raises(OSError, match=r"is no ordinary file|there is no"):
        timm_stitch.from_hub(path)


def test_a_snapshot_links_to_its_blobs(saved, tmp_path):
    snapshot, blobs = tmp_path / "models--a--b" / "snapshots" / "c0ffee", tmp_path / "models--a--b" / "blobs"
    shutil.copytree(saved / "bert", snapshot)
    blobs.mkdir()
    for file in list(snapshot.iterdir()):
        file.rename(blobs / file.name)
        file.symlink_to(os.path.relpath(blobs / file.name, snapshot))
    assert timm_stitch.from_hub(snapshot).num_stitches == timm_stitch.from_hub(saved / "bert").num_stitches


def test_fields_that_only_the_code_of_a_type_reads_stay():
    config = hf.DebertaV2Config(position_buckets=8, share_att_key=True, norm_rel_ebd="layer_norm")
    kept = saved_fields.keep_known(type(config), config.to_dict() | {"evil": 1, "_name_or_path": "/x"})
    assert {"position_buckets", "share_att_key", "norm_rel_ebd"} <= kept.keys()
    assert not {"evil", "_name_or_path"} & kept.keys()


def test_configurations_of_all_types_that_have_tasks_are_plain():
    kinds = {kind for task in ALL for kind in hf.CONFIG_MAPPING if task.class_names(kind)}
    refused = []
    for kind in sorted(kinds - {"snnet", "timm_wrapper", "fast_vlm"}):
        try:
            values = hf.CONFIG_MAPPING[kind]().to_dict()
        except Exception:  # transformers cannot make some without arguments
            continue
        try:
            saved_fields.check_anchor(kind, saved_fields.keep_known(hf.CONFIG_MAPPING[kind], values))
        except ValueError as error:
            refused.append(str(error))
    # These have other models inside, by name, and two rows of layers: none can be an anchor.
    assert not [line for line in refused if "backbone" not in line and "lightglue" not in line], refused


def test_no_kernels_are_fetched_while_a_network_is_built(monkeypatch):
    from transformers.models.yoso import modeling_yoso

    fetched = []
    monkeypatch.setattr(modeling_yoso, "load_cuda_kernels", lambda: fetched.append(1))
    loader = modeling_yoso.load_cuda_kernels
    with loading_checks.without_kernels([modeling_yoso.YosoForMaskedLM]), pytest.raises(ImportError):
        modeling_yoso.load_cuda_kernels()
    assert modeling_yoso.load_cuda_kernels is loader
    assert not fetched


def test_weights_with_more_tensors_than_the_network_load_as_before(folder):
    path = folder("bert")
    weights = load_file(path / "model.safetensors")
    save_file({**weights, "unknown": torch.zeros(3)}, path / "model.safetensors", {"format": "pt"})
    timm_stitch.from_hub(path)
