"""The parts of PPO around its stage: formulas, players, experience, rewards, updates."""
