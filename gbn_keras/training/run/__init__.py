"""The files that a run writes, and from which it resumes."""
