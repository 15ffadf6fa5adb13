"""Files of every format in, rows and rejects out."""

import gzip
import json
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.datasets.dataset import EVENT_ARROW_SCHEMA
from services.importing import ImportFileError, import_events, import_items, import_users

from .worlds import COLUMNS, FORMATS, SHOP, ListSink, rows, write_file

BAD = {
    "brand": ["k" * 600],
    "tags": ["a||b"],
    "stock": ["12x", "1.5", "9" * 30, "٣"],
    "price": ["nan", "inf", "cheap"],
    "active": ["maybe"],
    "added": ["yesterday", "2020-02-30"],
    "description": ["d" * 65_537],
    "sku": ["", "s" * 4096, "🎬" * 129],
}
BAD_JSON = {
    "brand": [5, True, ["a"], {}],
    "tags": ["a", [1], [""], ["k" * 513]],
    "stock": ["1", 1.5, True, 2**63],
    "price": ["1", True],
    "active": [1, "true"],
    "added": [True, 1.5, "soon", 10**18],
    "description": [3],
    "sku": [None, "", 1.5, True, "s" * 4096],
}
ACTIONS = {"view": 4, "buy": 2}


def items(path, folder, sink=None, **options):
    sink = ListSink() if sink is None else sink
    return import_items(path, SHOP, sink, data_dir=folder, **options), sink


def events(path, folder, sink=None, dataset=SHOP, **options):
    sink = ListSink() if sink is None else sink
    return import_events(path, dataset, sink, data_dir=folder, **options), sink


def with_unit(unit):
    section = SHOP.events.model_copy(update={"ts_unit": unit})
    return SHOP.model_copy(update={"events": section})


def all_rejects(report):
    if report.rejects_file is None:
        return []
    return [json.loads(line) for line in report.rejects_file.read_text(encoding="utf-8").splitlines()]


def lines(path, *texts, newline="\n"):
    path.write_text(newline.join(texts) + newline, encoding="utf-8", newline="")
    return path


