"""Writes one checkpoint, between two marks for tests/faults/tamper.cpp: `saves.py FOLDER STEP`."""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path

import numpy as np

from ddp_gd.training.saving.checkpoint_files import Folder

folder, step = Folder(Path(sys.argv[1])), int(sys.argv[2])
arrays = {"weights": np.full((300, 100), step, np.float32), "step": np.array(step)}
warnings.simplefilter("error")
os.kill(os.getpid(), 0)
folder.write(step, arrays, f"header {step}", keep=1)
os.kill(os.getpid(), 0)
