"""index/FORMAT.md against the code: its limits, files and examples."""

import re
from pathlib import Path

from index import tree
from index.filter import parse_filter
from index.snapshot import FORMAT_VERSION
from tests.index.test_snapshot import make_index
from tests.index.worlds import SCHEMA

TEXT = (Path(__file__).parents[2] / "index" / "FORMAT.md").read_text()


def test_limits_are_those_of_the_code():
    (said,) = re.findall(r"at most (\d+) levels, ([\d,]+) clauses, ([\d,]+) values\s+and ([\d,]+) characters", TEXT)
    limits = [int(number.replace(",", "")) for number in said]
    assert limits == [tree.MAX_DEPTH, tree.MAX_CLAUSES, tree.MAX_VALUES, tree.MAX_TEXT_CHARS]
    assert f"| `format_version` | {FORMAT_VERSION};" in TEXT


def test_examples_parse():
    examples = re.findall(r"^    (\S.*)$", TEXT, re.MULTILINE)
    assert len(examples) == 2
    for example in examples:
        assert parse_filter(example, SCHEMA)


def test_spellings_of_the_table_agree():
    rows = re.findall(r'^\| `(\{"field".*?\})`.*?\| (.*?) \|$', TEXT, re.MULTILINE)
    assert len(rows) == 7
    for source, texts in rows:
        for text in re.findall(r"`(.*?)`", texts):
            assert parse_filter(source, SCHEMA) == parse_filter(text, SCHEMA)


def test_every_file_and_field_is_described(tmp_path):
    info = make_index(5).snapshot(tmp_path, {})
    for path in info.path.iterdir():
        stem = re.sub(r"attribute-\d+", "attribute-PPP", path.name)
        described = f"`{stem}`" in TEXT or f"`{stem.removeprefix('attribute-PPP')}`" in TEXT
        assert described, stem