@pytest.mark.parametrize("form", FORMATS)
@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(table=st.lists(rows, max_size=8), batch_rows=st.integers(1, 9))
def test_a_valid_table_comes_through_unchanged(form, table, batch_rows):
    with tempfile.TemporaryDirectory() as folder:
        path = write_file(Path(folder) / f"items.{form}", table)
        report, sink = items(path, Path(folder), batch_rows=batch_rows)
    expected = [
        {{"sku": "item_id", "description": "blurb"}.get(name, name): value for name, value in row.items()}
        for row in table
    ]
    assert sink.rows() == expected
    assert (report.num_rows, report.num_imported, report.num_rejected) == (len(table), len(table), 0)
    assert report.num_duplicates == len(table) - len({row["sku"] for row in table})
    assert report.rejects == () and report.rejects_file is None and not report.unknown_columns
    assert [number for _, number, _ in sink.batches] == list(range(-(-len(table) // batch_rows)))


@pytest.mark.parametrize("form", ["csv", "jsonl"])
@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(data=st.data())
def test_every_bad_cell_is_reported_with_its_row_and_column(form, data):
    table = data.draw(st.lists(rows, min_size=1, max_size=8))
    spoiled = [dict(row) for row in table]
    where = data.draw(st.sets(st.tuples(st.integers(1, len(table)), st.sampled_from(list(COLUMNS))), max_size=6))
    for row, column in where:
        spoiled[row - 1][column] = data.draw(st.sampled_from((BAD if form == "csv" else BAD_JSON)[column]))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"items.{form}"
        if form == "csv":
            for row in spoiled:
                row["tags"] = row["tags"].split("|") if isinstance(row.get("tags"), str) else row.get("tags")
        write_file(path, spoiled)
        report, sink = items(path, Path(folder), batch_rows=data.draw(st.integers(1, 9)))
        found = all_rejects(report)
    assert {(reject["row"], reject["column"]) for reject in found} == where
    assert len(found) == len(where)
    assert all(reject["reason"] and reject["file"] == str(path) for reject in found)
    bad_rows = {row for row, _ in where}
    assert report.num_rejected == len(bad_rows)
    assert [row["item_id"] for row in sink.rows()] == [
        row["sku"] for number, row in enumerate(table, start=1) if number not in bad_rows
    ]


def test_rejects_are_all_in_the_file_and_twenty_in_the_report(tmp_path):
    path = lines(
        tmp_path / "i.csv", "sku,stock,description", *(f"s{n},x{n}," if n % 2 else f"s{n},{n}," for n in range(100))
    )
    report, _ = items(path, tmp_path, batch_rows=7)
    assert (report.num_imported, report.num_rejected, len(report.rejects)) == (50, 50, 20)
    found = all_rejects(report)
    assert [reject["row"] for reject in found] == list(range(2, 101, 2))
    assert found[0] == {
        "file": str(path),
        "row": 2,
        "column": "stock",
        "value": "'x1'",
        "reason": "expected an integer between -2^63 and 2^63 - 1",
    }
    assert report.rejects[0] == (2, "stock", "'x1'", found[0]["reason"])
    assert report.rejects_file == tmp_path / "imports" / f"{report.sha256}-items-rejects.jsonl"


def test_long_values_are_cut(tmp_path):
    path = lines(tmp_path / "i.csv", "sku,stock,description", "a," + "9" * 5000 + ",")
    report, _ = items(path, tmp_path)
    assert len(report.rejects[0].value) < 200


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_a_missing_column_is_named_with_what_there_is_and_what_to_set(tmp_path, form):
    path = write_file(
        tmp_path / f"i.{form}", [{"skus": "a", "brand": "b"}], {"skus": pa.string(), "brand": pa.string()}
    )
    with pytest.raises(ImportFileError) as caught:
        items(path, tmp_path)
    for part in (f"i.{form}", "'sku'", '"skus"?', "skus, brand", "id under [items]"):
        assert part in str(caught.value)
    path = write_file(tmp_path / f"j.{form}", [{"sku": "a"}], {"sku": pa.string()})
    with pytest.raises(ImportFileError, match=r"'description'.*blurb\.column under \[items\.attributes\]"):
        items(path, tmp_path)
    path = write_file(tmp_path / f"e.{form}", [], {"user_id": pa.string()})
    with pytest.raises(ImportFileError, match=r"'item_id'.*item_id under \[events\]"):
        events(path, tmp_path)


def test_unknown_and_absent_columns_are_named(tmp_path):
    path = lines(tmp_path / "i.csv", "sku,colour,description", "a,red,x", "b,,y")
    report, _ = items(path, tmp_path)
    assert report.unknown_columns == {"colour": 2}
    assert report.absent_columns == ("brand", "tags", "stock", "price", "active", "added")
    path = lines(tmp_path / "i.jsonl", '{"sku":"a","colour":1}', '{"sku":"b","description":"x"}')
    report, _ = items(path, tmp_path)
    assert report.unknown_columns == {"colour": 1}
    assert "description" not in report.absent_columns and "brand" in report.absent_columns


def test_a_parquet_column_that_can_hold_no_value_is_an_error(tmp_path):
    pq.write_table(pa.table({"sku": ["a"], "description": ["x"], "price": [{"amount": 1}]}), tmp_path / "i.parquet")
    with pytest.raises(ImportFileError, match=r"'price' has type struct.*price \(float\)"):
        items(tmp_path / "i.parquet", tmp_path)


def test_broken_json_lines_are_rejected_rows(tmp_path):
    path = tmp_path / "i.jsonl"
    path.write_bytes(b'{"sku":"a"}\n{"sku":\n\n[1]\n{"sku":"b"\xff}\n{"sku":"c","price":NaN}\n{"sku":7}\r\n{"sku":"d"}')
    report, sink = items(path, tmp_path, batch_rows=3)
    assert [row["item_id"] for row in sink.rows()] == ["a", "7", "d"]
    assert [(reject.row, reject.column) for reject in report.rejects] == [(2, None), (4, None), (5, None), (6, None)]
    assert "not JSON" in report.rejects[0].reason and "JSON object" in report.rejects[1].reason
    assert (report.num_rows, report.num_imported, report.num_rejected) == (7, 3, 4)


def test_csv_lines_with_other_widths_are_rejected_rows(tmp_path):
    path = lines(tmp_path / "i.csv", "sku,description", "a,x", "b", "", "c,y,z", "d,w", newline="\r\n")
    report, sink = items(path, tmp_path, batch_rows=2)
    assert [row["item_id"] for row in sink.rows()] == ["a", "d"]
    assert [(reject.row, reject.reason) for reject in report.rejects] == [
        (2, "1 cells, the header has 2"),
        (4, "3 cells, the header has 2"),
    ]


def test_csv_bytes_that_are_no_utf8_reject_their_row_alone(tmp_path):
    path = tmp_path / "i.csv"
    path.write_bytes(b"\xef\xbb\xbfsku,description,brand\na,caf\xe9,b\nb,caf\xc3\xa9,b\n\xff,x,b\n")
    report, sink = items(path, tmp_path)
    assert sink.rows() == [{"item_id": "b", "brand": "b", "blurb": "café"}]
    assert [(reject.row, reject.column, reject.value) for reject in report.rejects] == [
        (1, "description", r"'caf\udce9'"),
        (3, "sku", r"'\udcff'"),
    ]
    assert len(all_rejects(report)) == 2


def test_csv_quotes_and_newlines(tmp_path):
    path = lines(tmp_path / "i.csv", "sku,description", '"a,1","two\nlines ""quoted"""', '"b" x,y', "c,z")
    report, sink = items(path, tmp_path)
    assert sink.rows() == [
        {"item_id": "a,1", "blurb": 'two\nlines "quoted"'},
        {"item_id": "c", "blurb": "z"},
    ]
    assert [(reject.row, reject.column) for reject in report.rejects] == [(2, None)]
    assert "not CSV" in report.rejects[0].reason


def test_an_open_quote_does_not_swallow_the_file(tmp_path):
    filler = [f"s{number},{'x' * 1000}" for number in range(400)]
    path = lines(tmp_path / "i.csv", "sku,description", 'a,"never closed', *filler)
    report, sink = items(path, tmp_path)
    assert report.num_imported > 200
    assert sink.rows()[-1]["item_id"] == "s399"
    assert report.rejects[0].row == 1


def test_files_that_cannot_be_read(tmp_path):
    (tmp_path / "e.csv").write_bytes(b"")
    (tmp_path / "e.parquet").write_bytes(b"")
    (tmp_path / "e.csv.gz").write_bytes(b"not gzip")
    (tmp_path / "cut.csv.gz").write_bytes(gzip.compress(b"sku,description\n" + b"a,b\n" * 9_999)[:-20])
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(b'{"sku":"a"}\n' * 9_999)[:-20])
    (tmp_path / "twice.csv").write_bytes(b"sku,sku,description\n")
    (tmp_path / "utf16.csv").write_bytes("sku,description\n".encode("utf-16"))
    (tmp_path / "e.xlsx").write_bytes(b"")
    for name, reason in {
        "e.csv": "empty, expected a header",
        "e.parquet": "not a Parquet file",
        "e.csv.gz": "header cannot be read",
        "cut.csv.gz": "line",
        "cut.jsonl.gz": "after line",
        "utf16.csv": "the header is not UTF-8",
        "twice.csv": "'sku' stands twice",
        "e.xlsx": "unknown kind of file, expected one of .parquet, .csv",
        "none.csv": "no such file",
    }.items():
        with pytest.raises(ImportFileError, match=f"{name}: .*{reason}"):
            items(tmp_path / name, tmp_path)
    left = list((tmp_path / "imports").iterdir())
    assert [json.loads(path.read_bytes())["report"] for path in left] == [None, None]


@pytest.mark.parametrize("form", FORMATS)
def test_no_rows_are_a_finished_import(tmp_path, form):
    report, sink = items(write_file(tmp_path / f"i.{form}", []), tmp_path)
    assert (report.num_rows, report.num_imported, sink.batches) == (0, 0, [])


def test_users_and_numeric_ids(tmp_path):
    pq.write_table(pa.table({"user_id": [1, 2], "age": [30.0, None]}), tmp_path / "u.parquet")
    sink = ListSink()
    report = import_users(tmp_path / "u.parquet", SHOP, sink, data_dir=tmp_path)
    assert sink.rows() == [{"user_id": "1", "age": 30}, {"user_id": "2"}]
    assert report.kind == "users"


def test_events_in_full(tmp_path):
    path = lines(
        tmp_path / "e.csv",
        "event_id,user_id,item_id,type,value,ts,recommendation_id,position,propensity",
        "e1,u,i,buy,2.5,2020-01-01T00:00:00Z,r1,1,0.25",
        "e2,u,i,view,,1577836800,,,",
        "e3,u,i,hover,,1577836800000,,,",
        "e1,u,i,buy,2.5,2020-01-01T00:00:00Z,r1,1,0.25",
        "e4,u,i,view,,1577836800000000,,,",
        "e5,u,,view,,,,0,1.5",
        "e6,u,i,,,2020-01-01,,2147483648,0",
    )
    report, sink = events(path, tmp_path)
    assert sink.batches[0][2].schema.equals(EVENT_ARROW_SCHEMA)
    at = 1_577_836_800_000
    common = {"user_id": "u", "item_id": "i", "ts": at}
    assert sink.rows() == [
        {
            "event_id": "e1",
            "type": "buy",
            "value": 2.5,
            "recommendation_id": "r1",
            "position": 1,
            "propensity": 0.25,
            **common,
        },
        {"event_id": "e2", "type": "view", **common},
        {"event_id": "e3", "type": "hover", **common},
    ]
    assert [(reject.row, reject.column) for reject in report.rejects] == [
        (5, "ts"),
        (6, "item_id"),
        (6, "ts"),
        (6, "position"),
        (6, "propensity"),
        (7, "type"),
        (7, "position"),
        (7, "propensity"),
    ]
    assert [reject.reason for reject in report.rejects][1:3] == ["missing", "missing"]
    assert (report.num_rows, report.num_imported, report.num_duplicates, report.num_rejected) == (7, 3, 1, 3)
    assert report.event_types == {"buy": 1, "view": 1, "hover": 1}
    assert report.unused_event_types == ("hover",)


def test_events_without_ids_get_the_same_ids_in_every_format_and_order(tmp_path):
    table = [
        {"user_id": "u", "item_id": "i", "type": "view", "ts": 1_577_836_800_000},
        {"user_id": "u", "item_id": "i", "type": "view", "value": 1.0, "ts": 1_577_836_800_000},
        {"user_id": "ui", "item_id": "", "type": "view", "ts": 1_577_836_800_000},
        {"user_id": "u", "item_id": "iview", "type": "view", "ts": 1_577_836_800_000},
        {"user_id": "uivi", "item_id": "ew", "type": "view", "ts": 1_577_836_800_000},
        {"user_id": "u", "item_id": "i", "type": "view", "ts": 1_577_836_800_001},
        {"user_id": "u", "item_id": "i", "type": "view", "ts": 1_577_836_800_000},
    ]
    columns = {
        "user_id": pa.string(),
        "item_id": pa.string(),
        "type": pa.string(),
        "value": pa.float64(),
        "ts": pa.int64(),
    }
    found = []
    for form in FORMATS:
        for order in (table, table[::-1]):
            path = write_file(tmp_path / f"{len(found)}.{form}", order, columns)
            report, sink = events(path, tmp_path, batch_rows=2)
            assert (report.num_imported, report.num_duplicates, report.num_rejected) == (5, 1, 1)
            found.append({row["event_id"] for row in sink.rows()})
    assert len(found[0]) == 5
    assert all(ids == found[0] for ids in found)


def test_the_unit_of_event_times_can_be_said(tmp_path):
    path = lines(tmp_path / "e.jsonl", '{"user_id":"u","item_id":"i","type":"view","ts":1000}', '{"ts":"1970-01-01"}')
    for unit, expected in {"s": 1_000_000, "ms": 1_000, "auto": 1_000_000}.items():
        report, sink = events(path, tmp_path / unit, dataset=with_unit(unit))
        assert [row["ts"] for row in sink.rows()] == [expected]
    report, sink = events(path, tmp_path / "iso", dataset=with_unit("iso"))
    assert sink.rows() == [] and report.rejects[0].column == "ts"


def test_the_same_bytes_are_recognised(tmp_path):
    path = lines(tmp_path / "i.csv", "sku,description", "a,x", "b,")
    first, _ = items(path, tmp_path)
    copy = tmp_path / "copy.csv"
    copy.write_bytes(path.read_bytes())
    again, sink = items(copy, tmp_path)
    assert again.already_imported and not first.already_imported
    assert (again.num_imported, again.num_written, again.file, sink.batches) == (2, 0, str(copy), [])
    forced, sink = items(copy, tmp_path, force=True)
    assert not forced.already_imported and len(sink.rows()) == 2
    copy.write_text(path.read_text(encoding="utf-8") + "c,\n", encoding="utf-8")
    assert not items(copy, tmp_path)[0].already_imported


def test_a_report_of_a_finished_import_is_kept_whole(tmp_path):
    path = lines(tmp_path / "i.csv", "sku,stock,colour,description", "a,x,red,", "b,1,red,", "b,2,,")
    first, _ = items(path, tmp_path)
    again, _ = items(path, tmp_path)
    assert again.rejects == first.rejects and again.rejects_file == first.rejects_file
    assert again.unknown_columns == {"colour": 3}
    assert (again.absent_columns, again.num_duplicates) == (first.absent_columns, 1)


def test_an_import_cut_short_goes_on_where_it_stopped(tmp_path):
    class Failing(ListSink):
        def write(self, import_id, batch, table):
            if batch == 2:
                raise OSError("disk full")
            super().write(import_id, batch, table)

    body = [f"u,i{number},view,{1_577_836_800 + number}" for number in range(10)] + ["u,,view,1"]
    path = lines(tmp_path / "e.csv", "user_id,item_id,type,ts", *body)
    failing = Failing()
    with pytest.raises(OSError, match="disk full"):
        events(path, tmp_path, failing, batch_rows=3)
    report, sink = events(path, tmp_path, ListSink(next_batch=2), batch_rows=5)
    assert [number for _, number, _ in failing.batches + sink.batches] == [0, 1, 2, 3]
    assert len({import_id for import_id, _, _ in failing.batches + sink.batches}) == 1
    assert (report.num_imported, report.num_written, report.num_rejected) == (10, 4, 1)


def test_progress_is_told(tmp_path):
    told = []
    path = write_file(tmp_path / "i.parquet", [{"sku": str(number)} for number in range(5)])
    items(path, tmp_path, batch_rows=2, progress=lambda done, total: told.append((done, total)))
    assert told == [(2, 5), (4, 5), (5, 5)]
    told.clear()
    path = write_file(tmp_path / "i.csv", [{"sku": str(number)} for number in range(3)])
    items(path, tmp_path, batch_rows=2, progress=lambda done, total: told.append((done, total)))
    assert told[-1] == (3, None)
    with pytest.raises(ValueError, match="batch_rows is 0"):
        items(path, tmp_path, batch_rows=0)


def test_duplicates_are_found_across_many_batches(tmp_path):
    body = [f"e{number % 700},u,i,view,1" for number in range(2_000)]
    path = lines(tmp_path / "e.csv", "event_id,user_id,item_id,type,ts", *body)
    report, sink = events(path, tmp_path, batch_rows=64)
    assert (report.num_imported, report.num_duplicates) == (700, 1300)
    assert [row["event_id"] for row in sink.rows()] == [f"e{number}" for number in range(700)]
