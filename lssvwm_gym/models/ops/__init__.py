"""Scans and attention: plain PyTorch as the reference, and what is quicker on CUDA with the same signature beside it."""
