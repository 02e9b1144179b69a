"""Networks to the Hugging Face Hub, each push one commit; and a list of those that are there.

A token is never shown.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

from ..families.family import CONFIG_FILE, STITCHES_FILE, WEIGHTS_FILE
from ..network.stitchable import StitchableNetwork
from .errors import check_repo_id, check_token, explained
from .model_card import TAG, merge
from .saving import CARD_FILE, CURVE_FILE, save_pretrained


def push_to_hub(
    model: StitchableNetwork,
    repo_id: str,
    *,
    results: Iterable[Mapping[str, Any]] | None = None,
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    commit_message: str | None = None,
    commit_description: str | None = None,
    token: str | bool | None = None,
    **card: Any,
) -> str:
    """Put a network on the Hub in one commit: weights, config, stitches.json, the card and its curve.

    The repository is made if there is none. What a user wrote into a card is kept; results, usage and the list of
    anchors in it are written anew. If anything fails, what was in the repository stays.

    Args:
        model, repo_id: the network, and `"user/name"`, where it is to be.
        results: rows from `evaluate`.
        private: for a repository that is made now.
        revision: the branch, made if there is none; default `main`.
        create_pr: open a pull request instead of committing to the branch.
        commit_message, commit_description: of the commit.
        token: as huggingface_hub takes it; default the one that is logged in.
        **card: the other arguments of `save_pretrained`: dataset, split, base_models, license and so on.

    Returns:
        The address of the commit, or of the pull request.

    Raises:
        ValueError: as `save_pretrained`, or if `repo_id` is not the name of a repository.
        OSError: if the Hub refuses or cannot be reached; says what happened and what to do.
    """
    check_repo_id(repo_id)
    check_token(token)
    api = HfApi(token=token, library_name="timm_stitch")
    with tempfile.TemporaryDirectory(prefix="timm-stitch-") as scratch:
        # What can be refused here is refused before the Hub hears of it.
        folder = save_pretrained(model, Path(scratch, "net"), results, repo_id=repo_id, **card)
        with explained(f"push to {repo_id}", "nothing was committed", token):
            repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
            if revision is not None and not revision.startswith("refs/"):
                api.create_branch(repo_id, branch=revision, exist_ok=True)
            info = api.model_info(repo_id, revision=revision)
            there = {file.rfilename for file in info.siblings or ()}
            if CARD_FILE in there:
                old = Path(api.hf_hub_download(repo_id, CARD_FILE, revision=info.sha, local_dir=scratch))
        card_file = folder / CARD_FILE
        if CARD_FILE in there and (existing := old.read_text(encoding="utf-8")):
            card_file.write_text(merge(existing, card_file.read_text(encoding="utf-8")), encoding="utf-8")
        operations = _operations(folder, there)
        with explained(f"push to {repo_id}", lambda: _left(api, repo_id, revision, info.sha), token):
            title = commit_message or f"{model.num_stitches} stitches by timm_stitch"
            commit = api.create_commit(
                repo_id, operations, revision=revision, create_pr=create_pr, parent_commit=_parent(info.sha),
                commit_message=title, commit_description=commit_description,
            )  # fmt: skip
    return str(commit.pr_url or commit.commit_url)


def _parent(commit: str | None) -> str | None:
    """The commit that a push builds on, where huggingface_hub can name it: it takes names of git's SHA-1 alone."""
    return commit if commit and re.fullmatch(r"[0-9A-Fa-f]{5,40}", commit) else None


def _operations(folder: Path, there: set[str]) -> list[CommitOperationAdd | CommitOperationDelete]:
    """What makes a repository that holds the files `there` hold those of a folder."""
    wanted = (CONFIG_FILE, STITCHES_FILE, WEIGHTS_FILE, CARD_FILE, CURVE_FILE)
    others = sorted(file.name for file in folder.iterdir() if file.name not in wanted)  # such as a tokenizer's
    names = [name for name in (*wanted, *others) if (folder / name).is_file()]
    gone = [CommitOperationDelete(CURVE_FILE)] if CURVE_FILE in there - set(names) else []
    return [*(CommitOperationAdd(name, folder / name) for name in names), *gone]


def list_hub(
    search: str | None = None, *, author: str | None = None, limit: int = 50, token: str | bool | None = None
) -> list[dict[str, Any]]:
    """The stitchable networks on the Hub, by the tag that their cards have; most downloaded first.

    Args:
        search: a part of their names.
        author: a user or an organisation.
        limit: the most to list.
        token: as huggingface_hub takes it; default the one that is logged in.

    Returns:
        Dicts of `repo_id`, `downloads`, `likes`, `updated` (a date) and `private`.

    Raises:
        OSError: if the Hub refuses or cannot be reached.
    """
    check_token(token)
    with explained("list the networks on the Hub", "nothing was fetched", token):
        found = HfApi(token=token, library_name="timm_stitch").list_models(
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
            for info in found
        ]


def _left(api: HfApi, repo_id: str, revision: str | None, before: str | None) -> str:
    """What a commit that failed left behind: an answer can be lost after the commit was made."""
    try:
        if api.model_info(repo_id, revision=revision).sha != before:
            return "there is a new commit, perhaps this one: look before pushing again"
    except Exception:
        return "whether it was committed is unknown: look before pushing again"
    return "nothing was committed"
