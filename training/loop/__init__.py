"""What every stage has around its loop: opening and ending a run, steps, checkpoints, resume."""
