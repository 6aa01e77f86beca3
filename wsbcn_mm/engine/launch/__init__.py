"""Launch: start one or several processes under python, torchrun or srun, and check what several need."""
