"""Unblock the scheduler's signals in each process that is forked from the one that imports this module.

The fork server of `compare` blocks them (:func:`drpruning.comparison.scheduler._fork_server`) and imports it. Other
processes of the same program that come from this server can then be terminated: a pool waits for that.
"""

import os
import signal
from functools import partial

from drpruning.train.signals import SCHEDULER_SIGNALS

os.register_at_fork(after_in_child=partial(signal.pthread_sigmask, signal.SIG_UNBLOCK, SCHEDULER_SIGNALS))
