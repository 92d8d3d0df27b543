"""The declarative base of every table, and the database connection."""

from __future__ import annotations

from typing import Any

from sqlalchemy import CursorResult, Engine, Result, Table, create_engine, event, func, select
from sqlalchemy.orm import DeclarativeBase, Session


class Base(DeclarativeBase):
    pass


def connect(url: str) -> Engine:
    """Return an engine. Its errors omit bound values, which may be prompts; SQLite readers never
    wait (write-ahead logging).

    ``synchronous=NORMAL``: a power failure may lose the newest commits, never part of one: uploads
    or jobs to send again, uncharged images.
    """
    if not url.startswith("sqlite"):
        return create_engine(url, pool_pre_ping=True, hide_parameters=True)
    engine = create_engine(url, connect_args={"timeout": 10.0}, hide_parameters=True)

    @event.listens_for(engine, "connect")
    def _configure(connection: Any, _record: object) -> None:
        cursor = connection.cursor()
        cursor.execute("PRAGMA journal_mode=WAL")
        cursor.execute("PRAGMA synchronous=NORMAL")
        # Checkpoint and truncate at 1 MB, not 4 MB.
        cursor.execute("PRAGMA wal_autocheckpoint=250")
        cursor.execute("PRAGMA journal_size_limit=1048576")
        cursor.execute("PRAGMA foreign_keys=ON")
        cursor.close()

    return engine


def alone(session: Session, about: str) -> None:
    """Serialize this transaction with others of the same ``about``: its reads stay true until it
    commits. On SQLite, call it first."""
    if session.get_bind().dialect.name == "sqlite":
        connection = session.connection().connection
        if not connection.dbapi_connection.in_transaction:  # type: ignore[union-attr]
            session.connection().exec_driver_sql("BEGIN IMMEDIATE")
    else:
        session.execute(select(func.pg_advisory_xact_lock(func.hashtext(about))))


def rows_changed(result: Result[tuple[object, ...]]) -> int:
    """The number of rows that an update or delete changed."""
    assert isinstance(result, CursorResult)
    return int(result.rowcount)


def table_of(row: type[Base]) -> Table:
    table = row.__table__
    assert isinstance(table, Table)
    return table
