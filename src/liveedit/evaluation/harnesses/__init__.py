"""An edited model under lm-eval and lmms-eval, the field's harnesses, and what edits do to general ability.

The models import their harness. Everything else works without one.
"""
