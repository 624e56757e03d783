"""Starts :mod:`experiments.tag`."""

import sys

from experiments.tag.command import main

sys.exit(main())
