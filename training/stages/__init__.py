"""The stages: one linear recipe each."""
