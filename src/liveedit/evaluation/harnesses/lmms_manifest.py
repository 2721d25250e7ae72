"""What the entry point group `lmms_eval.models` gives to lmms-eval, which loads it whatever model it is asked for."""

from __future__ import annotations

from typing import Final

from lmms_eval.models.registry_v2 import ModelManifest  # pyright: ignore[reportMissingImports]

NAME: Final = "liveedit"
"""The name of the model in lmms-eval's registry."""

MANIFEST: Final = ModelManifest(NAME, simple_class_path="liveedit.evaluation.harnesses.lmms_model.EditedLmms")
