"""Every fused piece beside plain PyTorch."""
