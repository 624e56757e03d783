"""Checkpoints that are whole or not there, hashed when written and verified when read.

A folder of checkpoints holds one folder for each, numbered in the order of saving:

    000007-step-1200/state/...       the arrays, as Orbax writes them, each under its path
    000007-step-1200/divided/...     those that several processes divide among them, if any
    000007-step-1200/manifest.json   step, shapes and dtypes, and what else the caller keeps
    000007-step-1200/SHA256SUMS      of every file above, in the format of sha256sum
    lock                             held by the process that writes here

All of it is written under a name that ends in .tmp and renamed when it is on disk, so a process
that is killed leaves nothing that could be taken for a checkpoint. Orbax itself restores a
flipped bit without a word; the hashes are there to notice. They are no signature: who
can write here can write them too. So what a checkpoint says of its arrays is held against the
template before memory is taken, nothing in it is run, and links, which may lead anywhere, are
refused.

In a program of several processes all of them save and restore together. The first one has the
lock, writes what all processes have whole, gives the checkpoint its name when the others have told
it the hashes of their parts, and verifies what is restored; what it finds, the others are told. The
folder lies where all of them see it.
"""

from .checkpoints import Checkpoints as Checkpoints
from .checkpoints import Restored as Restored
from .errors import CheckpointError as CheckpointError
from .lock import FolderLock as FolderLock
