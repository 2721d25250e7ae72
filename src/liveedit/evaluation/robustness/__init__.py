"""Questions that provoke broken answers, and what an editor answers to them: `liveedit robustness`."""
