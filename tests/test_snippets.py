"""Every Python snippet of README.md and docs/ runs, and prints what the page shows.

The snippets of a page share one namespace and run in order, in a new folder. `python tests/test_snippets.py` says how
many there are, how many run, and why others do not.

A snippet is a fence that begins with ```python. What is compared, with `...` for any text, and any space for any other:

- A fence ```text right after it is what it prints.
- A comment that is a Python literal is the value of the expression before it: `model.num_stitches  # 71`.

Comments between the page's paragraphs, which no reader sees, prepare the next snippet. Each begins a line:

- `<!-- test: setup` … `-->`: Python to run first, in the page's namespace. The tests' modules are there: `import tiny`.
- `<!-- test: replace: a -> b; c -> d -->`: the snippet runs with `b` where it has `a`, such as a small model's name.
- `<!-- test: needs: onnxruntime, transformers>=5.20 -->`: the snippet is skipped where a module is not installed.
- `<!-- test: skip: the reason -->`: the snippet never runs.

The folder has, for pages that want them:

- `my-images/train/{cat,dog}/*.png` and `my-images/validation/…`: four images a class and split, 64 pixels;
- `cat.jpg`; and `my-snnet`, a saved network of two tiny transformers with these two classes and its evaluated rows;
- `tiny/model_best.pth.tar`, `small/model_best.pth.tar`: its anchors' weights, as timm's `train.py` keeps them.

A page whose snippets name `user/name` has a Hub on loopback: what one snippet pushes there, later ones pull. On other
pages a download is an error.

A fence ```console runs in that folder: each `$ timm-stitch …` is followed by what it prints. There, `my-network` is
`my-snnet`. Every other line of a page
that begins with `timm-stitch` is parsed by the command line's own parser, but not run.
"""

from __future__ import annotations

import ast
import contextlib
import doctest
import importlib.metadata
import importlib.util
import io
import re
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants
from loopback import SECRET
from packaging.version import Version

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
MARKERS = {"setup", "replace", "needs", "skip"}
PART = re.compile(
    r"^<!-- test: (?P<marker>\w+):?(?P<value>.*?)-->$"
    r"|^(?P<indent> *)```(?P<language>\w*)[^\n]*\n(?P<text>.*?)^(?P=indent)```$",
    re.MULTILINE | re.DOTALL,
)


@dataclass
class Snippet:
    """Python of a page, and what the page says of it."""

    page: Path
    line: int
    code: str
    setup: list[tuple[int, str]]
    skip: str = ""
    needs: list[str] = field(default_factory=list)
    replacements: list[tuple[str, str]] = field(default_factory=list)
    output: str | None = None

    def why_not(self) -> str:
        missing = [need for need in self.needs if not _is_installed(need)]
        return self.skip or (f"{', '.join(missing)} not installed" if missing else "")


def _is_installed(need: str) -> bool:
    """Whether a module can be imported, and is as new as `module>=version` says."""
    module, _, version = need.partition(">=")
    if importlib.util.find_spec(module) is None:
        return False
    return not version or Version(importlib.metadata.version(module)) >= Version(version)


def read(page: Path) -> list[Snippet]:
    """The snippets of a page, each with its markers and output."""
    text, snippets, marks, last_end = page.read_text(encoding="utf-8"), [], [], 0
    for part in PART.finditer(text):
        line = text.count("\n", 0, part.start()) + 1
        if part["marker"]:
            assert part["marker"] in MARKERS, f"{page}:{line}: no marker {part['marker']!r}, of {sorted(MARKERS)}"
            marks.append((part["marker"], line, part["value"]))
        elif part["language"] == "python":
            snippet = Snippet(page, line, _dedent(part), [])
            for marker, where, value in marks:
                _apply(snippet, marker, where, value)
            snippets.append(snippet)
            marks = []
        elif part["language"] == "text" and snippets and not text[last_end : part.start()].strip():
            snippets[-1].output = _dedent(part)
        last_end = part.end()
    assert not marks, f"{page}:{marks[0][1]}: a marker without a snippet after it"
    return snippets


