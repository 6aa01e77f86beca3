"""Processes: starting them under python, torchrun and srun, and what several of them need."""
