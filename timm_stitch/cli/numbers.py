"""Numbers of the command line, each with the range that it declares: one line names the flag of any other."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from typing import Any

MOST_IMAGES = 1_000_000  # of a call
MOST_THREADS = 1024
LARGEST = 2**63 - 1  # what torch and the standard library take as a whole number


class InRange(argparse.Action):
    """An option, of one number or several, that refuses those outside of its range.

    Attributes:
        least: the smallest number.
        most: the largest number.
    """

    least: float
    most: float

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        """Store the numbers.

        Raises:
            ValueError: naming the option, if one is out of range.
        """
        numbers: Sequence[Any] = values if isinstance(values, list) else [values]
        for value in numbers:
            if not value <= self.most:  # NaN is not either
                raise ValueError(f"{self.option_strings[0]} must be at most {self.most:,}, got {value}.")
            if value < self.least:
                limit = "above 0" if 0 < self.least < 1 else f"{self.least:,} or more"
                raise ValueError(f"{self.option_strings[0]} must be {limit}, got {value}.")
        setattr(namespace, self.dest, values)


def in_range(least: float = -LARGEST - 1, most: float = LARGEST) -> type[InRange]:
    """Make the `action` of an option of numbers.

    Args:
        least: the smallest number.
        most: the largest number.
    """
    return type("InRange", (InRange,), {"least": least, "most": most})


def positive() -> type[InRange]:
    """Make the `action` of an option of numbers above 0, infinity included, which limits nothing."""
    return in_range(math.ulp(0.0), math.inf)
