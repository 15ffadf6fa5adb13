"""The description of a data set: what it derives, and how its mistakes are told."""

import json
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pyarrow as pa
import pytest
from pydantic import BaseModel, ValidationError

from index.attributes import Attribute
from models.data.schema import Feature
from models.ranking.examples import ExampleConfig
from models.ranking.network import NetworkConfig
from models.ranking.training import RankingConfig
from services.datasets.dataset import (
    EVENT_ARROW_SCHEMA,
    ActionSpec,
    AttributeSpec,
    Dataset,
    DatasetError,
    SchemaViolation,
    parse_half_life,
)

CONFIG = Path(__file__).parents[3] / "configs" / "movielens.toml"
# Tasks name attributes of their own, and have tests of their own.
TEXT = CONFIG.read_text(encoding="utf-8").partition("[llm]")[0]
PLAIN = "\n".join(line for line in TEXT.splitlines() if not line.startswith(("network", "training")))
"""Without what was chosen for the ranker."""


@pytest.fixture(scope="module")
def movielens():
    return Dataset.load(CONFIG)


def test_movielens_derives_what_filters_may_name(movielens):
    assert movielens.attribute_schema().attributes == (
        Attribute("genre", "keyword_list"),
        Attribute("year", "int"),
        Attribute("released", "timestamp"),
    )


def test_movielens_derives_what_models_learn_from(movielens):
    schema = movielens.feature_schema()
    assert schema.item == (Feature("title", "text"), Feature("genre", "keyword_list"), Feature("year", "number"))
    assert schema.user == (
        Feature("age", "number"),
        Feature("gender", "keyword"),
        Feature("occupation", "keyword"),
    )
    assert [(action.name, action.event, action.min_value) for action in schema.actions] == [
        ("watch", "rating", None),
        ("like", "rating", 4.0),
        ("love", "rating", 5.0),
    ]
    assert [(signal.name, signal.half_life_ms) for signal in schema.signals][:4] == [
        ("watch.1d", 86_400_000),
        ("watch.7d", 604_800_000),
        ("watch.30d", 2_592_000_000),
        ("watch.all", None),
    ]
    assert (schema.positive, schema.tasks, schema.history_length) == ("like", ("watch", "like", "love"), 100)
    assert movielens.licence and "research" in movielens.licence


def test_movielens_derives_its_tables(movielens):
    assert movielens.item_arrow_schema() == pa.schema(
        {
            "item_id": pa.string(),
            "title": pa.string(),
            "genre": pa.list_(pa.string()),
            "year": pa.int64(),
            "released": pa.timestamp("ms", tz="UTC"),
        }
    ).set(0, pa.field("item_id", pa.string(), nullable=False))
    assert movielens.user_arrow_schema().names == ["user_id", "age", "gender", "occupation", "zip_code"]
    assert list(movielens.events.columns()) == EVENT_ARROW_SCHEMA.names


def test_every_type_is_typed():
    kinds = ("keyword", "keyword_list", "int", "float", "bool", "timestamp", "text")
    lines = "\n".join(f'a_{kind} = {{ type = "{kind}", model = true }}' for kind in kinds)
    start, stop = TEXT.index("[items]"), TEXT.index("[users]")
    dataset = Dataset.parse(TEXT[:start] + f"[items.attributes]\n{lines}\n" + TEXT[stop:])
    assert [feature.kind for feature in dataset.feature_schema().item] == [
        "keyword",
        "keyword_list",
        "number",
        "number",
        "number",
        "timestamp",
        "text",
    ]
    assert [str(field.type) for field in dataset.item_arrow_schema()][1:] == [
        "string",
        "list<item: string>",
        "int64",
        "double",
        "bool",
        "timestamp[ms, tz=UTC]",
        "string",
    ]


