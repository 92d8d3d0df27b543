"""The database: registers all tables and migrates to the newest schema."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import Engine

import assets.sql.blobs
import assets.sql.search_index  # noqa: F401  (both register their tables)
import serving.jobs.periodic
import serving.jobs.store
import serving.tenants.rows  # noqa: F401
from assets.sql.base import connect


def open_database(url: str) -> Engine:
    """Open and upgrade the database; safe in several processes in turn."""
    if url.startswith("sqlite:///"):
        Path(url.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
    engine = connect(url)
    upgrade(engine)
    return engine


def upgrade(engine: Engine, revision: str = "head") -> None:
    """Migrate up to ``revision``."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parents[1] / "migrations"))
    config.set_main_option("path_separator", "os")
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, revision)
