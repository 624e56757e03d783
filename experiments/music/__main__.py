"""Starts :mod:`experiments.music`."""

import sys

from experiments.music.command import main

sys.exit(main())
