"""Where the jobs of a sweep run: processes of this machine, a Slurm cluster, Ray. Modules of the extras load late."""
