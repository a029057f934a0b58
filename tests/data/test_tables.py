import codecs

import pytest

from onepeace_lightning.data.tables import read_column, read_table, whole_rows

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


def rows(path):
    return [row.values for row in read_table(path)[1]]


def table(tmp_path, content, name="t.csv"):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize(
    ("name", "separator"), [("t.csv", ","), ("t.csv", ";"), ("t.csv", "\t"), ("t.tsv", "\t"), ("T.TSV", "\t")]
)
@pytest.mark.parametrize("mark", [b"", codecs.BOM_UTF8])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_every_form_gives_the_same_rows(tmp_path, name, separator, mark, end):
    text = end.join([f"path{separator}caption", f'a.png{separator}"x, y; z"', "", f'b.png{separator}"a\nb"', ""])
    expected = [{"path": "a.png", "caption": "x, y; z"}, {"path": "b.png", "caption": "a\nb"}]
    assert rows(table(tmp_path, mark + text.encode(), name)) == expected


def test_a_cell_of_any_length_is_read(tmp_path):
    caption = "bell " * 60_000
    assert read_column(table(tmp_path, f"path,caption\na.png,{caption}\n"), "caption") == [caption]


def test_values_that_look_like_something_else_stay_text(tmp_path):
    cells = ["#sunset", "null", "~", "007", "1e5", "NaN", "true", ""]
    assert read_column(table(tmp_path, "n,text\n" + "".join(f"1,{cell}\n" for cell in cells)), "text") == cells


@pytest.mark.parametrize("name", ["t.csv", "t.tsv"])
@pytest.mark.parametrize("row", [1, 7, 12])
def test_an_unclosed_quote_is_named_with_its_line(tmp_path, name, row):
    separator = "\t" if name == "t.tsv" else ","
    lines = [f"{i}.png{separator}" + ('"good night' if i == row else f"bell {i}") for i in range(1, 13)]
    path = table(tmp_path, "\n".join([f"path{separator}caption", *lines]) + "\n", name)
    with pytest.raises(ValueError, match=rf"{name}, line {row + 1}: a quote .* opens a value here"):
        rows(path)


def test_a_quote_that_is_closed_in_a_later_row_is_named_too(tmp_path):
    path = table(tmp_path, 'path,caption\na.png,"good night\nb.png,she said "no"\nc.png,x\n')
    with pytest.raises(ValueError, match="line 2: a quote"):
        rows(path)


def test_quotes_within_a_value_are_text(tmp_path):
    path = table(tmp_path, 'path,caption\na.png,5" nail\nb.png,"""good night"" she said"\n')
    assert read_column(path, "caption") == ['5" nail', '"good night" she said']


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("path,caption\na.png,x\n".encode("utf-16"), "UTF-16, as Excel's .*; save it as UTF-8"),
        (
            "path,caption\na.png,K\xfche\n".encode("cp1252"),
            "not UTF-8 .*Excel's plain .* is Windows-1252.*iconv -f windows-1252",
        ),
        (b"PK\x03\x04\xff\xff\xff", "is a workbook, no table"),
        (b"", "empty"),
        (b"path,path\na,b\n", "several columns 'path'"),
        (POINTER, "Git LFS pointer .*git lfs pull"),
    ],
)
def test_what_is_no_table_is_named(tmp_path, content, said):
    with pytest.raises(ValueError, match=said):
        read_table(table(tmp_path, content))


@pytest.mark.parametrize(("line", "count"), [("a.png", 1), ("a.png,x,y", 3)])
def test_rows_of_another_length_are_told(tmp_path, line, count):
    path = table(tmp_path, f"path,caption\n{line}\n")
    with pytest.raises(ValueError, match=f"line 2: {count} values, the header has 2"):
        list(whole_rows(path)[1])


def test_the_line_in_which_excel_names_the_separator_is_no_header(tmp_path):
    path = table(tmp_path, 'sep=;\r\npath;caption, long\r\na.png;"a, b"\r\n')
    [row] = read_table(path)[1]
    assert (row.line, row.values) == (3, {"path": "a.png", "caption, long": "a, b"})
