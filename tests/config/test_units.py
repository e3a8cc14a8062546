import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekd.config.units import UNITS, format_quantity, parse


@pytest.mark.parametrize(
    ("text", "dimension", "value"),
    [
        ("20 ms", "time", 0.02),
        ("20ms", "time", 0.02),
        ("1.5 s", "time", 1.5),
        ("300 µs", "time", 3e-4),
        ("8 MiB", "bytes", 8 * 1024**2),
        ("8 MB", "bytes", 8e6),
        ("0.5 points", "points", 0.005),
        ("97 %", "share", 0.97),
        (0.97, "share", 0.97),
        ("3 x", "ratio", 3.0),
        ("1e-4", "number", 1e-4),
    ],
)
def test_a_quantity_is_read_in_base_units(text, dimension, value):
    assert parse(text, dimension) == pytest.approx(value)


@pytest.mark.parametrize(
    ("text", "dimension"),
    [
        ("20", "time"), (20, "time"), ("20 MB", "time"), ("fast", "time"), ("1e999 s", "time"),
        ("ms", "time"), ("1 2 ms", "time"), ("", "bytes"), ("nan", "share"), ("5 %", "points"),
    ],
)  # fmt: skip
def test_a_missing_or_foreign_unit_is_refused_with_an_example(text, dimension):
    with pytest.raises(ValueError, match=r"for example|too large"):
        parse(text, dimension)


@given(st.sampled_from(sorted(UNITS)), st.text(max_size=12))
def test_any_text_is_a_finite_number_or_a_value_error(dimension, text):
    try:
        value = parse(text, dimension)
    except ValueError:
        return
    assert abs(value) < float("inf")


@pytest.mark.parametrize(
    ("value", "dimension", "text"),
    [
        (0.00213, "time", "2.13 ms"),
        (8.5e-6, "time", "8.5 µs"),
        (3e-9, "time", "3 ns"),
        (1234567, "bytes", "1.18 MiB"),
        (12, "bytes", "12 B"),
        (0.0051, "points", "0.51 points"),
        (0.9931, "share", "99.31 %"),
        (24.24, "ratio", "24.2×"),
        (123456, "rate", "123,456 /s"),
    ],
)
def test_a_quantity_is_shown_as_people_read_it(value, dimension, text):
    assert format_quantity(value, dimension) == text
