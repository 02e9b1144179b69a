"""Predictions for images in files and for texts, as `timm-stitch predict` prints them."""

from __future__ import annotations

import io
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.data.readers.img_extensions import get_img_extensions

from ..data.images import read_image
from ..families.registry import family_of, require
from ..families.timm_models.network import SNNet
from ..files import whole_file
from ..network.modes import evaluating
from ..network.stitchable import StitchableNetwork
from .maps import MapPredictor
from .serving.network import ServedNetwork

Prediction = dict[str, Any]


def find_images(paths: Sequence[str]) -> list[str]:
    """List the files of images, those in folders included; `-` is the image on stdin.

    Raises:
        OSError: if there is no such file, or a folder has no image.
    """
    files: list[str] = []
    for path in paths:
        if path != "-" and not os.path.exists(path):
            raise FileNotFoundError(f"there is no image {path!r}: expected files, folders, or - for stdin.")
        if not os.path.isdir(path):
            files.append(path)
            continue
        endings = get_img_extensions(as_set=True)
        inside = sorted(str(file) for file in Path(path).rglob("*") if file.suffix.lower() in endings)
        if not inside:
            raise FileNotFoundError(f"there is no image in the folder {path!r}: expected {', '.join(sorted(endings))}.")
        files += inside
    return files


def predict_images(model: SNNet, files: Sequence[str], *, top: int = 5, batch_size: int = 64) -> Iterator[Prediction]:
    """Predict the classes of images by the stitch that is set.

    Args:
        model: a classifier.
        files: the files of the images; `-` is stdin.
        top: the number of classes to give, likeliest first.
        batch_size: the number of images in a call.

    Yields:
        For each file a dict of `input`, `stitch_id` and `top`, a list of `class`, `label` and `probability`.

    Raises:
        ValueError: if the network does not classify images, or one cannot be read.
    """
    served = ServedNetwork.of(require(model, "serve"))
    device = next(model.parameters()).device
    remaining = iter(files)
    with evaluating(model), torch.inference_mode():
        while batch := list(islice(remaining, batch_size)):
            images = [served.transform(_open(file, served.mode)) for file in batch]
            chances = model(torch.stack(images).to(device)).float().softmax(-1).cpu()
            values, classes = chances.topk(min(top, chances.shape[-1]))
            for file, row, numbers in zip(batch, values.tolist(), classes.tolist(), strict=True):
                likeliest = [
                    {"class": number, "label": served.labels[number], "probability": value}
                    for number, value in zip(numbers, row, strict=True)
                ]
                yield {"input": file, "stitch_id": model.stitch_id, "top": likeliest}


def predict_maps(
    model: Any, files: Sequence[str], folder: str, *, top: int = 5, short_side: int | None = None, npy: bool = False
) -> Iterator[Prediction]:
    """Predict masks or depths of images by the stitch that is set, and write each to a file.

    Args:
        model: a dense network.
        files: the files of the images; `-` is stdin.
        folder: the folder of the masks and depths, each under its image's name.
        top: the number of classes to give, largest share of the pixels first.
        short_side: the shorter side to which images are resized; default their own, or what the network takes.
        npy: whether to write arrays of numpy instead of PNG: class numbers, or depths in metres.

    Yields:
        For each file a dict of `input`, `stitch_id`, `output` (the file) and `classes`, a list of `class`, `label` and
        `share`, or `depth`, its `min`, `median` and `max` in metres.

    Raises:
        ValueError: if two outputs would have one name, or an image cannot be read or is too large.
        OSError: if a file cannot be written.
    """
    predictor = MapPredictor.of(model, "predict takes", short_side)
    outputs = [
        Path(folder, f"{'stdin' if file == '-' else Path(file).stem}.{'npy' if npy else 'png'}") for file in files
    ]
    twice = next((str(path) for path, count in Counter(outputs).items() if count > 1), None)
    if twice:
        raise ValueError(f"several images would be written to {twice!r}: predict them one folder at a time.")
    inputs = {os.path.realpath(file) for file in files}
    over = next((str(path) for path in outputs if os.path.realpath(path) in inputs), None)
    if over:
        raise ValueError(f"{over!r} is one of the images: give another --output.")
    for file, output in zip(files, outputs, strict=True):
        values = predictor.predict(_open(file, predictor.mode), name=repr(file))
        output.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(output) as temporary:
            if npy:
                with temporary.open("wb") as opened:
                    np.save(opened, values)
            else:
                temporary.write_bytes(predictor.png(values))
        yield {
            "input": file,
            "stitch_id": model.stitch_id,
            "output": str(output),
            **predictor.describe(values, top),
        }


def _open(file: str, mode: str) -> Any:
    return read_image(io.BytesIO(sys.stdin.buffer.read()), mode, "stdin") if file == "-" else read_image(file, mode)


def find_texts(arguments: Sequence[str]) -> list[str]:
    """List the texts that arguments stand for: themselves, the lines of a file, or with `-` the lines of stdin."""
    texts: list[str] = []
    for argument in arguments:
        if argument == "-":
            texts += sys.stdin.read().splitlines()
        elif os.path.isfile(argument):
            texts += Path(argument).read_text(encoding="utf-8").splitlines()
        else:
            texts.append(argument)
    return [text for text in texts if text.strip()]


def predict_texts(model: StitchableNetwork, texts: Sequence[str], *, top: int = 5) -> Iterator[Prediction]:
    """Predict for texts by the stitch that is set.

    Args:
        model: a network of transformers' models, with its tokenizer.
        texts: the texts.
        top: the number of classes or words to give, likeliest first.

    Yields:
        For each text a dict of `input`, `stitch_id`, and `top` (of `label` and `probability`) or `output`, a text.

    Raises:
        ValueError: if the network has no tokenizer, or its task takes more than a text.
    """
    predict = family_of(model).text_predictor(model, top)
    with evaluating(model):
        for text in texts:
            yield {"input": text, "stitch_id": model.stitch_id, **predict(text)}
