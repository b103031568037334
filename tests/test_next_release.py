"""Which releases of Transformers `make test-next` runs with, and which of them have to pass."""

import pytest
from packaging.specifiers import SpecifierSet

from next_release import releases_to_test

CASES = {
    "none": (["5.23.0", "5.24.0"], {}),
    "inside": (["5.24.2", "5.24.1", "5.24.0"], {"5.24.2": True}),
    "outside": (["5.25.1", "5.25.0", "5.24.0"], {"5.25.1": False}),
    "both": (["6.0.0", "5.24.10", "5.24.9", "5.24.0"], {"5.24.10": True, "6.0.0": False}),
    "a candidate of the next minor release": (["5.25.0rc1", "5.24.0"], {"5.25.0rc1": False}),
    "a candidate that pip would not take": (["5.24.1rc1", "5.24.0"], {}),
}


@pytest.mark.parametrize(("released", "expected"), CASES.values(), ids=CASES)
def test_releases_to_test(released, expected):
    assert releases_to_test("5.24.0", released, SpecifierSet(">=5.16.1,<5.25")) == expected
