"""All configuration: every name, default and check (imports no torch)."""
