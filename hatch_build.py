"""Makes README.md's links absolute in the package's metadata, so that they work on a package index.

Where they lead is `Repository` in `[project.urls]`. Without it there is nothing to link to: links become their text,
and pictures are left out.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

_PICTURE = re.compile(
    r"<picture>.*?</picture>\n*|<img[^>]*>\n*|\[!\[[^]]*\]\([^)]*\)\]\([^)]*\)\n*|!\[[^]]*\]\([^)]*\)\n*", re.DOTALL
)
_OUTSIDE = r"(?!https?:|#|mailto:)"


class MetadataHook(MetadataHookInterface):
    """The hook that hatchling calls while it builds."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Set the readme of the package."""
        text = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        text = absolute(text, metadata.get("urls", {}).get("Repository"))
        metadata["readme"] = {"content-type": "text/markdown", "text": text}


def absolute(text: str, repository: str | None) -> str:
    """Rewrite the relative links and pictures of a page.

    Args:
        text: the page, in Markdown.
        repository: the URL of the repository on GitHub; none leaves links and pictures out.

    Returns:
        The page without relative links.
    """
    text = re.sub(r"^<!-- test: .*?-->\n", "", text, flags=re.MULTILINE | re.DOTALL)
    if not repository:
        return re.sub(rf"\[([^]]*)\]\({_OUTSIDE}[^)]*\)", r"\1", _PICTURE.sub("", text))
    text = re.sub(rf'(srcset|src)="{_OUTSIDE}', rf'\1="{repository}/raw/main/', text)
    text = re.sub(rf"(!\[[^]]*\]\(){_OUTSIDE}", rf"\1{repository}/raw/main/", text)
    return re.sub(rf"(?<!!)(\[[^]]*\]\(|\)\]\(){_OUTSIDE}(?=[\w./])", rf"\1{repository}/blob/main/", text)
