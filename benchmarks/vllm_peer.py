"""Sampling by vLLM on a CPU, in an environment of its own: settings on stdin, rates on stdout.

``run.py`` starts it. It imports nothing of the project, whose packages vLLM pins otherwise.
"""

import json
import os
import statistics
import sys
import time

# What it prints belongs on stderr: the last line of stdout is the result.
result = os.dup(1)
os.dup2(2, 1)
# Every core is for the model; by default one is kept for requests, of which none come.
cores = os.cpu_count() or 1
os.environ |= {"VLLM_CPU_KVCACHE_SPACE": "2", "VLLM_CPU_NUM_OF_RESERVED_CPU": "0"}
os.environ |= {"OMP_NUM_THREADS": str(cores), "VLLM_CPU_OMP_THREADS_BIND": f"0-{cores - 1}"}

if __name__ == "__main__":
    from vllm import LLM, SamplingParams

    wanted = json.load(sys.stdin)
    model = LLM(model=wanted["model"], dtype=wanted["dtype"], max_model_len=512, seed=0)
    how = SamplingParams(**wanted["how"])
    model.generate(wanted["prompts"][:2], how)  # what is compiled is compiled now
    clock = time.perf_counter()
    found = model.generate(wanted["prompts"], how)
    seconds = time.perf_counter() - clock
    counts = [len(one.token_ids) for each in found for one in each.outputs]
    said = {"rate": sum(counts) / seconds, "tokens": statistics.mean(counts)}
    os.write(result, (json.dumps(said) + "\n").encode())
