"""The durable store of edits: SQLite or PostgreSQL, with history, undo, verification and bundles."""
