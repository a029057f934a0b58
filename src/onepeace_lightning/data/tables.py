"""Tables of users: comma, semicolon or tab between values, a header line, UTF-8 with or without a byte order mark."""

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from onepeace_lightning.files import check_fetched

TABLES = (".csv", ".tsv")
"""Extensions of tables."""

_LONGEST_CELL = 2**31 - 1


@dataclass(frozen=True)
class Row:
    """A row of a table.

    Attributes:
        line: number of the line on which it ends, counted from 1.
        values: by column; of a row that is too short the last ones are missing.
        surplus: values beyond the columns.
    """

    line: int
    values: dict[str, str]
    surplus: int


def read_table(path: Path) -> tuple[list[str], Iterator[Row]]:
    """Open a table.

    Returns:
        The columns, and the rows, blank lines left out.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not UTF-8, has no header or the same column twice, or (while its rows are read) a quote is not
            closed.
    """
    text, said = _without_separator_line(_text(path))
    csv.field_size_limit(_LONGEST_CELL)  # the default refuses cells beyond 128 kB
    delimiter = said or ("\t" if path.suffix.lower() == ".tsv" else _delimiter(text))
    # Strict: else an unclosed quote swallows the rest of the file.
    skipped = int(said is not None)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    rows = _checked(path, reader, skipped)
    header = next(rows, None)
    if header is None:
        raise ValueError(f"{path} is empty; its first line must name the columns")
    columns = header[1]
    if twice := sorted({column for column in columns if columns.count(column) > 1}):
        raise ValueError(f"{path} has several columns {', '.join(map(repr, twice))}; its columns are {columns}")
    return columns, (
        Row(line, dict(zip(columns, values, strict=False)), max(0, len(values) - len(columns))) for line, values in rows
    )


def whole_rows(path: Path) -> tuple[list[str], Iterator[Row]]:
    """``read_table`` of a table whose rows must have as many values as there are columns.

    Raises:
        ValueError: as ``read_table``; or (while its rows are read) a row has another number of values.
    """
    columns, rows = read_table(path)

    def checked() -> Iterator[Row]:
        for row in rows:
            if (count := len(row.values) + row.surplus) != len(columns):
                raise ValueError(
                    f"{path}, line {row.line}: {count} values, the header has {len(columns)}; put quotes around values"
                    " that hold the separator"
                )
            yield row

    return columns, checked()


def read_column(path: Path, column: str | None) -> list[str]:
    """A column of a table as it is written there.

    Raises:
        ValueError: as ``whole_rows``; or there is no such column, or no row.
    """
    columns, rows = whole_rows(path)
    if column is None or column not in columns:
        asked = f"has no column {column!r}" if column else "is a table: say which column with --column"
        raise ValueError(f"{path} {asked}; its columns are {', '.join(columns)}")
    values = [row.values[column] for row in rows]
    if not values:
        raise ValueError(f"{path} has no rows")
    return values


def _text(path: Path) -> str:
    check_fetched(path)
    data = path.read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
            found, name = "UTF-16, as Excel's “Unicode Text” is", "utf-16"
        elif data[:2] == b"PK":
            raise ValueError(f"{path} is a workbook, no table; save its sheet as “CSV UTF-8”") from error
        else:
            found = f"not UTF-8 ({error}); Excel's plain “CSV” is Windows-1252, on a Mac often Mac Roman"
            name = "windows-1252"
        raise ValueError(
            f"{path} is {found}; save it as UTF-8 (in Excel: “CSV UTF-8”), or: iconv -f {name} -t utf-8 {path} >"
            " utf8.csv"
        ) from error


def _without_separator_line(text: str) -> tuple[str, str | None]:
    """A table without the line ``sep=;`` that Excel understands, and the separator that it names."""
    first, _, rest = text.partition("\n")
    said = first.strip().strip('"')
    return (rest, said[4]) if said.lower().startswith("sep=") and len(said) == 5 else (text, None)


def _delimiter(text: str) -> str:
    """What separates the names in the header line; spreadsheets of many countries write semicolons."""
    header = text.lstrip("\r\n").partition("\n")[0]
    return max(",;\t", key=header.count)


def _checked(path: Path, reader: Iterator[list[str]], skipped: int) -> Iterator[tuple[int, list[str]]]:
    begin = 1 + skipped
    try:
        for values in reader:
            if values:
                yield reader.line_num + skipped, values  # type: ignore[attr-defined]
            begin = reader.line_num + skipped + 1  # type: ignore[attr-defined]
    except csv.Error as error:
        raise ValueError(
            f'{path}, line {begin}: a quote (") opens a value here and is not closed as it should be ({error}); write'
            ' a quote within a value twice and the value in quotes: """good night"" she said"'
        ) from error
