"""Find the files of `hub_cards/`, in the installed package or at the root of the repository."""

from __future__ import annotations

from pathlib import Path


def card_file(name: str) -> Path:
    """Find a file of `hub_cards/`, e.g. `"template.md"`.

    Raises:
        FileNotFoundError: if the installation lacks it.
    """
    here = Path(__file__).parents[1]
    for folder in (here / "hub_cards", here.parent / "hub_cards"):
        if (folder / name).is_file():
            return folder / name
    raise FileNotFoundError(f"this installation lacks hub_cards/{name}: install timm_stitch again.")
