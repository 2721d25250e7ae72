"""Experiments about LEMoE alone: forgetting, routing consistency and the order of edits."""
