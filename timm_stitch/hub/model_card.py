"""The model card of a saved network, rendered from `hub_cards/template.md` and the rows of stitches.json.

The package owns three blocks between comments, and the fields of the front matter that depend on results. All else
belongs to the user from the first push on, and later pushes keep it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
import yaml
from huggingface_hub import EvalResult, ModelCardData

from ..data.yaml_text import load_yaml
from ..families.registry import family_of_config
from ..plan.bounds import JsonObject
from ..plan.costs import short
from ..plan.frontier import pareto_frontier
from ..plan.metrics import main_score, metric_of
from ..plan.results import Row
from ..plan.stitch_plan import StitchPlan
from .card_files import card_file
from .errors import is_repo_id

TAG = "stitchable-neural-networks"  # by which networks are found on the Hub
TAGS = ("image-classification", "timm", "transformers", TAG)
MOST_CLASSES = 40  # that are named
_HUB_METRICS = {"top1": "accuracy", "miou": "mean_iou"}  # the Hub's names, where they differ
_NORM = {
    True: "Stitched paths end in the back anchor's final norm.",
    False: "Stitched paths skip the back anchor's final norm, as these weights were trained.",
    None: "The head reads the anchors' maps without their final norms.",
}
_BLOCK = r"<!-- timm_stitch {name}:.*?<!-- end of timm_stitch {name} -->"
_PLAIN = re.compile(r"(?:[\w ,./%()+=#-]|\[\d+:\d+\](?!\())*")  # names of stitches among them
_FRONT = re.compile(r"\A---\r?\n(.*?)\r?\n---[ \t]*(?:\r?\n|\Z)", re.DOTALL)


def render_card(
    stitches: JsonObject,
    config: JsonObject,
    *,
    repo_id: str | None = None,
    base_models: Sequence[str] = (),
    license: str | None = None,
    picture: bool = False,
    existing: str | None = None,
) -> str:
    """Render the card of a saved network.

    Args:
        stitches: the contents of `stitches.json`, or the `published_table` of the authors' network with its `plan`.
        config: the contents of `config.json`.
        repo_id: the repository `"user/name"`, if known.
        base_models: the Hub ids whose weights this network began with.
        license: the license of the weights, by the Hub's id; default that of the configuration.
        picture: whether there is a `curve.png`.
        existing: the present card, whose text by the user is kept.

    Raises:
        ValueError: if the front matter of the existing card is not YAML.
    """
    plan = StitchPlan.from_dict(stitches["plan"])
    base_models = [model for model in base_models if is_repo_id(model)]
    config = {"architecture": "snnet", "pretrained_cfg": {}, **config}
    name = (repo_id or config["architecture"]).rpartition("/")[2]
    environment = jinja2.Environment(trim_blocks=True, keep_trailing_newline=True, autoescape=False)
    environment.filters.update(big=short, cell=plain_text)
    text = environment.from_string(card_file("template.md").read_text(encoding="utf-8")).render(
        card_data=_front_matter(plan, stitches, config, name, base_models, license),
        model_name=name,
        repo_id=repo_id or "USER/" + name,
        picture=picture,
        base_models=[f"[{plain_text(name)}](https://huggingface.co/{name})" for name in base_models],
        anchors=_anchors(plan, base_models),
        **_result_fields(plan, stitches),
        **_network_fields(plan, stitches, config),
    )
    text = re.sub(r"\n{3,}", "\n\n", text)
    return merge(existing, text) if existing else text


def _evaluated(stitches: JsonObject) -> tuple[list[Row], str]:
    """Select the rows that have the main score; returns also its key."""
    score = main_score(stitches["stitches"])
    return [row for row in stitches["stitches"] if row.get(score) is not None], score


def _anchor_rows(plan: StitchPlan, rows: Sequence[Row]) -> list[Row]:
    """Select the rows of the anchors."""
    return [row for row in rows if plan[row["stitch_id"]].is_anchor]


def _front_matter(
    plan: StitchPlan,
    stitches: JsonObject,
    config: JsonObject,
    name: str,
    base_models: Sequence[str],
    license: str | None,
) -> str:
    """Make the front matter that the Hub reads, as YAML."""
    rows, score = _evaluated(stitches)
    shown = {row["stitch_id"] for row in [*pareto_frontier(rows, score=score), *_anchor_rows(plan, rows)]}
    family = family_of_config(config).card(config)
    pipeline = family.pipeline
    return ModelCardData(
        library_name=family.library,
        pipeline_tag=pipeline,
        tags=[pipeline, *(tag for tag in TAGS[1:] if tag != "transformers" or not family.output_shape)],
        license=license or family.license,
        datasets=sorted({str(row["dataset"]) for row in rows if row.get("dataset")}) or None,
        base_model=list(base_models) or None,
        model_name=name,
        eval_results=_eval_results(rows, shown, pipeline, score) or None,
    ).to_yaml()


def _result_fields(plan: StitchPlan, stitches: JsonObject) -> JsonObject:
    """Make the template's fields for the scores: their source, the frontier, and an example from its middle."""
    rows, score = _evaluated(stitches)
    frontier, metric = pareto_frontier(rows, score=score), metric_of(score)
    example = frontier[len(frontier) // 2] if frontier else {"stitch_id": plan.stitches[len(plan) // 2].stitch_id}
    source = [stitches[key] for key in ("source", "caveat", "note") if stitches.get(key)]
    return {
        "published": bool(source),
        "rows": rows,
        "score": score,
        "score_words": metric.words,
        "score_format": f"%.{metric.digits}f",
        "evaluated": len(rows),
        "frontier": frontier,
        "anchors_alone": _anchor_rows(plan, rows),
        "has_top5": all(isinstance(row.get("top5"), (int, float)) for row in frontier)
        and any(row["top5"] < 100 for row in frontier),  # of five classes or fewer all are among the first five
        "conditions": " ".join(map(plain_text, source)) or _conditions(rows),
        "example_id": example["stitch_id"],
        "example_macs": example.get("macs"),
    }


def _network_fields(plan: StitchPlan, stitches: JsonObject, config: JsonObject) -> JsonObject:
    """Make the template's fields for the network itself."""
    family = family_of_config(config).card(config)
    return {
        "family": family,
        "accuracy": f"{family.score}, %",
        "length": next((row["length"] for row in stitches["stitches"] if row.get("length")), None),
        "generates": family.pipeline == "text-generation",
        "classes": _shortened(family.classes),
        "architecture": config["architecture"],
        "count": len(plan),
        "layers": len(plan.layers),
        "weights": stitches.get("weights"),
        "norm": _NORM[family.stitched_norm],
        "runs": [_describe_run(run) for run in _runs(stitches)],
        "second_version": any(layer.rank for layer in plan.layers),
    }


def _shortened(names: Sequence[str]) -> str:
    """Write the first names of classes, and the number of the others."""
    more = [f"and {len(names) - MOST_CLASSES} more"] if len(names) > MOST_CLASSES else []
    return ", ".join([*map(plain_text, names[:MOST_CLASSES]), *more])


def merge(existing: str, fresh: str) -> str:
    """Merge two cards: the package's blocks and fields from `fresh`, and all else from `existing`.

    Raises:
        ValueError: if the front matter of the existing card is not YAML.
    """
    front, body = _split(existing)
    new_front, new_body = _split(fresh)
    owned = ("model-index", "datasets", "base_model")
    merged = {k: v for k, v in front.items() if k not in owned[:1]}
    for key, value in new_front.items():
        if key == "tags" or (key in owned[1:] and key in merged):
            old = merged.get(key) or []
            old = [old] if isinstance(old, str) else list(old)
            merged[key] = old + [item for item in value if item not in old]
        else:
            merged[key] = value if key in owned else merged.get(key, value)
    missing = []
    for block in ("results", "use", "network"):
        pattern = re.compile(_BLOCK.format(name=block), re.DOTALL)
        match = pattern.search(new_body)
        new, old = match[0] if match else "", pattern.search(body)
        if old:
            body = body[: old.start()] + new + body[old.end() :]
        elif block == "results":
            missing.append(new)
    if missing:
        body = body.rstrip() + "\n\n" + "\n\n".join(missing) + "\n"
    return f"---\n{yaml.safe_dump(merged, sort_keys=False, allow_unicode=True)}---\n{body}"


def _split(card: str) -> tuple[dict[str, Any], str]:
    match = _FRONT.match(card)
    if not match:
        return {}, card
    try:
        front = load_yaml(match[1]) or {}
    except (yaml.YAMLError, ValueError) as error:
        front = str(error).splitlines()[0]
    if not isinstance(front, dict):
        raise ValueError(
            f"the front matter of the existing README.md is not a YAML mapping ({front!s:.80}): correct it first, "
            "so that nothing of it is lost."
        )
    return front, card[match.end() :]


def _eval_results(rows: Sequence[Row], ids: set[int], task: str, score: str) -> list[EvalResult]:
    """List the scores of frontier and anchors for the front matter; each needs the name of a dataset."""
    return [
        EvalResult(
            task_type=task,
            dataset_type=str(row["dataset"]),
            dataset_name=str(row["dataset"]),
            dataset_split=row.get("split"),
            dataset_revision=row.get("revision"),
            metric_type=_HUB_METRICS.get(score, score),
            metric_name=metric_of(score).words,
            metric_value=round(row[score], metric_of(score).digits + 1),
            metric_config=f"stitch_id={row['stitch_id']}",
        )
        for row in rows
        if row["stitch_id"] in ids and row.get("dataset")
    ]


def _conditions(rows: Sequence[Row]) -> str:
    """Describe in one sentence how the rows were measured."""
    fields = ("dataset", "split", "revision", "images", "texts", "device")
    kinds = Counter(tuple(row.get(field) for field in fields) for row in rows)
    phrases = []
    for (dataset, split, revision, images, texts, device), count in kinds.items():
        text = f"on {dataset}" if dataset else f"on {'texts' if texts else 'images'} that are not recorded"
        text += f", split {split}" if split else ""
        text += f", revision {revision}" if revision else ""
        text += f", {images} images" if images else ""
        text += f", {texts} texts" if texts else ""
        text += f", on {device}" if device else ""
        phrases.append((f"{count} of them " if len(kinds) > 1 else "") + plain_text(text))
    return "Evaluated " + "; ".join(phrases) + "." if phrases else ""


def _anchors(plan: StitchPlan, base_models: Sequence[str]) -> list[str]:
    """List the anchors' names, with links to the base models that they began with."""
    links = {name.rpartition("/")[2].split(".")[0]: name for name in base_models}
    return [
        f"[{plain_text(a.name)}](https://huggingface.co/{links[a.name]})"
        if a.name in links
        else f"`{plain_text(a.name)}`"
        for a in plan.anchors
    ]


def _runs(stitches: JsonObject) -> Sequence[object]:
    runs = (stitches.get("training") or {}).get("runs")
    return runs[:100] if isinstance(runs, list) else ()


def _describe_run(run: object) -> str:
    """Describe a training run in one line."""
    values = dict(run) if isinstance(run, Mapping) else {}
    return plain_text(", ".join(f"{key} {value}" for key, value in values.items() if value not in (None, "")))


def plain_text(text: object) -> str:
    """Escape a stranger's text: it stays in its cell and line, and starts no markup, link or picture."""
    line = re.sub(r"[\x00-\x20\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2066-\u2069]+", " ", str(text)[:1024]).strip()
    if _PLAIN.fullmatch(line) and "www." not in line and not re.search(r"(?<!\w)_|_(?!\w)", line):
        return line
    line = line.replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"[\\`*_\[\]!|~$@>{}]|^[#+=-]|:(?=//)|(?<=www)\.", r"\\\g<0>", line)
