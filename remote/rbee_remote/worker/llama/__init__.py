"""llama.cpp behind `interface.Engine`: the one package that imports llama_cpp.

engine ─┬─ load       a model and its context, from a WorkerConfig; what llama.cpp says when it cannot
        ├─ memory     how much of it a model would take, without loading it
        ├─ timing     its speed, as llama-bench has it
        ├─ samplers   one request's sampler, constraint and logprobs; `sampler_chain` has each of llama.cpp's samplers
        ├─ constraints  grammars over the model's tokens, by llguidance
        ├─ backends   ggml's devices; vulkan_loader finds what one of them needs, device_list tells them to the hive
        └─ log        llama.cpp's log to ours
"""

import sys
from pathlib import Path

from rbee_remote.system.alone import import_alone
from rbee_remote.system.cuda_libraries import preload

preload(Path(sys.prefix))
import_alone("llama_cpp.llama_cpp")  # before the others name it
