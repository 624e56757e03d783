"""Starts :mod:`experiments.caption`."""

import sys

from experiments.caption.command import main

sys.exit(main())
