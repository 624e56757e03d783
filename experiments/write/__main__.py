"""Starts :mod:`experiments.write`."""

import sys

from experiments.write.command import main

sys.exit(main())
