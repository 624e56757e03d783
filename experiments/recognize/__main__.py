"""Starts :mod:`experiments.recognize`."""

import sys

from experiments.recognize.command import main

sys.exit(main())
