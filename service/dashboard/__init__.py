"""The web dashboard: a single-page application over the REST API, and what serves its built files."""