def test_a_valid_write_is_normalised(movielens):
    written = {"title": "Heat", "genre": ["Crime"], "year": 1995, "released": "1995-12-15T00:00:00Z"}
    assert movielens.validate_item(written) == {**written, "released": 818_985_600_000}
    assert movielens.validate_user({"age": 30, "gender": None, "zip_code": ""}) == {"age": 30}


def test_what_a_violation_gives_back_is_short_and_can_be_answered(movielens):
    deep: list[object] = []
    for _ in range(20_000):
        deep = [deep]
    bad = {
        "deep": deep,
        "title": "x" * 70_000,
        "year": float("nan"),
        "genre": ["\ud800"],
        "\udfff": 1,
        "released": object(),
    }
    with pytest.raises(SchemaViolation) as caught:
        movielens.validate_item(bad)
    assert len(caught.value.violations) == 6
    answer = json.dumps([list(violation) for violation in caught.value.violations], allow_nan=False)
    assert len(answer) < 2_000
    answer.encode()
    str(caught.value).encode()


def test_a_patch_keeps_nulls(movielens):
    assert movielens.validate_item({"year": None, "genre": [], "title": "x"}, partial=True) == {
        "year": None,
        "genre": None,
        "title": "x",
    }


def test_a_bad_write_names_every_violation(movielens):
    with pytest.raises(SchemaViolation) as caught:
        movielens.validate_item({"titel": "x", "a/b~": 1, "genre": ["ok", 5], "year": True, "title": "fine"})
    found = {violation.pointer: violation for violation in caught.value.violations}
    assert set(found) == {"/titel", "/a~1b~0", "/genre/1", "/year"}
    assert 'did you mean "title"?' in found["/titel"].expected
    assert found["/genre/1"].value == 5
    assert "integer" in found["/year"].expected
    assert "/genre/1: 5: expected" in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ('"keyword_list"', '"keywordlist"', ["items.attributes.genre.type", '"keywordlist"', '"keyword_list"?']),
        (
            "filter = true, model = true }\nyear",
            "fliter = true }\nyear",
            ["items.attributes.genre.fliter", '"filter"?'],
        ),
        ("half_lives", "half_live", ["signals.half_lives: missing", "signals.half_live", '"half_lives"?']),
        ('name = "movielens-100k"', "", ["name: missing"]),
        ("[retrieval]", "[retreival]", ["retreival", '"retrieval"?']),
        ('positive = "like"', 'positive = "likes"', ["retrieval.positive", '"likes"', "watch, like, love", '"like"?']),
        ('tasks = ["watch", "like", "love"]', "tasks = []", ["ranking.tasks = []", "at least one"]),
        ("love = 0.5", "loves = 0.5", ["ranking.value", '"loves"', '"love"?']),
        ("love = 0.5", "love = nan", ["ranking.value.love", "finite"]),
        ('"30d"', '"30 days"', ["signals.half_lives", '"30 days"', '"7d"']),
        ('"30d"', '"168h"', ["signals.half_lives", "the same as", '"7d"']),
        ('actions = ["watch", "like"]', 'actions = ["like", "like"]', ["signals.actions", "twice"]),
        ('title = "title"', 'title = "genre"', ["items.title", '"genre"']),
        ("min_value = 4 ", 'min_value = "4" ', ["actions.like.min_value", '"4"']),
        ("min_value = 4 ", "min_value = 4, max_value = 3 ", ["actions.like.min_value", "at most 3"]),
        ("history_length = 100", "history_length = 0", ["ranking.history_length = 0"]),
        ("history_length = 100", "history_length = true", ["ranking.history_length = true"]),
        ('ts_unit = "ms"', 'ts_unit = "us"', ["events.ts_unit", '"us"', "auto, iso, s, ms"]),
        ('ts_unit = "ms"', 'ts = "value"', ["events.ts", "taken by events.value"]),
        ('{ type = "text", model', '{ type = "text", filter = true, model', ["items.attributes.title.filter"]),
        ("age = { type", "age = { filter = true, type", ["users.attributes.age.filter", "only items"]),
        ('zip_code = { type = "keyword"', 'zip_code = { type = "keyword", column = "age"', ["zip_code.column", "age"]),
        ("year = {", '"the year" = {', ["items.attributes.the year"]),
        ("year = {", "item_id = {", ["items.attributes.item_id"]),
        ("[items]", "[items", ["is not TOML", "line"]),
    ],
)
def test_mistakes_are_told_with_file_key_value_and_expectation(tmp_path, old, new, expected):
    assert old in TEXT
    path = tmp_path / "films.toml"
    path.write_text(TEXT.replace(old, new), encoding="utf-8")
    with pytest.raises(DatasetError) as caught:
        Dataset.load(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    for part in expected:
        assert part in message
    assert "pydantic" not in message


def test_left_out_the_ranker_is_built_and_trained_as_its_own_defaults_say():
    assert Dataset.parse(PLAIN).ranking.config(seed=3) == RankingConfig(seed=3)


def test_every_part_of_the_ranker_and_of_its_training_is_a_key():
    ranking = Dataset.parse(TEXT).ranking
    for section, config, elsewhere in (
        (ranking.network, NetworkConfig(), {"contexts"}),  # what impressions tell, no setting
        (ranking.training, RankingConfig(), {"network", "retrieval", "seed"}),
        (ranking.training.examples, ExampleConfig(), {"session_gap_ms", "horizon_ms", "held_out_share", "dwell"}),
    ):
        assert set(type(section).model_fields) == {field.name for field in fields(config)} - elsewhere


def test_the_ranker_is_switched_by_lines_of_the_description():
    lines = """
[ranking.network]
history = "causal"
hidden = [32]
towers = "grouped"
groups = [["watch"], ["like", "love"]]
[ranking.training]
table_learning_rate = 0.002
sam_radius = 0.05
examples = { long_dwell = "watch", dwell_type = "genre" }
"""
    dataset = Dataset.parse(PLAIN + lines)
    config = dataset.ranking.config()
    assert config.network == NetworkConfig(
        history="causal", hidden=(32,), towers="grouped", groups=(("watch",), ("like", "love"))
    )
    assert (config.table_learning_rate, config.sam_radius, config.learning_rate) == (0.002, 0.05, 2e-3)
    assert config.examples == ExampleConfig(long_dwell="watch", dwell_type="genre")
    # What is learned from, and so what archives, indexes and models fit, is the same.
    assert dataset.feature_schema().hash() == Dataset.parse(PLAIN).feature_schema().hash()


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ('network = { history = "casual" }', ["ranking.network.history", '"casual"', '"causal"?']),
        ('network = { histroy = "causal" }', ["ranking.network.histroy", '"history"?']),
        ("network = { cross_rank = 0 }", ["ranking.network.cross_rank = 0", "greater than or equal to 1"]),
        ("network = { hidden = [64, 0] }", ["ranking.network.hidden.1 = 0"]),
        ("network = { dropout = 1.0 }", ["ranking.network.dropout = 1.0"]),
        ('network = { towers = "grouped", groups = [["watch"]] }', ["ranking.network.groups", "like, love in none"]),
        ('network = { towers = "grouped", groups = [["watch", "like", "lov"]] }', ['"lov"', '"love"?']),
        ('network = { towers = "grouped", groups = [["watch", "like", "love"], []] }', ["at least one task"]),
        ('network = { groups = [["watch", "like", "love"]] }', ['unless towers is "grouped"']),
        ("training = { table_learning_rate = 0.0 }", ["ranking.training.table_learning_rate", "greater than 0"]),
        ("training = { table_learning_rate = nan }", ["ranking.training.table_learning_rate"]),
        ('training = { optimizer = "adam" }', ["ranking.training.optimizer", '"adamw"?']),
        ("training = { sam_radius = -1.0 }", ["ranking.training.sam_radius"]),
        ("training.examples = { max_requests = 0 }", ["ranking.training.examples.max_requests = 0"]),
        ('training.examples = { long_dwell = "dwell" }', ["examples.long_dwell", "watch, like, love"]),
        ('training.examples = { dwell_type = "genre" }', ["examples.dwell_type", "without long_dwell"]),
        ('training.examples = { long_dwell = "watch", dwell_type = "year" }', ['"year": expected one of genre']),
    ],
)
def test_a_wrong_key_of_the_ranker_is_told_by_name(lines, expected):
    with pytest.raises(DatasetError) as caught:
        Dataset.parse(f"{PLAIN}\n{lines}\n")
    for part in expected:
        assert part in str(caught.value)


