"""The metrics of rows: their names for people, which direction is better, and the digits to print.

All that ranks rows asks here: the frontier, `select`, curves, tables and cards. A metric that is not listed counts as
better if it is higher, and has its own name.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from .timings import Row


@dataclass(frozen=True)
class Metric:
    """A metric of a row.

    Args:
        name: the key of the metric in a row.
        words: its name for people, with the unit.
        higher_is_better: whether a higher value is better.
        digits: the number of decimals to print.
        percent: whether its values are from 0 to 100.
    """

    name: str
    words: str
    higher_is_better: bool = True
    digits: int = 2
    percent: bool = False

    def gain(self, value: float) -> float:
        """Turn a value into a number that is higher for better values."""
        return value if self.higher_is_better else -value


def _percent(name: str, words: str) -> Metric:
    return Metric(name, f"{words}, %", percent=True)


def _error(name: str, words: str, digits: int = 3) -> Metric:
    return Metric(name, words, higher_is_better=False, digits=digits)


# In the order in which they are taken as the score of rows that have several.
METRICS = {
    metric.name: metric
    for metric in (
        _percent("top1", "top-1 accuracy"),
        _percent("miou", "mean IoU"),
        _percent("delta1", "depths within a ratio of 1.25"),
        _error("abs_rel", "absolute relative error of depth"),
        _error("rmse", "root mean square error of depth, m"),
        _error("silog", "scale-invariant log error of depth"),
        _percent("top5", "top-5 accuracy"),
        _percent("aacc", "accuracy over all pixels"),
        _percent("macc", "mean accuracy of classes"),
        _error("perplexity", "perplexity", digits=2),
        _error("loss", "loss"),
    )
}


def metric_of(name: str) -> Metric:
    """Look a metric up by the key of its column.

    Examples:
        >>> from timm_stitch.plan.metrics import metric_of
        >>> metric_of("abs_rel").higher_is_better, metric_of("f1").words
        (False, 'f1')
    """
    return METRICS.get(name) or Metric(name, name)


def main_score(rows: Iterable[Row]) -> str:
    """Find the score by which rows are ranked: the first metric that a row has, else the first that was published.

    `top1` if there is none.

    Examples:
        >>> from timm_stitch.plan.metrics import main_score
        >>> main_score([{"stitch_id": 0, "loss": 0.3, "miou": 41.2}])
        'miou'
    """
    rows = list(rows)
    for prefix in ("", "published_"):
        for name in METRICS:
            if any(row.get(prefix + name) is not None for row in rows):
                return name
    return "top1"
