"""What other libraries raise becomes one line, and numbers are finite."""

import numpy as np
import pytest

from deepjax.errors import InputError, first_line
from deepjax.foreign import check_finite, reading


class Unknown(Exception):
    """An exception that no list of types would have."""


@pytest.mark.parametrize(
    "error", [Unknown("a\nb"), MemoryError("a"), KeyError("a"), RecursionError("a"), IndexError("a")]
)
def test_any_exception_is_one_line(error):
    refused = pytest.raises(InputError, match=r"^x.bin: cannot be read \((KeyError ')?a'?\); write it again$")
    with refused, reading("x.bin: cannot be read", "write it again"):
        raise error


def test_input_errors_and_interrupts_pass():
    for error in (InputError("mine"), KeyboardInterrupt()):
        with pytest.raises(type(error)) as caught, reading("x", "y"):
            raise error
        assert caught.value is error


def test_lines_have_no_addresses_and_no_colors():
    assert first_line(ValueError(f"bad {object()}")) == "bad object"
    assert first_line(ValueError("\x1b[1mdo\x1b[0m it")) == "do it"
    assert first_line(ValueError()) == "ValueError"


def test_arrays_that_are_not_finite_are_named():
    check_finite({"a": np.ones(3), "b": np.float16(1)}, "x")
    with pytest.raises(InputError, match="^x b: 2 of 3 values are not finite"):
        check_finite({"a": np.ones(3), "b": np.array([np.nan, np.inf, 1])}, "x")
