"""Libraries that quantize, one file each."""
