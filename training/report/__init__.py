"""How a run tells what it does: telemetry, Weights & Biases, plots."""
