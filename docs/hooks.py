"""Parts of the site that are made while mkdocs builds it.

Changelog, security and contributing are files of the repository. The command line is written from its parser, the
fields of a training run from `TrainConfig`, the published tables from `hub_cards`, and plans are drawn as they are.
So each fact has one source.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent

# Pages of the site that are files of the repository; pages link to the files, so that the links work on GitHub too.
PAGES = {"CONTRIBUTING.md": "contributing.md", "SECURITY.md": "security.md", "CHANGELOG.md": "changelog.md"}

_logger = logging.getLogger("mkdocs.hooks")


def on_config(config: Any) -> Any:
    """Describe this checkout, whatever is installed, and link to its repository if pyproject.toml names one."""
    sys.path[:0] = [str(ROOT), str(ROOT / "docs")]
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    if url := re.search(r'^(?:Repository|Source) = "(.+)"$', project, re.MULTILINE):
        config.repo_url, config.edit_uri = url[1], "edit/main/docs/"
        config.theme["features"].append("content.action.edit")
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are files of the repository."""
    for source, page in PAGES.items():
        text = _relinked((ROOT / source).read_text(encoding="utf-8"))
        files.append(File.generated(config, page, content=text))
    for name in _cards_with_figures():
        files.append(File.generated(config, f"curves/{name}.html", content=interactive_curve(name)))
    return files


def _cards_with_figures() -> list[str]:
    cards = sorted((ROOT / "hub_cards").glob("*/stitches.json"))
    return [card.parent.name for card in cards if '"top1"' in card.read_text(encoding="utf-8")]


