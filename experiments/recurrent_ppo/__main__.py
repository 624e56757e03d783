"""Starts :mod:`experiments.recurrent_ppo`."""

import sys

from experiments.recurrent_ppo.command import main

sys.exit(main())
