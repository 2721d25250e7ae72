"""Lets torchvision be imported beside a CPU build of torch: its own operators are missing there, and never called.

`make vllm-env` puts this file into the environment of vLLM, where Python imports it at every start.
"""

import sys
from importlib.abc import MetaPathFinder


class _BeforeTorchvision(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == "torchvision":
            sys.meta_path.remove(self)
            import torch

            library = torch.library.Library("torchvision", "DEF")
            library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            torch._liveedit_torchvision = library  # Definitions last as long as their library.
        return


sys.meta_path.insert(0, _BeforeTorchvision())
