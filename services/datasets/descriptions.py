"""TOML descriptions read into pydantic models; errors name the file, the key, the value and the expectation.

Knows nothing of what is described.
"""

import difflib
import json
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeVar, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError

Model = TypeVar("Model", bound=BaseModel)

# TOML has lists only, strict tuples take tuples only.
Names = Annotated[tuple[str, ...], Field(strict=False)]


class Section(BaseModel):
    """One table of a description: an unknown key or a value of another type is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Problem(NamedTuple):
    """One thing wrong in a description."""

    key: str  # dotted path in the TOML file, "" for the file itself
    value: object  # what stands there
    expected: str  # what should


class DatasetError(ValueError):
    """A description that cannot be used; `problems` holds everything found wrong."""

    def __init__(self, source: str, problems: Iterable[Problem]) -> None:
        self.source = source
        self.problems = tuple(problems)
        lines = [f"{key} = {shown(value)}: {expected}" if key else expected for key, value, expected in self.problems]
        super().__init__(f"{source}: " + "\n  ".join(lines))


def load_description(model: type[Model], path: str | Path) -> Model:
    """The model that a TOML file describes; DatasetError if it cannot be read or is not valid."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise DatasetError(str(path), [Problem("", None, f"cannot be read: {error.strerror}")]) from error
    except UnicodeDecodeError as error:
        raise DatasetError(str(path), [Problem("", None, f"is not UTF-8: {error.reason}")]) from error
    return parse_description(model, text, source=str(path))


def parse_description(model: type[Model], text: str, source: str) -> Model:
    """As `load_description`, from a TOML text; `source` names it in errors."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise DatasetError(source, [Problem("", None, f"is not TOML: {error}")]) from error
    try:
        return model.model_validate(document)
    except ValidationError as error:
        raise DatasetError(source, _problems_of(error, model)) from None


def nearest(word: str, known: Iterable[str]) -> str:
    """`; did you mean "..."?` where a known word is close, else an empty text: made to follow a sentence."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f'; did you mean "{close[0]}"?' if close else ""


def shown(value: object, limit: int = 80) -> str:
    """A value for an error message: as JSON where it can be, cut to `limit` characters, always encodable."""
    try:
        text = json.dumps(value, ensure_ascii=False)
    except RecursionError:
        text = f"a deeply nested {type(value).__name__}"
    except (TypeError, ValueError):
        text = repr(value)
    text = text if len(text) <= limit else text[: limit - 3] + "..."
    return text.encode(errors="backslashreplace").decode()


def listed(names: Iterable[str]) -> str:
    return ", ".join(names) or "(none)"


def _problems_of(error: ValidationError, model: type[BaseModel]) -> list[Problem]:
    """Pydantic's errors in our words."""
    problems: list[Problem] = []
    for found in error.errors(include_url=False):
        location, value = found["loc"], found["input"]
        key = ".".join(str(part) for part in location)
        inner = found.get("ctx", {}).get("error")
        if isinstance(inner, DatasetError):
            problems += inner.problems
        elif found["type"] == "extra_forbidden":
            known = _keys(_type_at(model, location[:-1]))
            hint = nearest(str(location[-1]), known)
            problems.append(Problem(key, value, f"unknown key, expected one of {listed(known)}{hint}"))
        elif found["type"] == "missing":
            problems.append(Problem("", None, f"{key}: missing"))
        elif found["type"] == "literal_error":
            words = get_args(_type_at(model, location))
            hint = nearest(str(value), words)
            problems.append(Problem(key, value, f"expected one of {listed(words)}{hint}"))
        else:
            problems.append(Problem(key, value, found["msg"][0].lower() + found["msg"][1:]))
    return problems


def _type_at(model: type[BaseModel], location: tuple[int | str, ...]) -> Any:
    """The annotation at a place of the document: a model, a Literal, ..."""
    annotation: Any = model
    for part in location:
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            annotation = annotation.model_fields[str(part)].annotation
        elif get_origin(annotation) is dict:
            annotation = get_args(annotation)[1]
        elif get_origin(annotation) is tuple:
            annotation = get_args(annotation)[0]
        if type(None) in get_args(annotation):  # an optional section
            annotation = next(inner for inner in get_args(annotation) if inner is not type(None))
    return annotation


def _keys(annotation: Any) -> list[str]:
    return list(annotation.model_fields)
