"""Simulated and file-backed thermal and RGB cameras."""
