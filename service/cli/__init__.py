"""The `navarch` command. Modules here import what is heavy inside functions: the command must start quickly."""
