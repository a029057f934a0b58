"""How a run trains: optimizer, schedule, parallelism, and what is watched meanwhile."""
