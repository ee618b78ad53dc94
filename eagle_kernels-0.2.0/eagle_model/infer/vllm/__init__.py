"""Eagle 2.5 in vLLM: an installed `eagle-kernels` registers it by itself (the entry point vllm.general_plugins)."""
