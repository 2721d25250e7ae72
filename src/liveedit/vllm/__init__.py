"""Edits inside vLLM: a plugin that routes and adds experts in vLLM's own workers, from the same stores of edits.

vLLM finds it by its entry points. It does nothing unless `--additional-config '{"liveedit": {...}}'` is given; the
fields are those of `settings.Settings`. See docs/VLLM.md.
"""
