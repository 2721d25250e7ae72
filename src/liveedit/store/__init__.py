"""The durable store of edits: SQLite or PostgreSQL, with history, undo, verification and bundles.

Experts are bytes here: the store needs neither torch nor a model.
"""
