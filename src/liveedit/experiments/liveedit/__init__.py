"""Experiments about LiveEdit alone: its ablation, its sweeps of sizes and layers, and single questions."""
