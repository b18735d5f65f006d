"""Rows given to one statement as one JSON parameter: a hundred rows cost one execution, and one plan serves them all.

Sources: https://www.sqlite.org/json1.html#jeach,
https://www.postgresql.org/docs/current/functions-json.html (json_to_recordset).
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final, cast

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Dialect
from sqlalchemy.types import TypeDecorator

# The parameter's name: `conn.execute(statement, {ROWS: rows})`, each row a mapping of column names to values.
ROWS: Final = "rows"


class _Rows(TypeDecorator[Sequence[Mapping[str, Any]]]):
    """Rows as JSON: in objects, for SQLite in lists, which it reads sooner. Times are as the columns hold them.

    columns: the names in each row, in their order.
    """

    impl = sa.Text
    cache_ok = True

    def __init__(self, columns: tuple[str, ...]) -> None:
        super().__init__()
        self.columns = columns

    def process_bind_param(self, value: Sequence[Mapping[str, Any]] | None, dialect: Dialect) -> str:
        """Raises KeyError for a row that lacks a column."""
        if dialect.name == "sqlite":
            return _ON_SQLITE.encode([[row[name] for name in self.columns] for row in value or ()])
        return _JSON.encode(value)


def given(dialect: str, columns: Iterable[sa.Column[Any]]) -> sa.FromClause:
    """The rows of the parameter as a table with these columns. dialect: the database's name, as SQLAlchemy has it."""
    columns = list(columns)
    rows = sa.bindparam(ROWS, type_=_Rows(tuple(column.name for column in columns)))
    if dialect == "sqlite":
        each = sa.func.json_each(rows).table_valued("value", name="each_row")
        fields = (
            sa.func.json_extract(each.c.value, f"$[{place}]", type_=column.type).label(column.name)
            for place, column in enumerate(columns)
        )
        return sa.select(*fields).select_from(each).subquery("given")
    records: Any = sa.func.json_to_recordset(sa.cast(rows, sa.JSON))
    named = records.table_valued(*(sa.column(column.name, column.type) for column in columns))
    return cast("sa.FromClause", named.render_derived(name="given", with_types=True))


def insert_given(dialect: str, table: sa.Table, names: Sequence[str]) -> Any:
    """INSERT of the rows given, with these of the table's columns."""
    rows = given(dialect, (table.c[name] for name in names))
    insert = insert_into(dialect, table)
    return insert.from_select(list(names), sa.select(*(rows.c[name] for name in names)).where(sa.true()))


def insert_into(dialect: str, table: sa.Table) -> Any:
    """INSERT … ON CONFLICT is spelled alike in both dialects, but built by each of them."""
    return sqlite.insert(table) if dialect == "sqlite" else postgresql.insert(table)


def _utc(value: object) -> datetime:
    if not isinstance(value, datetime):
        raise TypeError(f"{type(value).__name__} has no place in a row")
    if value.tzinfo is None:
        raise ValueError("a naive time reached the ledger")
    return value.astimezone(UTC)


def _time(value: object) -> str:
    return _utc(value).isoformat()


def _time_on_sqlite(value: object) -> str:
    """As SQLAlchemy writes it into a column there: always of one length, so that the text sorts as the time does."""
    return _utc(value).replace(tzinfo=None).isoformat(" ", "microseconds")


_JSON: Final = json.JSONEncoder(separators=(",", ":"), default=_time)
_ON_SQLITE: Final = json.JSONEncoder(separators=(",", ":"), default=_time_on_sqlite)
