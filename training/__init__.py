"""What runs inside a container: training stages, data, strategies, rollouts, serving."""
