"""Fuzzers: command lines and files drawn at random, which have to end in a valid result or in a
clean refusal.

`python -m tests.fuzz.configurations --count 10000 --seed 0` and `python -m tests.fuzz.files --count
10000 --seed 0`, in the checkout.
"""

import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported
# as pytest has it: tests/ and the checkout
sys.path[:0] = [p for p in map(str, Path(__file__).resolve().parents[1:3]) if p not in sys.path]
