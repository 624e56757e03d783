"""Starts :mod:`experiments.forecast`."""

import sys

from experiments.forecast.command import main

sys.exit(main())
