"""The library's rows in SQLite or PostgreSQL, through SQLAlchemy."""
