"""Models and data sets by name and version: registered, digested, imported."""
