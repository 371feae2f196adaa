"""Triton kernels behind ``oldrestore.ops``: torch and triton alone, one operation a file.

Installed as ``oldrestore.kernels`` and imported at the first CUDA call. Tile sizes come from tables
by architecture, not from a search at the first call; tests/kernels compiles every entry ahead of
time and holds its resources.
"""
