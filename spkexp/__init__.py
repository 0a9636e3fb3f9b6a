"""Speaker-recognition experiments from one config."""
