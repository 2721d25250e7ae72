"""Invented facts for language models: people and towns from a seed, with questions, edits and probes."""

from .cases import Part, fact_cases
from .write import write_facts

__all__ = ["Part", "fact_cases", "write_facts"]
