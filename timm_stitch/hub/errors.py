"""What the Hub refuses and huggingface_hub raises, in one line: what happened, what was left behind, what to do."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable
from typing import Any

from huggingface_hub import errors as hub
from huggingface_hub import get_token
from huggingface_hub.utils import HFValidationError
from huggingface_hub.utils._validators import validate_repo_id

XET_ADVICE = "Try again with HF_HUB_DISABLE_XET=1 in the environment: a mirror may pass files on without that storage."


class explained:  # noqa: N801
    """Turn what huggingface_hub raises into one line: what happened, what was left, what to do."""

    def __init__(self, doing: str, left: str | Callable[[], str] = "", token: str | bool | None = None) -> None:
        self.doing, self.left, self.token = doing, left, token

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, _: Any) -> None:
        if error is None or not isinstance(error, Exception):
            return
        hide(error, self.token)
        found = _explain(error)
        if found is not None:
            left = self.left if isinstance(self.left, str) else self.left()
            raise found[0](f"cannot {self.doing}: {found[1]}{left and '; ' + left}. {found[2]}") from error


def check_token(token: str | bool | None) -> None:
    """Refuse a token that no request can carry, without showing it.

    Raises:
        ValueError: if it has other characters than a token has.
    """
    if isinstance(token, str) and not re.fullmatch(r"[!-~]+", token):
        raise ValueError(
            "the token has a line break, a blank or another character that no token has (or is empty): give it as the "
            "Hub shows it, e.g. open(path).read().strip()."
        )


def hide(error: BaseException, token: str | bool | None = None) -> None:
    """Take tokens and the signatures of addresses out of what an error, its causes and contexts say."""
    known = {str(value) for value in (token, get_token()) if isinstance(value, str) and value}
    seen: set[int] = set()
    queue: list[BaseException | None] = [error]
    while queue:
        one = queue.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        one.args = tuple(_hidden(arg, known) for arg in one.args)
        queue += [one.__cause__, one.__context__]


def _hidden(value: object, known: set[str]) -> object:
    if isinstance(value, (bytes, bytearray)):
        value = value.decode(errors="replace")
    if not isinstance(value, str):
        return value
    for token in known:
        value = value.replace(token, "…")
    value = re.sub(r"(?i)(bearer\s+)[^\s'\"]+", r"\1…", value)
    return re.sub(r"(https?://[^\s?'\"]+)\?[^\s'\"<>]+", r"\1", value)


def is_repo_id(name: Any) -> bool:
    """Whether something in a stranger's file may be the name of a repository."""
    return isinstance(name, str) and re.fullmatch(r"[\w.-]{1,96}/[\w.-]{1,96}", name) is not None


def check_repo_id(repo_id: str) -> None:
    """Refuse what cannot be the name of a repository.

    Raises:
        ValueError: naming it.
    """
    try:
        validate_repo_id(repo_id)
        valid = repo_id.count("/") == 1
    except HFValidationError:
        valid = False
    if not valid:
        raise ValueError(
            f"{repo_id!r:.200} is neither a folder nor a repository of the Hub: expected 'user/name' or a folder."
        )


def by_xet(error: BaseException | None) -> bool:
    """Whether an error, or its cause, came of fetching or storing through Xet."""
    while error is not None:
        address = str(getattr(getattr(error, "response", None), "url", ""))
        text = f"{type(error).__module__} {address} {error}".lower()
        if re.search(r"hf_xet|/xet-(read|write)-token|\bxet\b|\bcas\b", text):
            return True
        error = error.__cause__
    return False


def _explain(error: Exception) -> tuple[type[OSError], str, str] | None:
    """The class, what happened, and what to do; None for what is neither a matter of the Hub nor of the connection."""
    if isinstance(error, (RuntimeError, hub.LocalEntryNotFoundError)) and isinstance(error.__cause__, Exception):
        found = _explain(error.__cause__)  # uploads of large files, and failing downloads, are wrapped so
        if found is not None:
            return found
    if by_xet(error):
        return ConnectionError, "the storage that it names (Xet) does not answer", XET_ADVICE
    status = getattr(getattr(error, "response", None), "status_code", None)
    login = "Check the name; if it is private, log in (`hf auth login`) or give a token that may see it."
    if isinstance(error, hub.GatedRepoError):
        return PermissionError, "its owner must grant access first", "Ask for access on its page, then log in."
    if status == 401 or isinstance(error, hub.LocalTokenNotFoundError):
        return PermissionError, "the Hub does not know who asks, or there is no such repository (401)", login
    if isinstance(error, hub.RepositoryNotFoundError):
        return FileNotFoundError, "there is no such repository", login
    if isinstance(error, hub.RevisionNotFoundError):
        return (
            FileNotFoundError,
            "there is no such branch, tag or commit",
            "See the repository's page for those there are.",
        )
    if isinstance(error, (hub.LocalEntryNotFoundError, hub.OfflineModeIsEnabled)):
        return ConnectionError, "the Hub could not be reached and the cache lacks a file", "Try again when online."
    if isinstance(error, hub.EntryNotFoundError):
        return (
            FileNotFoundError,
            "it lacks a file that every network of timm_stitch has",
            "Is it one that push_to_hub made?",
        )
    if status == 403:
        return PermissionError, "the token may not do that (403)", "Give a token with that right (write, for a push)."
    if status == 412:
        return OSError, "somebody else committed meanwhile (412)", "Push again."
    if status == 429:
        return ConnectionError, "the Hub asks to slow down (429)", "Wait some minutes, then try again."
    if status is not None and status in (413, 507):
        return OSError, f"the Hub has no room for it ({status})", "Free some of your storage there."
    if status is not None:
        return ConnectionError, f"the Hub answered {status}", "Try again later."
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return (
            OSError,
            f"there is no room on the disk ({os.strerror(error.errno)})",
            "Free some, or give another cache_dir.",
        )
    if isinstance(error, (ConnectionError, TimeoutError)) or type(error).__module__.split(".")[0] in (
        "httpx", "httpx2", "httpcore", "httpcore2", "requests", "urllib3",
    ):  # fmt: skip
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        return ConnectionError, f"the connection failed ({reason:.120})", "Try again; a pull goes on with what it has."
    return None


def unreadable(path: str | os.PathLike[str], error: Exception) -> ValueError:
    """What a file of weights that cannot be read raises: one line, whatever stands in the file."""
    reason = " ".join(str(error).split()) or type(error).__name__
    return ValueError(
        f"{str(path)!r} is not a readable weights file ({reason:.120}): it may be truncated, or of another network. "
        "Delete it and fetch it again, or give another file."
    )
