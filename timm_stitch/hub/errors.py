"""One-line errors for what the Hub refuses and huggingface_hub raises, and checks of tokens and names."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeGuard

from huggingface_hub import errors as hub
from huggingface_hub import get_token
from huggingface_hub.utils import HFValidationError
from huggingface_hub.utils._validators import validate_repo_id

from ..files import PathLike

_LONGEST_REASON = 600  # characters of a library's text in an error
XET_ADVICE = "Try again with HF_HUB_DISABLE_XET=1 in the environment: a mirror may serve files without that storage."


@contextmanager
def translate_hub_errors(
    action: str, left: str | Callable[[], str] = "", token: str | bool | None = None
) -> Iterator[None]:
    """Translate the errors of huggingface_hub into one line: what happened, what was left behind, what to do.

    Args:
        action: the action that may fail, e.g. "load user/name".
        left: the state that a failure leaves behind, or a function that finds it out.
        token: the token that errors must not show.

    Raises:
        OSError: or a subclass of it, instead of the error of huggingface_hub.
    """
    try:
        yield
    except Exception as error:
        redact_tokens(error, token)
        explanation = _explain(error)
        if explanation is None:
            raise
        kind, reason, advice = explanation
        state = left if isinstance(left, str) else left()
        raise kind(f"cannot {action}: {reason}{state and '; ' + state}. {advice}") from error


class FetchError(OSError):
    """A file that could not be fetched, in one line."""


def fetch_error(what: str, error: Exception, advice: str) -> FetchError:
    """Make the error for weights that could not be fetched: the library's whole reason, then what to do without them.

    Args:
        what: the weights, e.g. "'timm/resnet18.a1_in1k', the weights of 'resnet18'".
        error: the error of the library that fetches.
        advice: the way without internet.
    """
    redact_tokens(error)
    reason = " ".join(str(error).split()) or type(error).__name__
    reason = reason if len(reason) <= _LONGEST_REASON else f"{reason[:_LONGEST_REASON].rpartition(' ')[0]} …"
    return FetchError(f"could not fetch {what} ({reason.rstrip('.')}). {XET_ADVICE if is_xet_error(error) else advice}")


def local_files_advice(name: str | None, repo_id: str | None) -> str:
    """Describe how to give a timm model's weights without internet, on the command line and in Python."""
    call = "timm.create_model(..., pretrained=True, pretrained_cfg_overlay=dict(file='PATH'))"
    if name is None:
        return f"Without internet, fetch the file elsewhere and give it: {call}."
    if repo_id is None:
        anchor = f"{{architecture: {name}, pretrained_cfg_overlay: {{file: PATH}}}}"
        return f"Without internet, fetch the file elsewhere and name the anchor {anchor}; in Python, {call}."
    return (
        f"Without internet, run `hf download {repo_id} --local-dir FOLDER` elsewhere and name local-dir:FOLDER; "
        f"in Python, {call}. With HF_HUB_OFFLINE=1 in the environment only the cache is read, at once."
    )


def check_token(token: str | bool | None) -> None:
    """Refuse a token that no request can carry, without showing it.

    Raises:
        ValueError: if it is empty or has characters that no token has.
    """
    if isinstance(token, str) and not re.fullmatch(r"[!-~]+", token):
        raise ValueError(
            "the token has a line break, a blank or another character that no token has (or is empty): give it as the "
            "Hub shows it, e.g. open(path).read().strip()."
        )


def redact_tokens(error: BaseException, token: str | bool | None = None) -> None:
    """Remove tokens and signatures of addresses from the messages of an error, its causes and contexts."""
    tokens = {str(value) for value in (token, get_token()) if isinstance(value, str) and value}
    seen: set[int] = set()
    queue: list[BaseException | None] = [error]
    while queue:
        link = queue.pop()
        if link is None or id(link) in seen:
            continue
        seen.add(id(link))
        link.args = tuple(_redact(arg, tokens) for arg in link.args)
        queue += [link.__cause__, link.__context__]


def _redact(value: object, tokens: set[str]) -> object:
    if isinstance(value, (bytes, bytearray)):
        value = value.decode(errors="replace")
    if not isinstance(value, str):
        return value
    for token in tokens:
        value = value.replace(token, "…")
    value = re.sub(r"(?i)(bearer\s+)[^\s'\"]+", r"\1…", value)
    return re.sub(r"(https?://[^\s?'\"]+)\?[^\s'\"<>]+", r"\1", value)


