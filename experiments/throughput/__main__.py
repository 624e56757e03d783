import sys

from experiments.throughput.command import main

sys.exit(main())
