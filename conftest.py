"""Tests run side by side: one thread each, also in the processes they start. More would only wait for each other."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
