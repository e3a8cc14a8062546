"""Schemes: who learns from whom; one file each."""
