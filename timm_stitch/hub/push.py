"""Push networks to the Hugging Face Hub, one commit each, and list those on it. Errors never show a token."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

from ..families.family import CONFIG_FILE, STITCHES_FILE, WEIGHTS_FILE
from ..network.stitchable import StitchableNetwork
from ..plan.results import Row, Rows
from .errors import check_repo_id, check_token, translate_hub_errors
from .model_card import TAG, merge
from .saving import CARD_FILE, CURVE_FILE, save_pretrained


def push_to_hub(
    model: StitchableNetwork,
    repo_id: str,
    *,
    results: Iterable[Row] | None = None,
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    commit_message: str | None = None,
    commit_description: str | None = None,
    token: str | bool | None = None,
    **card: Any,
) -> str:
    """Push a network to the Hub in one commit: weights, config, stitches.json, the card and its curve.

    A missing repository is created. In an existing card, the user's text stays; results, usage and the list of anchors
    are replaced. If anything fails, the repository stays unchanged.

    Args:
        model: the network.
        repo_id: the repository, `"user/name"`.
        results: rows of `evaluate` to save with it.
        private: whether a new repository is private.
        revision: the branch, created if it does not exist; default `main`.
        create_pr: whether to open a pull request instead of committing to the branch.
        commit_message, commit_description: the title and text of the commit.
        token: a token of huggingface_hub; default that of the current login.
        **card: the other arguments of `save_pretrained`: dataset, split, base_models, license and so on.

    Returns:
        The address of the commit, or of the pull request.

    Raises:
        ValueError: for the reasons of `save_pretrained`, or if `repo_id` is not the name of a repository.
        OSError: if the Hub refuses or cannot be reached.

    Examples:
        >>> import timm_stitch
        >>> model = timm_stitch.load("snnet_levit_192_256", pretrained=False)
        >>> timm_stitch.push_to_hub(model, "user/name", private=True)  # doctest: +SKIP
        'https://huggingface.co/user/name/commit/…'
    """
    check_repo_id(repo_id)
    check_token(token)
    api = HfApi(token=token, library_name="timm_stitch")
    with tempfile.TemporaryDirectory(prefix="timm-stitch-") as scratch:
        # Refuse what cannot be saved before the first request.
        folder = save_pretrained(model, Path(scratch, "net"), results, repo_id=repo_id, **card)
        with translate_hub_errors(f"push to {repo_id}", "nothing was committed", token):
            repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
            if revision is not None and not revision.startswith("refs/"):
                api.create_branch(repo_id, branch=revision, exist_ok=True)
            info = api.model_info(repo_id, revision=revision)
            remote_files = {file.rfilename for file in info.siblings or ()}
            if CARD_FILE in remote_files:
                old = Path(api.hf_hub_download(repo_id, CARD_FILE, revision=info.sha, local_dir=scratch))
        card_file = folder / CARD_FILE
        if CARD_FILE in remote_files and (existing := old.read_text(encoding="utf-8")):
            card_file.write_text(merge(existing, card_file.read_text(encoding="utf-8")), encoding="utf-8")
        operations = _operations(folder, remote_files)
        with translate_hub_errors(f"push to {repo_id}", lambda: _left(api, repo_id, revision, info.sha), token):
            title = commit_message or f"{model.num_stitches} stitches by timm_stitch"
            commit = api.create_commit(
                repo_id, operations, revision=revision, create_pr=create_pr, parent_commit=_parent(info.sha),
                commit_message=title, commit_description=commit_description,
            )  # fmt: skip
    return str(commit.pr_url or commit.commit_url)


def _parent(commit: str | None) -> str | None:
    """Get the parent of a push, if huggingface_hub accepts its name: it takes SHA-1 only."""
    return commit if commit and re.fullmatch(r"[0-9A-Fa-f]{5,40}", commit) else None


def _operations(folder: Path, remote_files: set[str]) -> list[CommitOperationAdd | CommitOperationDelete]:
    """List the operations after which a repository holds the files of a folder."""
    wanted = (CONFIG_FILE, STITCHES_FILE, WEIGHTS_FILE, CARD_FILE, CURVE_FILE)
    others = sorted(file.name for file in folder.iterdir() if file.name not in wanted)  # e.g. a tokenizer's
    names = [name for name in (*wanted, *others) if (folder / name).is_file()]
    gone = [CommitOperationDelete(CURVE_FILE)] if CURVE_FILE in remote_files - set(names) else []
    return [*(CommitOperationAdd(name, folder / name) for name in names), *gone]


def list_hub(
    search: str | None = None, *, author: str | None = None, limit: int = 50, token: str | bool | None = None
) -> Rows:
    """List the stitchable networks on the Hub by the tag in their cards, most downloaded first.

    Args:
        search: a part of their names.
        author: a user or an organisation.
        limit: the largest number of networks.
        token: a token of huggingface_hub; default that of the current login.

    Returns:
        Dicts of `repo_id`, `downloads`, `likes`, `updated` (a date) and `private`.

    Raises:
        OSError: if the Hub refuses or cannot be reached.

    Examples:
        >>> from timm_stitch.hub.push import list_hub
        >>> list_hub("deit", author="timm")  # doctest: +SKIP
        [{'repo_id': 'timm/…', 'downloads': 12, 'likes': 1, 'updated': '2026-11-30', 'private': False}]
    """
    check_token(token)
    with translate_hub_errors("list the networks on the Hub", "nothing was fetched", token):
        networks = HfApi(token=token, library_name="timm_stitch").list_models(
            filter=TAG, search=search, author=author, sort="downloads", limit=limit
        )
        return [
            {
                "repo_id": info.id,
                "downloads": info.downloads,
                "likes": info.likes,
                "updated": str(info.last_modified.date()) if info.last_modified else None,
                "private": info.private,
            }
            for info in networks
        ]


def _left(api: HfApi, repo_id: str, revision: str | None, before: str | None) -> str:
    """Find out what a failed commit left behind: its answer can be lost after the commit."""
    try:
        if api.model_info(repo_id, revision=revision).sha != before:
            return "there is a new commit, perhaps this one: look before pushing again"
    except Exception:
        return "whether it was committed is unknown: look before pushing again"
    return "nothing was committed"
