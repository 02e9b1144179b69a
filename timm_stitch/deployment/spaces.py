"""The web page of a network as a Space of the Hub."""

from __future__ import annotations

import os
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import yaml
from huggingface_hub import CommitOperationAdd, HfApi

from ..errors import missing_extra
from ..hub.errors import check_repo_id, check_token, translate_hub_errors
from ..hub.json_files import STITCHES_FILE

_APP = '''"""The page of {repo_id}, as timm_stitch writes it."""

from pathlib import Path

import timm_stitch
from timm_stitch.deployment.demo import make_page

model = timm_stitch.from_hub({repo_id!r})
demo = make_page(model, examples=sorted(map(str, Path(__file__).parent.glob("examples/*"))))

if __name__ == "__main__":
    demo.launch()
'''


def push_space(
    model_repo: str,
    space_id: str,
    *,
    examples: Iterable[str | os.PathLike[str]] = (),
    private: bool | None = None,
    token: str | bool | None = None,
) -> str:
    """Put the page of a network on the Hub as a Space, in one commit.

    The Space holds `app.py`, `requirements.txt`, `README.md` and a copy of this package, so that it needs no package
    index for it. It loads the network from its repository when it starts; for a private one, give the Space a secret
    `HF_TOKEN` in its settings.

    Args:
        model_repo: the network's repository `"user/name"`, from `push_to_hub`.
        space_id: the name `"user/name"` of the Space; created if there is none, else these files are replaced.
        examples: images to choose from on the page.
        private: whether a new Space is private.
        token: the token for huggingface_hub; default the one that is logged in.

    Returns:
        The address of the Space.

    Raises:
        ImportError: if gradio, whose version the Space gets, is missing.
        ValueError: if either name is not that of a repository, or the first one has no network of timm_stitch.
        OSError: if the Hub refuses or cannot be reached, or an example cannot be read.
    """
    model_repo = model_repo.removeprefix("hf-hub:")
    if Path(model_repo).is_dir():
        raise ValueError(
            f"{model_repo!r} is a folder, and a Space loads from the Hub: push it first, timm-stitch push {model_repo} "
            "--repo user/name, then give hf-hub:user/name."
        )
    for name in (model_repo, space_id):
        check_repo_id(name)
    check_token(token)
    files = _files(model_repo, space_id, [Path(path) for path in examples])
    operations = [CommitOperationAdd(name, content) for name, content in files.items()]
    api = HfApi(token=token, library_name="timm_stitch")
    with translate_hub_errors(f"find {model_repo}", token=token):
        names = {file.rfilename for file in api.model_info(model_repo).siblings or ()}
    if STITCHES_FILE not in names:
        raise ValueError(f"{model_repo} has no {STITCHES_FILE}: expected a network that timm-stitch push put there.")
    with translate_hub_errors(f"push to {space_id}", "nothing was committed", token):
        space = api.create_repo(space_id, repo_type="space", space_sdk="gradio", private=private, exist_ok=True)
        api.create_commit(
            space.repo_id, operations, repo_type="space", commit_message=f"The page of {model_repo} by timm_stitch"
        )
    return str(space)


def _files(model_repo: str, space_id: str, examples: list[Path]) -> dict[str, bytes | Path]:
    """Make the content of the Space by file name: bytes, or paths of local files."""
    try:
        gradio, requirements = version("gradio"), requires("timm_stitch") or []
    except PackageNotFoundError as error:
        raise missing_extra(f"a Space needs {error.name} installed here", "demo") from error
    front = {
        "title": space_id.partition("/")[2],
        "emoji": "🧵",
        "colorFrom": "blue",
        "colorTo": "yellow",
        "sdk": "gradio",
        "sdk_version": gradio,
        "app_file": "app.py",
        "models": [model_repo],
        "tags": ["timm_stitch"],
    }
    package = Path(__file__).parents[1]
    own = [path for path in sorted(package.rglob("*")) if path.suffix in (".py", ".yaml", ".html", ".js")]
    lines = [line.partition(";")[0].strip() for line in requirements if 'extra == "dev"' not in line.replace("'", '"')]
    readme = f"---\n{yaml.safe_dump(front, sort_keys=False, allow_unicode=True)}---\n\n"
    return {
        "app.py": _APP.format(repo_id=model_repo).encode(),
        "requirements.txt": "".join(f"{line}\n" for line in lines if not line.startswith("timm_stitch")).encode(),
        "README.md": (
            f"{readme}A slider along the frontier of [{model_repo}](https://huggingface.co/{model_repo}), and the "
            "curve with the path of each stitch.\n"
        ).encode(),
        **{f"timm_stitch/{path.relative_to(package).as_posix()}": path for path in own},
        **{f"examples/{path.name}": path for path in examples},
    }
