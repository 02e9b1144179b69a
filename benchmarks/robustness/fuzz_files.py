"""The files that `fuzz.py` changes: good ones of each kind, random changes in them, and what reads them."""

from __future__ import annotations

import copy
import io
import json
import os
import pickle
import random
import shutil
import sys
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

import timm_stitch
import timm_stitch.text
from timm_stitch import cli
from timm_stitch.deployment.exporting import FORMATS
from timm_stitch.families.transformers_models.tasks import ALL
from timm_stitch.training.checkpointing import Checkpoints

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
from tiny import bert, hf_vit, llama

VIT = {"architecture": "vit_tiny_patch16_224", "num_heads": 2, "depth": 2, "img_size": 32, "patch_size": 8}
HOSTILE: list[Any] = [
    None, True, 0, -1, 1, 2**14, 2**20, 2**31, 10**18, -(10**18), 1e308, float("nan"), float("inf"), "", "a" * 5000,
    "a\nb", "../../x", "/etc/passwd", "http://127.0.0.1:9/x", "hf-hub:acme/net", "local-dir:/etc", "resnet18", "snnet",
    "__import__('os')", "timm_wrapper", "levit",
    [], [[]], {}, {"file": "/etc/passwd"}, {"architecture": "resnet18", "pretrained": True}, [1] * 5000, "\x00",
    "é" * 300, {"url": "http://127.0.0.1:9/x"}, {"__class__": "x"}, [None] * 3, "NaN", -0.0, 3.5,
    {"model_type": "timm_wrapper", "architecture": "hf-hub:acme/net"},
]  # fmt: skip
KEYS = [
    "pretrained", "checkpoint_path", "file", "url", "pretrained_cfg", "anchors", "depth", "embed_dim", "x\ny", "hub_id",
    "model_type", "architecture", "model_args", "auto_map", "quantization_config", "text_config", "attn_implementation",
    "hidden_act", "configuration_files", "num_labels", "image_size", "dtype", "to_dict", "sub_configs",
    "compile_config",
]  # fmt: skip
TOKENIZER_FILES = ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "special_tokens_map.json"]
TEMPLATES = [
    "{{ messages }}", "{% for i in range(10**9) %}x{% endfor %}", "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{% include '/etc/passwd' %}", "{{ 'x' * 10**10 }}", "{% for m in messages %}{{ m.content }}{% endfor %}",
    "{{ 1/0 }}",
]  # fmt: skip


class Bomb:
    """Runs a program when it is unpickled."""

    def __reduce__(self) -> Any:
        return os.system, ("touch /tmp/executed-by-a-pickle",)


@dataclass(frozen=True)
class Case:
    """A file to read.

    Args:
        kind: the kind of file.
        read: a function that reads it.
        ours: whether this package reads it, not timm or transformers by code of their own.
    """

    kind: str
    read: Callable[[], Any]
    ours: bool = True


def hostile(draw: random.Random) -> Any:
    """Draw a value that no file should have; a copy, so that a change stays in its own file."""
    return copy.deepcopy(draw.choice(HOSTILE))


def mutate(value: Any, draw: random.Random) -> Any:
    """Change a JSON value in one to three places."""
    value = json.loads(json.dumps(value))
    for _ in range(draw.randint(1, 3)):
        holder, key, here = None, None, value
        while isinstance(here, (dict, list)) and here and draw.random() < 0.8:
            holder, key = here, draw.choice(list(here) if isinstance(here, dict) else range(len(here)))
            here = holder[key]
        change = draw.random()
        if holder is None:
            value = hostile(draw) if change < 0.1 else value
        elif change < 0.6:
            holder[key] = hostile(draw)
        elif change < 0.75:
            del holder[key]
        elif change < 0.9 and isinstance(holder, dict):
            holder[draw.choice(KEYS)] = hostile(draw)
        elif isinstance(holder, list):
            holder.extend([here] * draw.choice([1, 3, 2000]))
        else:
            holder[key] = [here]
    return value


