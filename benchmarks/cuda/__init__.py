"""Kernels and steps for GPUs: counted, modelled, and timed where there is one."""
