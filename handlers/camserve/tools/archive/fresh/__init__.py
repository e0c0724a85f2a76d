"""Loads an archive as TorchServe's worker does. As a program of its own it proves that the archive needs nothing else.

`fresh_process.run_fresh` runs `__main__`. Its programs hide every module that neither TorchServe's
own environment nor the archive's requirements bring.
Everything here imports the standard library and its neighbours only: what is loaded must come from the archive.
"""
