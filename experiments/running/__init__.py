"""What the scripts share: the console, the run folder, the training loop, curves, checkpoints."""

import importlib.util

# tyro, which reads every command line, stands for the extra: it is imported in this package alone.
if importlib.util.find_spec("tyro") is None:
    raise ModuleNotFoundError('the scripts need more packages: pip install ".[experiments]"')
