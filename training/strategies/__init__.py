"""How a model is spread over processes: `open_strategy` gives the one that a run's configuration names."""