def test_several_mistakes_are_told_at_once():
    broken = TEXT.replace('positive = "like"', 'positive = "x"').replace("love = 0.5", "lov = 0.5")
    with pytest.raises(DatasetError) as caught:
        Dataset.parse(broken, source="films.toml")
    assert [problem.key for problem in caught.value.problems] == ["retrieval.positive", "ranking.value"]


def test_a_missing_file_and_one_that_is_no_text(tmp_path):
    with pytest.raises(DatasetError, match=r"none\.toml: cannot be read"):
        Dataset.load(tmp_path / "none.toml")
    (tmp_path / "latin.toml").write_bytes(b'name = "\xff"')
    with pytest.raises(DatasetError, match="is not UTF-8"):
        Dataset.load(tmp_path / "latin.toml")


def test_thirty_three_actions_are_too_many():
    lines = "".join(f'a{number} = {{ event = "e" }}\n' for number in range(30))
    with pytest.raises(DatasetError, match="actions"):
        Dataset.parse(TEXT.replace("[actions]\n", "[actions]\n" + lines))


def test_a_description_does_not_change(movielens):
    with pytest.raises(ValidationError):
        movielens.name = "other"


def test_users_and_events_may_be_left_out():
    start, stop = TEXT.index("[users]"), TEXT.index("# Order matters")
    dataset = Dataset.parse(TEXT[:start] + TEXT[stop:])
    assert dataset.validate_user({}) == {}
    assert dataset.events.ts_unit == "auto"
    with pytest.raises(SchemaViolation, match="none"):
        dataset.validate_user({"age": 1})


