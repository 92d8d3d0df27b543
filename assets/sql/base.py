"""The declarative base that every table of the platform hangs on."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Engine, create_engine, event, func, select
from sqlalchemy.orm import DeclarativeBase, Session


class Base(DeclarativeBase):
    pass


def connect(url: str) -> Engine:
    """An engine for ``url``, whose errors do not say what was to be written, which may be a prompt.
    SQLite gets write-ahead logging, so readers never wait.

    ``synchronous=NORMAL``: after a power cut the newest commits may be missing, never
    half there. What that can cost here is an upload or a job that must be sent again, and the
    charge of a picture that was drawn in that moment.
    """
    if not url.startswith("sqlite"):
        return create_engine(url, pool_pre_ping=True, hide_parameters=True)
    engine = create_engine(url, connect_args={"timeout": 10.0}, hide_parameters=True)

    @event.listens_for(engine, "connect")
    def _configure(connection: Any, _record: object) -> None:
        cursor = connection.cursor()
        cursor.execute("PRAGMA journal_mode=WAL")
        cursor.execute("PRAGMA synchronous=NORMAL")
        # The log is written into the database, and cut, at a megabyte rather than at four.
        cursor.execute("PRAGMA wal_autocheckpoint=250")
        cursor.execute("PRAGMA journal_size_limit=1048576")
        cursor.execute("PRAGMA foreign_keys=ON")
        cursor.close()

    return engine


def alone(session: Session, about: str) -> None:
    """The rest of this transaction runs alone among those that are ``about`` the same: what it
    reads stays true until it commits. For SQLite it must be the transaction's first statement."""
    if session.get_bind().dialect.name == "sqlite":
        connection = session.connection().connection
        if not connection.dbapi_connection.in_transaction:  # type: ignore[union-attr]
            session.connection().exec_driver_sql("BEGIN IMMEDIATE")
    else:
        session.execute(select(func.pg_advisory_xact_lock(func.hashtext(about))))
