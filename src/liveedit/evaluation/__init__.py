"""The lifelong protocol, the scores, the bench that runs them, and its report."""
