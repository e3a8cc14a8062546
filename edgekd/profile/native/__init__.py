"""The runtimes' own benchmark tools, for devices without Python: their output in edgekd's schema."""
