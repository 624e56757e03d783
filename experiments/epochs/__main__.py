import sys

from experiments.epochs.command import main

if __name__ == "__main__":
    sys.exit(main())
