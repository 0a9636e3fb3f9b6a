"""Speaker-recognition experiments from one config."""

from spkexp.allocator import return_memory_of_tables

return_memory_of_tables()
