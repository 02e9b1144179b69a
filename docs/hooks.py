"""What the site is made of besides the pages here: mkdocs calls these functions while it builds.

The start page is the README; changelog, security and contributing are the files beside it. The command line is
written from its parser, and the fields of a training run from `TrainConfig`, so that each fact has one source.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import re
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent

# Pages of the site that are files of the repository.
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "CHANGELOG.md": "changelog.md",
    "LICENSE": "license.txt",
    "CITATION.cff": "citation.cff",
}

_logger = logging.getLogger("mkdocs.hooks")


def on_config(config: Any) -> Any:
    """Describe this checkout, whatever is installed."""
    sys.path.insert(0, str(ROOT))
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are files of the repository."""
    for source, page in PAGES.items():
        text = _relinked((ROOT / source).read_text(encoding="utf-8"))
        if page == "index.md":
            text = f"---\ntitle: Start\nhide: [navigation]\n---\n\n{text}"
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Put what is written from the code in the place of the comment that asks for it."""
    for name, write in {"command line": command_line, "fields of TrainConfig": train_config}.items():
        mark = f"<!-- made when the site is built: {name} -->"
        if mark in markdown:
            markdown = markdown.replace(mark, "\n".join(write()))
    return markdown


def on_env(env: Any, config: Any, files: Files) -> None:
    """Tell of public names that are on no page of the reference."""
    import timm_stitch

    pages = "".join(file.content_string for file in files.documentation_pages() if file.src_uri.startswith("api/"))
    shown = set(re.findall(r"^::: timm_stitch\.(\w+)$", pages, re.MULTILINE))
    for name in sorted(set(timm_stitch.__all__) ^ shown):
        _logger.warning("timm_stitch.%s is public and on no page under docs/api, or the other way round.", name)


def _relinked(text: str) -> str:
    """Links of a file at the root as links from the folder docs."""
    text = text.replace("](docs/", "](").replace('="docs/', '="')
    for source, page in PAGES.items():
        text = text.replace(f"]({source})", f"]({page})")
    return text


def command_line() -> Iterator[str]:
    """One section a verb, in the parser's order."""
    from timm_stitch.cli.entry import make_parser

    for name, verb in _verbs(make_parser()):
        yield f"## {name}\n"
        yield f"{_sentence(verb.description)}\n"
        yield f"```\n{verb.format_usage().removeprefix('usage: ').rstrip()}\n```\n"
        shown = [action for action in verb._actions if action.help != argparse.SUPPRESS and action.dest != "help"]
        if shown:
            yield "| argument | | default |\n|---|---|---|"
            for action in shown:
                default = "" if _is_nothing(action.default) else f"`{action.default}`"
                yield f"| {_code(_invocation(action))} | {_cell(_help(action))} | {default} |"
            yield ""
        if verb.epilog:
            yield f"```\n{verb.epilog.removeprefix('example: ')}\n```\n"


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
    """A table of the fields of TrainConfig, with what each says of itself."""
    import timm_stitch

    yield "| field | type | default | |"
    yield "|---|---|---|---|"
    for field in dataclasses.fields(timm_stitch.TrainConfig):
        kind = str(getattr(field.type, "__name__", field.type))
        yield f"| `{field.name}` | {_code(kind)} | {_code(_default(field))} | {_cell(_about(field))} |"
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
