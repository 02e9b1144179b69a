"""Measure how README.md and docs/ read: sentence lengths, and words that this project avoids.

`python docs/sentences.py [ROOT]` prints a row for each page. Code, tables and headings do not count.
"""

from __future__ import annotations

import re
import statistics
import sys
from pathlib import Path

# Words and phrases that have a plainer equivalent.
AVOIDED = [
    "promise", "trained out", "dear", "dearer", "dearest", "beside", "anew", "said", "asked", "told", "tells",
    "gives up", "give up", "given up", "gave up", "a stranger's", "somebody's", "of one's own", "of yours",
    "where it is not known", "the whole way", "at hand", "is none", "as it comes",
]  # fmt: skip
OPENINGS = ("What", "Of", "Where")  # of which no sentence makes its subject


def sentences(page: str) -> list[str]:
    """The sentences of a page: paragraphs and list items, without code, tables, headings and comments."""
    page = re.sub(r"^---\n.*?\n---\n", "", page, flags=re.DOTALL)
    page = re.sub(r"<!--.*?-->", "", page, flags=re.DOTALL)
    page = re.sub(r"^( *)```.*?^\1```$", "\n", page, flags=re.MULTILINE | re.DOTALL)
    page = re.sub(r"^\s*(#|\||:::|<|===|\?\?\?|!!!|!\[|\[!\[).*$", "\n", page, flags=re.MULTILINE)
    page = re.sub(r"`[^`]*`", "Code", page)
    page = re.sub(r"!?\[([^]]*)\]\([^)]*\)", r"\1", page).replace("*", "")
    blocks = re.split(r"\n\s*\n|^\s*(?:[-+]|\d+\.) ", page, flags=re.MULTILINE)
    found = [s for block in blocks for s in re.split(r"(?<=[.!?:;])\s+(?=[A-Z(\"'])", " ".join(block.split()))]
    return [sentence for sentence in found if len(words(sentence)) > 1]


def words(sentence: str) -> list[str]:
    """The words of a sentence; a figure is one."""
    return re.findall(r"[\w][\w./,'’%-]*", sentence)


def avoided(page_sentences: list[str]) -> list[str]:
    """Words of the list that are on a page, and openings of sentences, each with how often."""
    text = " ".join(page_sentences)
    counts = {word: len(re.findall(rf"\b{word}\b", text, re.IGNORECASE)) for word in AVOIDED}
    counts |= {f"{word} …": sum(s.startswith(f"{word} ") and not s.endswith("?") for s in page_sentences)
               for word in OPENINGS}  # fmt: skip
    return [f"{word} ({count})" for word, count in counts.items() if count]


def main(root: Path) -> None:
    """Print the table."""
    pages = [root / "README.md", *sorted((root / "docs").rglob("*.md"))]
    print(f"{'page':<28} {'sentences':>9} {'median':>6} {'longest':>7} {'over 30':>7}  avoided")
    every: list[str] = []
    for page in [*pages, None]:
        found = every if page is None else sentences(page.read_text(encoding="utf-8"))
        if page is not None:
            every += found
        if found:
            lengths = [len(words(sentence)) for sentence in found]
            name = "all" if page is None else str(page.relative_to(root))
            print(
                f"{name:<28} {len(lengths):>9} {statistics.median(lengths):>6g} {max(lengths):>7} "
                f"{sum(n > 30 for n in lengths):>7}  {', '.join(avoided(found))}"
            )
    print(f"\nLongest: {max(every, key=lambda sentence: len(words(sentence)))}")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent.parent)