def _dedent(part: re.Match[str]) -> str:
    return re.sub(f"^{part['indent']}", "", part["text"], flags=re.MULTILINE)


def _apply(snippet: Snippet, marker: str, line: int, value: str) -> None:
    if marker == "setup":
        snippet.setup.append((line, value.removeprefix("\n") if value.startswith("\n") else value.strip()))
    elif marker == "replace":
        for pair in value.strip().split("; "):
            old, new = pair.split(" -> ")
            assert old in snippet.code, f"{snippet.page}:{line}: the snippet has no {old!r}"
            snippet.replacements.append((old, new))
    elif marker == "needs":
        snippet.needs += [name.strip() for name in value.split(",")]
    else:
        snippet.skip = value.strip()
        assert snippet.skip, f"{snippet.page}:{line}: skip wants a reason"


def run(snippet: Snippet, namespace: dict[str, Any]) -> None:
    """Run a snippet after its setup, and compare what it prints and the values in its comments."""
    for line, code in snippet.setup:
        _execute(code, snippet.page, line, namespace)
    code = snippet.code
    for old, new in snippet.replacements:
        code = code.replace(old, new)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        _execute(code, snippet.page, snippet.line, namespace)
    if snippet.output is not None:
        _compare(snippet, snippet.output, printed.getvalue())


def _execute(code: str, page: Path, line: int, namespace: dict[str, Any]) -> None:
    """Run statement by statement, with the page's line numbers."""
    tree = ast.parse(code)
    comments = _literal_comments(code)
    ast.increment_lineno(tree, line)
    for node in tree.body:
        if isinstance(node, ast.Expr) and node.end_lineno - line in comments:  # type: ignore[operator]
            value = eval(compile(ast.Expression(node.value), str(page), "eval"), namespace)
            shown = comments[node.end_lineno - line]  # type: ignore[operator]
            assert value == shown, f"{page}:{node.end_lineno}: {value!r}, but the page shows {shown!r}"
        else:
            exec(compile(ast.Module([node], []), str(page), "exec"), namespace)


def _literal_comments(code: str) -> dict[int, Any]:
    comments = {}
    for number, line in enumerate(code.splitlines(), 1):
        with contextlib.suppress(SyntaxError, ValueError):
            comments[number] = ast.literal_eval(line.partition("  # ")[2].strip())
    return comments


