"""What runs on the device: the standard library, numpy and the runtime. Imports nothing of edgekd outside.

`python -m edgekd.profile.device measure PLAN.json FOLDER` measures; `worker` is the process of one model.
As a zipapp with nothing or a folder as argument it is the runner of a bundle (see `bundle.py`).
"""

import os

# ONNX Runtime's telemetry is a thread and a data base beside what is measured.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
