"""Imported when a process starts that finds the fakes: where it has a meeting place, NCCL is one that meets there."""

import json
import os
from pathlib import Path

_FOLDER = json.loads(os.environ.get("PRECAST_FAKE_DEVICE", "{}")).get("meeting_dir", "")

if _FOLDER:
    from precast.plugins.collectives.device import nccl
    from tests.runtime.tensorrt.fake_nccl import MeetingNccl

    nccl.load_nccl = lambda: MeetingNccl(Path(_FOLDER))