@pytest.mark.parametrize(
    ("text", "milliseconds"),
    [("90s", 90_000), ("30m", 1_800_000), ("12h", 43_200_000), ("2w", 1_209_600_000), ("all", None)],
)
def test_half_lives(text, milliseconds):
    assert parse_half_life(text) == milliseconds


@pytest.mark.parametrize("text", ["", "d", "0d", "-1d", "1.5d", "1y", "ALL", "1 d"])
def test_other_half_lives_are_refused(text):
    with pytest.raises(ValueError, match="half-life"):
        parse_half_life(text)


def test_available_from_must_be_a_timestamp() -> None:
    text = CONFIG.read_text()
    wrong = text.replace('available_from = "released"', 'available_from = "relesed"')
    with pytest.raises(DatasetError) as caught:
        Dataset.parse(wrong, "here.toml")
    (problem,) = caught.value.problems
    assert (problem.key, problem.value) == ("items.available_from", "relesed")
    assert "released" in problem.expected


def test_every_key_of_a_description_is_documented() -> None:
    text = (CONFIG.parent / "README.md").read_text().partition("# Dataset description")[2]

    def keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
        for name, field in model.model_fields.items():
            if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
                yield from keys(field.annotation, f"{prefix}{name}.")
            else:
                yield f"{prefix}{name}"

    for key in [*keys(Dataset), *keys(AttributeSpec), *keys(ActionSpec)]:
        name = key.rsplit(".", 1)[-1]
        assert f"`{key}" in text or f"`{name}`" in text, f"configs/README.md does not explain {key}"
