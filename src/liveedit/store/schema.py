"""The tables of an edits file as SQLAlchemy sees them; `migrations.py` makes them."""

from __future__ import annotations

from typing import Final

from sqlalchemy import Column, Float, Integer, LargeBinary, MetaData, Table, Text

_TABLES: Final = MetaData()

META: Final = Table("meta", _TABLES, Column("key", Text, primary_key=True), Column("value", Text))

EDITS: Final = Table(
    "edits",
    _TABLES,
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("id", Text),
    Column("created_at", Text),
    Column("author", Text),
    Column("note", Text),
    Column("editor", Text),
    Column("prompt", Text),
    Column("answer", Text),
    Column("answer_before", Text),
    Column("answer_after", Text),
    Column("milliseconds", Float),
    Column("refine_steps", Integer),
    Column("subject", Text),
    Column("relation", Text),
    Column("image_sha256", Text),
    Column("image_name", Text),
    Column("expert_digest", Text),
    Column("backbone_digest", Text),
    Column("editor_digest", Text),
    Column("revision_added", Integer),
    Column("revision_removed", Integer),
    Column("undone_at", Text),
    Column("purged_at", Text),
    Column("evidence", Text),
    Column("question_sha256", Text),
    Column("record_sha256", Text),
)

SPANS: Final = Table(
    "spans",
    _TABLES,
    Column("edit_number", Integer, primary_key=True, autoincrement=False),
    Column("revision_added", Integer, primary_key=True, autoincrement=False),
    Column("revision_removed", Integer),
)
"""When an edit was in force: from `revision_added` on, and no more from `revision_removed` on."""

BLOBS: Final = Table(
    "blobs",
    _TABLES,
    Column("edit_number", Integer, primary_key=True, autoincrement=False),
    Column("kind", Text, primary_key=True),
    Column("sha256", Text),
    Column("data", LargeBinary),
)

EVENTS: Final = Table(
    "events",
    _TABLES,
    Column("revision", Integer, primary_key=True, autoincrement=False),
    Column("at", Text),
    Column("kind", Text),
    Column("edit_id", Text),
    Column("author", Text),
    Column("note", Text),
    Column("record_sha256", Text),
)

REQUESTS: Final = Table(
    "requests",
    _TABLES,
    Column("request_sha256", Text, primary_key=True),
    Column("body_sha256", Text),
    Column("revision", Integer),
)
"""Requests for a change that came with a key, and the revision that each made."""

TABLES: Final = tuple(_TABLES.tables.values())
