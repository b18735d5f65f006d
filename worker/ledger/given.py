"""Rows given to one statement as one JSON parameter: a hundred rows cost one execution, and one plan serves them all.

Sources: https://www.sqlite.org/json1.html#jeach,
https://www.postgresql.org/docs/current/functions-json.html (json_to_recordset).
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, cast

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection

_ROWS: Final = "rows"


@dataclass(frozen=True, slots=True)
class Given:
    """A statement over rows that are given to it, as the driver takes it: compiled once, not looked up each time."""

    sql: str
    columns: Sequence[str]
    # Values of its own, by name, and the names by place where the driver wants places.
    constants: Mapping[str, Any]
    places: Sequence[str] | None

    def execute(self, conn: Connection, rows: Sequence[Mapping[str, Any]]) -> list[Any]:
        """What the statement returns, by its first column; otherwise as fetch."""
        return [row[0] for row in self.fetch(conn, rows)]

    def fetch(self, conn: Connection, rows: Sequence[Mapping[str, Any]]) -> list[tuple[Any, ...]]:
        """What the statement returns. rows: each with the columns by their names.

        Raises StatementError for a value that has no place in a row, and DBAPIError.
        """
        dialect = conn.dialect
        try:
            if dialect.name == "sqlite":  # in lists, which it finds its way in sooner
                text = _ON_SQLITE.encode([[row[name] for name in self.columns] for row in rows])
            else:
                text = _ON_POSTGRESQL.encode(rows)
        except (TypeError, ValueError) as error:
            raise sa.exc.StatementError(str(error), self.sql, None, error) from None
        values = {**self.constants, _ROWS: text}
        return by_driver(conn, self.sql, tuple(map(values.__getitem__, self.places)) if self.places else values)


def by_driver(conn: Connection, sql: str, values: Any = ()) -> list[tuple[Any, ...]]:
    """What a statement returns, by the driver's own cursor: SQLAlchemy's care for one costs more than the statement.

    Raises DBAPIError, as SQLAlchemy does.
    """
    driver: Any = conn.dialect.loaded_dbapi
    try:
        with closing(conn.connection.cursor()) as cursor:
            cursor.execute(sql, values)
            return list(cursor.fetchall()) if cursor.description else []
    except driver.Error as error:
        raise sa.exc.DBAPIError.instance(
            sql, None, error, driver.Error, hide_parameters=True, dialect=conn.dialect
        ) from error


def over_given(
    columns: Iterable[sa.Column[Any]], build: Callable[[str, sa.FromClause], sa.Executable]
) -> Callable[[Connection], Given]:
    """A statement over the rows given, compiled when a dialect first asks for it.

    build: makes it, of the dialect's name and the rows as a table with these columns.
    """
    columns = list(columns)
    by_dialect: dict[str, Given] = {}

    def of(conn: Connection) -> Given:
        dialect = conn.dialect
        if dialect.name not in by_dialect:
            statement: Any = build(dialect.name, _table(dialect.name, columns))
            compiled = statement.compile(dialect=dialect, compile_kwargs={"render_postcompile": True})
            by_dialect[dialect.name] = Given(
                sql=str(compiled),
                columns=[column.name for column in columns],
                constants={name: getattr(value, "value", value) for name, value in compiled.params.items()},
                places=compiled.positiontup,
            )
        return by_dialect[dialect.name]

    return of


def _table(dialect: str, columns: Sequence[sa.Column[Any]]) -> sa.FromClause:
    rows: Any = sa.bindparam(_ROWS, None, type_=sa.Text)
    if dialect == "sqlite":
        each = sa.func.json_each(rows).table_valued("value", name="each_row")
        fields = (
            sa.func.json_extract(each.c.value, sa.literal_column(f"'$[{place}]'"), type_=column.type).label(column.name)
            for place, column in enumerate(columns)
        )
        return sa.select(*fields).select_from(each).subquery("given")
    records: Any = sa.func.json_to_recordset(sa.cast(rows, sa.JSON))
    named = records.table_valued(*(sa.column(column.name, column.type) for column in columns))
    return cast("sa.FromClause", named.render_derived(name="given", with_types=True))


def insert_given(
    table: sa.Table, names: Sequence[str], *, returning: sa.Column[Any] | None = None
) -> Callable[[Connection], Given]:
    """INSERT of the rows given, with these of the table's columns. returning: of those that were not there before;
    without it, a row that is there already is an error.
    """

    def build(dialect: str, rows: sa.FromClause) -> sa.Executable:
        chosen = sa.select(*(rows.c[name] for name in names)).where(sa.true())  # or ON CONFLICT would read as a join's
        insert = insert_into(dialect, table).from_select(list(names), chosen)
        made: sa.Executable = insert if returning is None else insert.on_conflict_do_nothing().returning(returning)
        return made

    return over_given((table.c[name] for name in names), build)


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


_ON_POSTGRESQL: Final = json.JSONEncoder(separators=(",", ":"), default=_time)
_ON_SQLITE: Final = json.JSONEncoder(separators=(",", ":"), default=_time_on_sqlite)
