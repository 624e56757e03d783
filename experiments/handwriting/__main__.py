"""Starts :mod:`experiments.handwriting`."""

import sys

from experiments.handwriting.command import main

sys.exit(main())
