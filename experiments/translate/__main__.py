"""Starts :mod:`experiments.translate`."""

import sys

from experiments.translate.command import main

sys.exit(main())
