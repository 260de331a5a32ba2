import pytest

from advnas.spaces.nasbench201 import NASBENCH201
from advnas.tables import Table

NONE = "|none~0|+|none~0|none~1|+|none~0|none~1|none~2|"
SKIP = "|skip_connect~0|+|none~0|none~1|+|none~0|none~1|none~2|"
CONV = "|nor_conv_3x3~0|+|none~0|none~1|+|none~0|none~1|none~2|"
HEADER = "index,arch_str,cifar10_test_200,flops_m"
ROWS = [f"0,{NONE},10.0,7.5", f"1,{SKIP},83.25,7.5", f"2,{CONV},91,1e2"]


def write(path, lines, end="\n"):
    path.write_text("\n".join(lines) + end)
    return path


@pytest.fixture
def table(tmp_path):
    return Table.load(write(tmp_path / "table.csv", [HEADER, *ROWS]), NASBENCH201)


def test_lookup(table):
    assert table.columns == ("cifar10_test_200", "flops_m")
    assert table.lookup(SKIP) == {"cifar10_test_200": 83.25, "flops_m": 7.5}
    assert table.lookup(CONV) == {"cifar10_test_200": 91.0, "flops_m": 100.0}


def test_top(table):
    assert [arch for arch, _ in table.top(2)] == [CONV, SKIP]
    assert table.top(1) == [(CONV, table.lookup(CONV))]
    assert [arch for arch, _ in table.top(9, "flops_m")] == [CONV, NONE, SKIP]  # ties in the table's order


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda table: table.lookup("none"), "architecture: must have the form"),
        (lambda table: table.lookup(NONE.replace("none~2", "skip_connect~2")), "has no row for .* this table 3"),
        (lambda table: table.top(3, "accuracy"), "has no column 'accuracy'; choose among cifar10_test_200, flops_m"),
        (lambda table: table.top(0), "top: must be at least 1, got 0"),
    ],
)
def test_wrong_questions(table, call, message):
    with pytest.raises(ValueError, match=message):
        call(table)


@pytest.mark.parametrize(
    ("lines", "end", "message"),
    [
        ([], "", "must be a CSV table with columns arch_str and cifar10_test_200, got"),
        (["a,b", "1,2"], "\n", r"must be a CSV table with columns .*, got \['a', 'b'\]"),
        ([HEADER.replace("cifar10_test_200", "accuracy"), *ROWS], "\n", "must be a CSV table with columns"),
        ([HEADER], "\n", "has no rows"),
        ([HEADER, *ROWS[:2], f"2,{CONV},9"], "", "line 4: must have 4 values, got 3; the file may be truncated"),
        ([HEADER, *ROWS[:2], f"2,{CONV},91,1"], "", "line 4: must end with a line break; the file may be truncated"),
        ([HEADER, ROWS[0] + ",1", *ROWS[1:]], "\n", "line 2: must have 4 values, got 5"),
        ([HEADER, ROWS[0], "", *ROWS[1:]], "\n", "line 3: must have 4 values, got 0"),
        ([HEADER, f"0,{NONE},10,high"], "\n", "line 2: flops_m must be a finite number, got 'high'"),
        ([HEADER, f"0,{NONE},,7"], "\n", "line 2: cifar10_test_200 must be a finite number, got ''"),
        ([HEADER, f"0,{NONE},nan,7"], "\n", "line 2: cifar10_test_200 must be a finite number, got 'nan'"),
        ([HEADER, *ROWS, ROWS[1]], "\n", r"line 5: \|skip_connect~0\|.* is there twice"),
        ([HEADER, *ROWS[:2], f"1,{CONV},91,1"], "\n", "line 4: index 1 is there twice"),
        ([HEADER, f"3.0,{NONE},10,7"], "\n", "line 2: index must be a whole number, got '3.0'"),
        ([HEADER, f'0,"{NONE},10,7'], "\n", "not a CSV table: unexpected end of data"),
    ],
)
def test_damaged_table(lines, end, message, tmp_path):
    with pytest.raises(ValueError, match=r"table\.csv.*" + message):
        Table.load(write(tmp_path / "table.csv", lines, end), NASBENCH201)


def test_foreign_table(tmp_path):
    path = tmp_path / "table.csv"
    with pytest.raises(FileNotFoundError, match=r"table\.csv: no such table"):
        Table.load(path, NASBENCH201)
    path.write_bytes(b"\xfd7zXZ\x00\x00\x04")
    with pytest.raises(ValueError, match=r"table\.csv: not a CSV table"):
        Table.load(path, NASBENCH201)


def test_windows_line_ends(tmp_path, table):
    path = tmp_path / "windows.csv"
    path.write_bytes("\r\n".join([HEADER, *ROWS, ""]).encode())
    assert Table.load(path, NASBENCH201).rows == table.rows


def test_the_benchmarks_table(shared):
    table = Table.load(shared / "data" / "nasbench201.csv", NASBENCH201)
    assert len(table.rows) == 5**6
    best = "|nor_conv_3x3~0|+|nor_conv_3x3~0|nor_conv_3x3~1|+|skip_connect~0|nor_conv_3x3~1|nor_conv_3x3~2|"
    assert best in {arch for arch, _ in table.top(10)}
    assert table.top(1)[0][1]["cifar10_test_200"] == max(row["cifar10_test_200"] for row in table.rows.values())
    assert table.lookup(NONE)["cifar10_test_200"] == 10
