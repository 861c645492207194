"""Docker Engines as hosts of containers."""
