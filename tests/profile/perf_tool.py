"""A program with the command line and the output of `onnxruntime_perf_test`, over the real runtime.

That tool has no package to install. What is timed is ONNX Runtime; interface and formats are those
of onnxruntime/test/perftest (command_args_parser.cc, performance_runner.cc).
"""

import argparse
import resource
import sys
import time
from pathlib import Path

import onnx
import onnxruntime
from onnx import numpy_helper

parser = argparse.ArgumentParser()
parser.add_argument("-e", choices=["cpu"], default="cpu")
parser.add_argument("-m", choices=["times"], required=True)
parser.add_argument("-r", type=int, required=True)
parser.add_argument("-x", type=int, default=0)
parser.add_argument("-y", type=int, default=0)
parser.add_argument("model")
parser.add_argument("result_file")
options = parser.parse_args()

session_options = onnxruntime.SessionOptions()
session_options.intra_op_num_threads = options.x
session_options.inter_op_num_threads = options.y
started = time.perf_counter()
session = onnxruntime.InferenceSession(options.model, session_options, ["CPUExecutionProvider"])
created = time.perf_counter() - started

data = sorted(Path(options.model).parent.glob("test_data_set_*/input_0.pb"))
if not data:
    print(f"there is no test data for model {Path(options.model).parent.name}")
    sys.exit(255)
tensor = numpy_helper.to_array(onnx.load_tensor(str(data[0])))
feed = {session.get_inputs()[0].name: tensor}


def run():
    start = time.perf_counter()
    session.run(None, feed)
    return time.perf_counter() - start


first = run()
costs = [run() for _ in range(options.r)]
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print(f"Session creation time cost: {created:.6g} s")
print(f"First inference time cost: {int(first * 1000)} ms")
print(f"Total inference time cost: {sum(costs):.6g} s")
print(f"Total inference requests: {len(costs)}")
print(f"Average inference time cost: {sum(costs) / len(costs) * 1000:.6g} ms")
print(f"Peak working set size: {peak} bytes")
with open(options.result_file, "a") as file:
    for i, cost in enumerate(costs):
        print(f"{Path(options.model).parent.name},{cost:.6g},{peak},100,{i}", file=file)
