"""Templates: fields, segments, other words, and what is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.decoder.verbalizer.template import Field, TemplateError, parse_template


def filled(source: str, values: dict[str, str]) -> str:
    return "".join(run.text for run in parse_template(source).fill(lambda field: values.get(field.name)))


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{title}", "Heat"),
        ("{title}[ ({year})]", "Heat"),
        ("{title}[, {genre}]!", "Heat, Drama!"),
        ("{title}[, {genre} of {year}]!", "Heat!"),
        ("{title}[, {genre} of {year?no year}]!", "Heat, Drama of no year!"),
        ("{year}", "unknown"),
        ("{year?}", ""),
        ("{year?n/a}", "n/a"),
        ("[[{title}]] {{x}}", "[Heat] {x}"),
        ("", ""),
    ],
)
def test_fill(source: str, text: str) -> None:
    assert filled(source, {"title": "Heat", "genre": "Drama"}) == text


def test_a_field_has_a_format_and_other_words() -> None:
    assert list(parse_template("{a|, }[{ b |x?none}]").fields()) == [Field("a", ", "), Field("b", "x", "none")]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("a {title", "the { at 2 is never closed"),
        ("a [ {title}", "the . at 2 is never closed"),
        ("a ]", "] at 2: nothing is open there"),
        ("a }", "} at 2: nothing is open there"),
        ("[ {a} [ {b} ]", "segments have no segments"),
        ("[ no field ]", "has no field; for the character write"),
        ("{}", "names no field"),
        ("{|x}", "names no field"),
    ],
)
def test_refused(source: str, message: str) -> None:
    with pytest.raises(TemplateError, match=message):
        parse_template(source)


@given(value=st.text())
def test_a_value_is_never_read_as_a_template(value: str) -> None:
    assert filled("<{title}>", {"title": value}) == f"<{value}>"


@given(source=st.text(alphabet="ab{}[]|? ", max_size=20))
def test_any_text_is_a_template_or_refused(source: str) -> None:
    try:
        template = parse_template(source)
    except TemplateError:
        return
    assert "".join(run.text for run in template.fill(lambda _: "v")) is not None
