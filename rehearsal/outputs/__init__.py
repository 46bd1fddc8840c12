"""What nodes and probe pods print, generated from a hardware profile: nvidia-smi, NCCL, nccl-tests."""
