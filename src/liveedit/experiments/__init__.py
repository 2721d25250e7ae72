"""The experiments of the papers: each a set of independent jobs, and a report of what they gave."""
