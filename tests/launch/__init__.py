"""Real launches beyond one machine: pods, and what else launch/ is for."""
