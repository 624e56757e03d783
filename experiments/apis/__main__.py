"""Starts :mod:`experiments.apis`."""

import sys

from experiments.apis.command import main

sys.exit(main())
