"""The steps of a job, one module a state."""
