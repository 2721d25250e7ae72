"""What the papers' tables and figures show, made from rows of the bench."""
