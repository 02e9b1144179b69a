"""Errors of libraries become errors of input."""

import pytest

from timm_stitch.errors import WrongTypeError, library_errors


def test_a_librarys_error_names_the_input():
    with pytest.raises(ValueError, match=r"^cannot make 'x' \(no such thing\)\.$") as raised:  # noqa: SIM117
        with library_errors("cannot make 'x'", RuntimeError):
            raise RuntimeError("no such thing\nand a long story")
    assert isinstance(raised.value.__cause__, RuntimeError)


@pytest.mark.parametrize("error", [KeyError("x"), WrongTypeError("x")])
def test_other_errors_stay(error):
    with pytest.raises(type(error)), library_errors("cannot make 'x'", TypeError):
        raise error