def interactive_curve(name: str) -> str:
    """Draw the published curve of a network as a page of its own."""
    from timm_stitch.evaluation.curve_page import write_curve_page

    card = json.loads((ROOT / "hub_cards" / name / "stitches.json").read_text(encoding="utf-8"))
    rows = [row for row in card["stitches"] if row.get("top1") is not None]
    with tempfile.TemporaryDirectory() as folder:
        return write_curve_page(rows, Path(folder) / "curve.html", title=name).read_text(encoding="utf-8")


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Put what is written from the code in the place of the comment or picture that asks for it."""
    import draw_plans

    for source, linked in PAGES.items():
        markdown = markdown.replace(f"](../{source}", f"]({linked}")
    writers: dict[str, Callable[..., Iterator[str]]] = {
        "verbs": command_line, "fields of TrainConfig": train_config, "published": published
    }  # fmt: skip

    def write(mark: re.Match[str]) -> str:
        return "\n".join(writers[mark[1]](*mark[2].split()))

    markdown = re.sub(rf"<!-- made when the site is built: ({'|'.join(writers)})(.*?) -->", write, markdown)
    pictures = draw_plans.pictures()
    return re.sub(
        r"^!\[(.*?)\]\(plans/(.*?)\)$",
        lambda link: f'<figure class="plan">{pictures[link[2]].strip()}<figcaption>{link[1]}</figcaption></figure>',
        markdown,
        flags=re.MULTILINE,
    )


def on_env(env: Any, config: Any, files: Files) -> None:
    """Warn of public names that are on no page of the reference."""
    import timm_stitch

    pages = "".join(file.content_string for file in files.documentation_pages() if file.src_uri.startswith("api/"))
    shown = set(re.findall(r"^::: timm_stitch\.(\w+)$", pages, re.MULTILINE))
    for name in sorted(set(timm_stitch.__all__) ^ shown):
        _logger.warning("timm_stitch.%s is public and on no page under docs/api, or the other way round.", name)


def _relinked(text: str) -> str:
    """Links of a file at the root as links from the folder docs."""
    text = text.replace("](docs/", "](")
    for source, page in PAGES.items():
        text = text.replace(f"]({source})", f"]({page})")
    return text


def command_line(*names: str) -> Iterator[str]:
    """Write one section for each of these verbs; for "others", for those that no task of the page names."""
    from timm_stitch.cli.entry import make_parser

    verbs = dict(_verbs(make_parser()))
    if names == ("others",):
        page = (ROOT / "docs/command_line.md").read_text(encoding="utf-8")
        named = {name for mark in re.findall(r"site is built: verbs(.*?) -->", page) for name in mark.split()}
        names = tuple(name for name in verbs if name not in named)
    for name in names:
        verb = verbs[name]
        yield f"### {name}\n"
        yield f"{_sentence(verb.description)}\n"
        if verb.epilog:
            yield f"```\n{verb.epilog.removeprefix('example: ')}\n```\n"
        shown = [
            action
            for action in verb._actions
            if action.help != argparse.SUPPRESS and action.dest not in ("help", "json")
        ]
        for action in shown:
            default = "" if _is_nothing(action.default) else f" Default: `{action.default}`."
            yield f"{_code(_invocation(action))}\n:   {_cell(_sentence(_help(action)))}{default}\n"


def _verbs(parser: argparse.ArgumentParser) -> list[tuple[str, argparse.ArgumentParser]]:
    subparsers = next(action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    for verb in subparsers.choices.values():
        verb.formatter_class = partial(argparse.HelpFormatter, width=100)  # whatever the terminal
    return list(subparsers.choices.items())


def _is_nothing(default: Any) -> bool:
    return default in (None, argparse.SUPPRESS, "", []) or default is False


def _invocation(action: argparse.Action) -> str:
    metavar = action.metavar or (action.dest.upper() if action.option_strings else action.dest)
    if action.choices is not None:
        metavar = "{" + ",".join(str(choice) for choice in action.choices) + "}"
    values = {0: "", "?": f"[{metavar}]", "*": f"[{metavar} …]", "+": f"{metavar} …"}.get(action.nargs, str(metavar))
    return " ".join([*action.option_strings[-1:], *([values] if values else [])])


def _help(action: argparse.Action) -> str:
    told = re.sub(r" ?\(default: [^)]*\)|^default: (?=\d|[a-z]+$)\S+", "", (action.help or "").replace("%%", "%"))
    return f"{told}{'; ' * bool(told)}required" if action.required and action.option_strings else told


def train_config() -> Iterator[str]:
    """Write the fields of TrainConfig by group, each with its own description."""
    import timm_stitch
    from timm_stitch.data.fields import type_name

    groups: dict[str, list[Any]] = {}
    for field in dataclasses.fields(timm_stitch.TrainConfig):
        groups.setdefault(str(field.metadata.get("group", "the run")), []).append(field)
    for group, fields in groups.items():
        yield f"### Fields: {group}\n"
        for field in fields:
            about = f"{_cell(_sentence(_about(field)))} {_code(type_name(field))}, default {_code(_default(field))}."
            yield f"`{field.name}`\n:   {about}\n"


def published(name: str) -> Iterator[str]:
    """Write the authors' table of a network: the anchors, and the frontier."""
    from timm_stitch.plan.frontier import pareto_frontier

    card = json.loads((ROOT / "hub_cards" / name / "stitches.json").read_text(encoding="utf-8"))
    rows = [row for row in card["stitches"] if row.get("top1") is not None]
    frontier = [row for row in pareto_frontier(rows) if "+" in row["name"]]
    yield "| stitch id | anchor or stitch | GMACs | params | top-1 |\n|---:|---|---:|---:|---:|"
    for row in [*(row for row in rows if "+" not in row["name"]), *frontier]:
        short = re.sub(r"_patch\d+(_window\d+)?_\d+", "", row["name"])
        yield (
            f"| {row['stitch_id']} | {short} | {row['macs'] / 1e9:.2f} | {row['params'] / 1e6:.1f} M "
            f"| {row['top1']:.2f} |"
        )
    yield ""


def _default(field: dataclasses.Field[Any]) -> str:
    made = field.default_factory
    value = made() if made is not dataclasses.MISSING else field.default
    if isinstance(value, tuple):
        return f"({', '.join(_plain(item) for item in value)})"
    return _plain(value)


def _plain(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else repr(value)


def _about(field: dataclasses.Field[Any]) -> str:
    parts = [str(field.metadata.get("help", "")).rstrip(".")]
    if field.metadata.get("choices"):
        parts.append("one of " + ", ".join(f"`{choice!r}`" for choice in field.metadata["choices"]))
    if field.metadata.get("range"):
        low, high = field.metadata["range"]
        parts.append(f"at least {low:g}" if high == float("inf") else f"{low:g} to {high:g}")
    return "; ".join(part for part in parts if part)


def _sentence(text: str | None) -> str:
    text = (text or "").strip()
    return text[:1].upper() + text[1:] + "." * (not text.endswith("."))


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def _code(text: str) -> str:
    return f"`{text}`"
