"""The persistent kernels on a GPU: are they right, and how fast? See ``__main__``."""