def is_repo_id(name: object) -> TypeGuard[str]:
    """Whether a value in a stranger's file may be the name of a repository."""
    return isinstance(name, str) and re.fullmatch(r"\w[\w.-]{0,95}/\w[\w.-]{0,95}", name) is not None


def check_repo_id(repo_id: str) -> None:
    """Refuse a text that cannot be the name of a repository.

    Raises:
        ValueError: naming the text.
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


def is_xet_error(error: BaseException | None) -> bool:
    """Whether an error, or its cause, comes from the Hub's Xet storage."""
    while error is not None:
        address = str(getattr(getattr(error, "response", None), "url", ""))
        text = f"{type(error).__module__} {address} {error}".lower()
        if re.search(r"hf_xet|/xet-(read|write)-token|\bxet\b|\bcas\b", text):
            return True
        error = error.__cause__
    return False


_BY_STATUS: dict[object, tuple[type[OSError], str, str]] = {
    403: (PermissionError, "the token may not do that (403)", "Give a token with that right (write, for a push)."),
    412: (OSError, "there is a newer commit (412)", "Push again."),
    413: (OSError, "the storage on the Hub is full (413)", "Free some of it."),
    429: (ConnectionError, "there were too many requests (429)", "Wait some minutes, then try again."),
    507: (OSError, "the storage on the Hub is full (507)", "Free some of it."),
}


def _explain(error: Exception) -> tuple[type[OSError], str, str] | None:
    """Explain an error by a class, a reason and advice; None if neither the Hub nor the connection caused it."""
    if isinstance(error, (RuntimeError, hub.LocalEntryNotFoundError)) and isinstance(error.__cause__, Exception):
        explanation = _explain(error.__cause__)  # huggingface_hub wraps errors of large files and of downloads
        if explanation is not None:
            return explanation
    if is_xet_error(error):
        return ConnectionError, "the Hub's storage (Xet) does not answer", XET_ADVICE
    status = getattr(getattr(error, "response", None), "status_code", None)
    login = "Check the name; if it is private, log in (`hf auth login`) or give a token that may read it."
    if isinstance(error, hub.GatedRepoError):
        return PermissionError, "its owner must grant access first", "Ask for access on its page, then log in."
    if status == 401 or isinstance(error, hub.LocalTokenNotFoundError):
        return PermissionError, "the Hub does not know the user, or there is no such repository (401)", login
    if isinstance(error, hub.RepositoryNotFoundError):
        return FileNotFoundError, "there is no such repository", login
    if isinstance(error, hub.RevisionNotFoundError):
        return FileNotFoundError, "there is no such branch, tag or commit", "The repository's page lists them."
    if isinstance(error, (hub.LocalEntryNotFoundError, hub.OfflineModeIsEnabled)):
        return ConnectionError, "the Hub could not be reached and the cache lacks a file", "Try again when online."
    if isinstance(error, hub.EntryNotFoundError):
        reason = "it lacks a file that every network of timm_stitch has"
        return FileNotFoundError, reason, "Expected a repository that push_to_hub made."
    if status in _BY_STATUS:
        return _BY_STATUS[status]
    if status is not None:
        return ConnectionError, f"the Hub answered {status}", "Try again later."
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        reason = f"the disk is full ({os.strerror(error.errno)})"
        return OSError, reason, "Free some space, or give another cache_dir."
    if isinstance(error, (ConnectionError, TimeoutError)) or type(error).__module__.split(".")[0] in (
        "httpx", "httpx2", "httpcore", "httpcore2", "requests", "urllib3",
    ):  # fmt: skip
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        return (
            ConnectionError,
            f"the connection failed ({reason:.120})",
            "Try again; what was sent or fetched whole is not sent again.",
        )
    return None


def unreadable(path: PathLike, error: Exception) -> ValueError:
    """Make the error for a weights file that cannot be read, in one line whatever the file holds."""
    reason = " ".join(str(error).split()) or type(error).__name__
    foreign = re.search(r"Unsupported global: GLOBAL ([\w.]{1,80})", f"{error} {error.__cause__}")  # timm wraps torch's
    if foreign:
        return ValueError(
            f"{str(path)!r} is not a readable weights file: it holds more than weights ({foreign[1]}), as "
            "training checkpoints do, and that is never unpickled. If you trust it, keep its weights alone, where its "
            "own packages are installed: torch.save(torch.load(PATH, weights_only=False)['state_dict'], 'weights.pth')."
        )
    return ValueError(
        f"{str(path)!r} is not a readable weights file ({reason:.120}): it may be truncated, or of another network. "
        "Delete it and fetch it again, or give another file."
    )