def damage(raw: bytes, draw: random.Random) -> bytes:
    """Cut, flip, double or replace bytes."""
    data = bytearray(raw)
    for _ in range(draw.randint(1, 4)):
        at = draw.randrange(min(len(data), 4096)) if data else 0
        how = draw.randrange(5)
        if how == 0:
            del data[at:]
        elif how == 1 and data:
            data[at] = draw.randrange(256)
        elif how == 2:
            data[at:at] = draw.randbytes(draw.randint(1, 64))
        elif how == 3:
            data[at : at + 8] = draw.choice([0, 2**63 - 1, 10**9, 2**32]).to_bytes(8, "little")
        else:
            data[at:at] = b"[" * draw.choice([1, 100_000])
    return bytes(data)


def encode(value: Any, draw: random.Random) -> bytes:
    """Write a value as JSON, and sometimes damage it."""
    raw = json.dumps(value).encode(errors="replace")
    return damage(raw, draw) if draw.random() < 0.25 else raw


def make_good_files(folder: Path) -> None:
    """Write the files that are changed, and read each once, so that what they need is imported."""
    torch.manual_seed(0)
    vits = timm.create_model("snnet", anchors=[{**VIT, "embed_dim": w, "num_classes": 10} for w in (32, 64)])
    timm_stitch.save_pretrained(vits, folder / "images", results=[{"stitch_id": 0, "top1": 50.0}])
    for name, more in (("segmentation", {"num_classes": 5}), ("depth", {"task": "depth"})):
        dense = timm_stitch.dense(vits, head="dpt" if name == "depth" else "linear", levels=2, **more)
        timm_stitch.save_pretrained(dense, folder / name)
        timm_stitch.from_hub(folder / name, extract=1)
    words = Tokenizer(models.WordLevel({"[PAD]": 0, "[UNK]": 1, "a": 5, "b": 6}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]")
    tokenizer.chat_template = TEMPLATES[0]
    for name, make in (("bert", bert), ("llama", llama), ("vit", hf_vit)):
        anchors = [make(width) for width in (32, 64)]
        network = timm_stitch.stitch(anchors, tokenizers=[] if name == "vit" else [tokenizer] * 2)
        timm_stitch.save_pretrained(network, folder / name)
        timm_stitch.from_hub(folder / name, extract=1)
    timm_stitch.export(vits, folder / "exported", stitch_ids=[0, 1], format="program")
    (folder / "checkpoints").mkdir()
    Checkpoints(folder / "checkpoints").save(3, {"model": {"x": torch.zeros(9)}, "config": {"epochs": 2}})
    transformers.AutoModelForImageClassification.from_pretrained(folder / "images")
    transformers.AutoTokenizer.from_pretrained(folder / "llama")
    timm_stitch.from_hub(folder / "images", extract=1)
    timm.create_model("snnet_levit_192_256", device="meta")


# ── kinds of files: each writes one into a folder and returns what reads it ──────────────────────────


def _door(folder: Path, draw: random.Random, with_timm: bool) -> tuple[Callable[[], Any], bool]:
    """Draw what reads the network of a folder, and whether it is ours."""
    auto = "AutoModelForImageClassification"
    is_dense = not with_timm and "dense" in json.loads((folder / "config.json").read_text())
    if not with_timm and not is_dense:
        task = str(json.loads((folder / "config.json").read_text())["architectures"][0]).removeprefix("SNNet")
        auto = next(t.auto.__name__ for t in ALL if t.name == task)
    own: list[Callable[[Path], Any]] = [
        timm_stitch.from_hub,
        lambda folder: timm_stitch.from_hub(folder, extract=1),
        lambda folder: timm_stitch.from_hub(folder, verify=False),
    ]
    others = [] if is_dense else [getattr(transformers, auto).from_pretrained]
    others += [lambda folder: timm.create_model(f"local-dir:{folder}", pretrained=True)] if with_timm else []
    door = draw.choice([*own, *others])
    return lambda: door(folder), door in own


def _network_file(good: Path, folder: Path, draw: random.Random, kind: str, file: str) -> Case:
    """A network with one of its JSON files changed; sometimes without the checksums, so that what it asks is built."""
    with_timm = good.name == "images"
    shutil.copytree(good, folder, dirs_exist_ok=True)
    read, ours = _door(folder, draw, with_timm)
    content = json.loads((folder / file).read_text())
    if file == "config.json" and "architectures" in content and not with_timm and draw.random() < 0.3:
        task = next(t for t in ALL if f"SNNet{t.name}" == content["architectures"][0])
        names = {n: task.class_names(n) for n in transformers.CONFIG_MAPPING if task.class_names(n)}
        model_type = draw.choice(sorted(names))
        labels = content["anchors"][0].get("id2label")
        content["anchors"] = [{"model_type": model_type, "id2label": labels}] * 2
        content["classes"] = [names[model_type][0]] * 2
    (folder / file).write_bytes(encode(mutate(content, draw), draw))
    if file != "stitches.json" and draw.random() < 0.5:
        (folder / "stitches.json").unlink()
    return Case(kind, read, ours)


def _config(good: Path, folder: Path, draw: random.Random) -> Case:
    return _network_file(good / "images", folder, draw, "config", "config.json")


def _dense(good: Path, folder: Path, draw: random.Random) -> Case:
    return _network_file(good / draw.choice(["segmentation", "depth"]), folder, draw, "dense config", "config.json")


def _text_config(good: Path, folder: Path, draw: random.Random) -> Case:
    return _network_file(good / draw.choice(["bert", "llama", "vit"]), folder, draw, "text config", "config.json")


def _rows_of_network(good: Path, folder: Path, draw: random.Random) -> Case:
    name = draw.choice(["images", "bert"])
    return _network_file(good / name, folder, draw, "rows of a network", "stitches.json")


def _generation(good: Path, folder: Path, draw: random.Random) -> Case:
    return _network_file(good / "llama", folder, draw, "generation settings", "generation_config.json")


def _weights(good: Path, folder: Path, draw: random.Random) -> Case:
    name = draw.choice(["images", "llama"])
    shutil.copytree(good / name, folder, dirs_exist_ok=True)
    raw = (folder / "model.safetensors").read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = encode(mutate(json.loads(raw[8 : 8 + length]), draw), draw)
    raw = len(header).to_bytes(8, "little") + header + raw[8 + length :]
    (folder / "model.safetensors").write_bytes(damage(raw, draw) if draw.random() < 0.5 else raw)
    return Case("weights", *_door(folder, draw, name == "images"))


def _links(good: Path, folder: Path, draw: random.Random) -> Case:
    """A network whose files are links out of the folder, or no files."""
    shutil.copytree(good / "llama", folder, dirs_exist_ok=True)
    names = ["config.json", "model.safetensors", "stitches.json", "generation_config.json", "adapter_config.json"]
    file, how = folder / draw.choice(names), draw.randrange(4)
    outside = folder.parent.parent / "outside"
    file.unlink(missing_ok=True)
    if how == 0:
        file.symlink_to(outside / "good" / "llama" / file.name)
    elif how == 1:
        file.symlink_to(file.name)
    elif how == 2:
        os.mkfifo(file)
    else:
        file.mkdir()
    door = draw.choice([timm_stitch.from_hub, lambda folder: timm_stitch.from_hub(folder, extract=1)])
    return Case("links", lambda: door(folder))


def _tokenizer(good: Path, folder: Path, draw: random.Random) -> Case:
    """Files of a tokenizer, which transformers reads by code of its own."""
    shutil.copytree(good / "llama", folder, dirs_exist_ok=True)
    file = folder / draw.choice(TOKENIZER_FILES)
    if file.suffix == ".jinja":
        file.write_text(draw.choice(TEMPLATES))
    else:
        file.write_bytes(encode(mutate(json.loads(file.read_text()) if file.exists() else {}, draw), draw))

    def read() -> None:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        tokenizer("a b a")
        timm_stitch.from_hub(folder)

    return Case("tokenizer", read, ours=False)


def _authors(good: Path, folder: Path, draw: random.Random) -> Case:
    names = ["stitch_layers.0.weight", "anchors.0.blocks.0.norm1.weight", "model", "x", "a\nb"]
    values = [torch.zeros(3), torch.zeros(2, 2), *HOSTILE[:12], Bomb(), {"a": Bomb()}]
    content: Any = {draw.choice(names): draw.choice(values) for _ in range(draw.randint(0, 4))}
    content = {"model": content} if draw.random() < 0.5 else content
    file, stream = folder / "theirs.pth", io.BytesIO()
    torch.save(content, stream)
    raw = pickle.dumps(content) if draw.random() < 0.2 else stream.getvalue()
    file.write_bytes(damage(raw, draw) if draw.random() < 0.4 else raw)
    return Case("authors", lambda: timm_stitch.convert_checkpoint(file, "snnet_levit_192_256"))


def _checkpoint(good: Path, folder: Path, draw: random.Random) -> Case:
    """A checkpoint of a run, damaged or of a stranger, with a sum over its bytes or without."""
    shutil.copytree(good / "checkpoints", folder, dirs_exist_ok=True)
    file = next(folder.glob("step-*.pt"))
    raw = file.read_bytes()
    if draw.random() < 0.5:
        stream = io.BytesIO()
        torch.save(draw.choice([Bomb(), {"format": 1, "x": Bomb()}, [1], {"format": hostile(draw)}, {}]), stream)
        raw = stream.getvalue()
    raw = damage(raw, draw) if draw.random() < 0.7 else raw
    if draw.random() < 0.5:
        raw += f"\ntimm-stitch size={len(raw):016d} crc32={zlib.crc32(raw):08x}\n".encode()
    file.write_bytes(raw)
    return Case("checkpoint", Checkpoints(folder).load)


def _manifest(good: Path, folder: Path, draw: random.Random) -> Case:
    """The manifest of an export, by whose rows the files of stitches are found."""
    shutil.copytree(good / "exported", folder, dirs_exist_ok=True)
    rows = json.loads((folder / "manifest.json").read_text())["stitches"]
    row = mutate(draw.choice(rows), draw)
    if draw.random() < 0.5 and isinstance(row, dict):
        row["file"] = draw.choice(
            ["/etc/passwd", "../good/exported/stitch-0.pt2", "", hostile(draw), "weights.safetensors"]
        )
    return Case("manifest", lambda: FORMATS["program"].load(folder, row))


def _recipe(good: Path, folder: Path, draw: random.Random) -> Case:
    base = {
        "network": str(good / "images"),
        "data_dir": str(folder / "none"),
        "output": str(folder / "out"),
        "epochs": 1,
    }
    file = folder / "recipe.yaml"
    file.write_bytes(encode(mutate(base, draw), draw))
    return Case("recipe", lambda: cli.main(["train", str(file)]))


def _rows(good: Path, folder: Path, draw: random.Random) -> Case:
    rows = [{"stitch_id": k, "top1": 50.0 + k, "macs": 10**6 * (k + 1)} for k in range(3)]
    file = folder / "rows.jsonl"
    file.write_bytes(b"\n".join(encode(mutate(row, draw), draw) for row in rows))
    return Case("rows", lambda: cli.main(["frontier", str(file)]))


KINDS: dict[str, Callable[[Path, Path, random.Random], Case]] = {
    "config": _config, "dense": _dense, "text-config": _text_config, "rows-of-network": _rows_of_network,
    "generation": _generation, "weights": _weights, "links": _links, "tokenizer": _tokenizer, "authors": _authors,
    "checkpoint": _checkpoint, "manifest": _manifest, "recipe": _recipe, "rows": _rows,
}  # fmt: skip