def _compare(snippet: Snippet, expected: str, printed: str) -> None:
    if not doctest.OutputChecker().check_output(expected, printed, FLAGS):
        raise AssertionError(f"{snippet.page}:{snippet.line}: the page shows\n{expected}\nbut this printed\n{printed}")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The images and the network that pages name."""
    import tiny
    import torch
    from PIL import Image

    import timm_stitch

    root = tmp_path_factory.mktemp("snippets")
    pixels = (tiny.images(16, 64).clamp(-2, 2) * 60 + 128).to(torch.uint8).permute(0, 2, 3, 1).numpy()
    for index, image in enumerate(pixels):
        split, name = ("train", "validation")[index // 8], ("cat", "dog")[index % 2]
        path = root / "my-images" / split / name / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    Image.fromarray(pixels[0]).save(root / "cat.jpg")
    torch.manual_seed(0)  # of the stitching layers
    model = timm_stitch.stitch(tiny.models("test_vit", "test_vit2", img_size=64, num_classes=2))
    for name, anchor in zip(("tiny", "small"), tiny.models("test_vit", "test_vit2", num_classes=2), strict=True):
        (root / name).mkdir()
        torch.save({"epoch": 1, "state_dict": anchor.state_dict()}, root / name / "model_best.pth.tar")
    rows = timm_stitch.evaluate(model, [(tiny.images(8, 64), torch.arange(8) % 2)])
    timm_stitch.save_pretrained(model, root / "my-snnet", results=rows, label_names=["cat", "dog"])
    return root


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("page", [page for page in PAGES if read(page)], ids=lambda page: page.name)
def test_snippets_run_and_print_what_the_page_shows(page, folder, tmp_path, monkeypatch, request):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    if any("user/name" in snippet.code for snippet in read(page)):
        request.getfixturevalue("server").begin("lfs")
        monkeypatch.setenv("HF_TOKEN", SECRET)
    else:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for snippet in read(page):
        if not snippet.why_not():
            run(snippet, namespace)


def commands(page: Path) -> Iterator[tuple[int, str]]:
    """Lines of fences that call timm-stitch, joined where they go on."""
    text = page.read_text(encoding="utf-8")
    for part in PART.finditer(text):
        if part["language"] in ("", "bash", "console", "sh"):
            first = text.count("\n", 0, part.start()) + 2
            lines = (part["text"] or "").replace("\\\n", "\0").split("\n")
            for number, line in enumerate(lines):
                line = line.replace("\0", " ").strip().removeprefix("$ ")
                if line.startswith("timm-stitch ") and "VERB" not in line and "…" not in line:
                    yield first + number, re.split(r" [|>] ", line)[0]


@pytest.mark.parametrize("page", [page for page in PAGES if any(commands(page))], ids=lambda page: page.name)
def test_commands_are_accepted_by_the_parser(page):
    from timm_stitch.cli.entry import make_parser

    for line, command in commands(page):
        try:
            make_parser().parse_args(shlex.split(command, comments=True)[1:])
        except SystemExit as end:
            if end.code:
                pytest.fail(f"{page}:{line}: {command}")


def sessions(page: Path) -> Iterator[tuple[str, str]]:
    """The commands of ```console fences, each with what the page shows below it."""
    for part in PART.finditer(page.read_text(encoding="utf-8")):
        if part["language"] == "console":
            for session in re.split(r"^\$ ", _dedent(part), flags=re.MULTILINE)[1:]:
                command, _, output = session.replace("\\\n", " ").partition("\n")
                yield command, output


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("page", [page for page in PAGES if any(sessions(page))], ids=lambda page: page.name)
def test_commands_with_output_print_what_the_page_shows(page, folder, tmp_path, monkeypatch, capsys):
    from timm_stitch.cli.entry import main

    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    shutil.copytree("my-snnet", "my-network")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for command, expected in sessions(page):
        with contextlib.suppress(SystemExit):
            main(shlex.split(command)[1:])
        printed = "".join(capsys.readouterr())
        assert doctest.OutputChecker().check_output(expected, printed, FLAGS), f"{page}: {command}\n{printed}"


PAGE = """
<!-- test: setup
size = 2
-->
<!-- test: replace: large -> size -->
```python
print(large + 1)
large + 2  # 4
```

```text
3
```

<!-- test: needs: no_such_module -->
```python
import no_such_module
```

<!-- test: skip: takes a day -->
```python
1 / 0
```
"""


@pytest.mark.parametrize(("old", "new", "error"), [
    ("", "", None),
    ("text\n3", "text\n4", "but this printed"),
    ("# 4", "# 5", "the page shows 5"),
    ("skip: takes a day", "skip: ", "wants a reason"),
    ("-> size", "-> 1 / 0", "division"),
    ("replace: large", "replace: medium", "has no 'medium'"),
    ("test: needs", "test: wants", "no marker 'wants'"),
])  # fmt: skip
def test_the_markers(tmp_path, old, new, error):
    page = tmp_path / "page.md"
    page.write_text(PAGE.replace(old, new) if old else PAGE)
    with pytest.raises((AssertionError, ZeroDivisionError), match=error) if error else contextlib.nullcontext():
        snippets, namespace = read(page), {}
        assert [bool(s.why_not()) for s in snippets] == [False, True, True]
        run(snippets[0], namespace)


if __name__ == "__main__":
    every = [snippet for page in PAGES for snippet in read(page)]
    left_out = [(snippet, snippet.why_not()) for snippet in every if snippet.why_not()]
    with_output = sum(s.output is not None or bool(_literal_comments(s.code)) for s in every)
    print(f"{len(every)} snippets, {len(every) - len(left_out)} run, {with_output} with output that is compared")
    for snippet, reason in left_out:
        print(f"{snippet.page.relative_to(ROOT)}:{snippet.line}: {reason}")
