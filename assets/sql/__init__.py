"""The asset database in SQLite or PostgreSQL, through SQLAlchemy."""
