"""Starts :mod:`experiments.anomaly`."""

import sys

from experiments.anomaly.command import main

sys.exit(main())
