"""hydra/sweeper=optuna. Hydra imports every module here that has no `_` in front, at every start: those are light."""
