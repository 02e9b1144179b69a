"""Predictions for images in files and for texts, as `timm-stitch predict` prints them."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from timm.data.readers.img_extensions import get_img_extensions

from ..data.images import read_image
from ..families.registry import family_of, require
from ..families.timm_models.network import SNNet
from ..network.modes import evaluating
from ..network.stitchable import StitchableNetwork
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
